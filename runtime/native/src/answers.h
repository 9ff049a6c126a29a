// What the public structs say of a bundle and of a generation.
#ifndef MUTOSCOPE_ANSWERS_H
#define MUTOSCOPE_ANSWERS_H

#include "mutoscope.h"
#include "pipeline.h"

namespace mutoscope {

// Their texts are the manifest's.
mutoscope_bundle_info make_bundle_info(const Pipeline &pipeline);
mutoscope_condition_info make_condition_info(const Manifest &manifest, const std::string &name);
mutoscope_settings make_public_settings(const Pipeline &pipeline, const Generation &generation);
mutoscope_result make_result(const Generation &generation, const Timings &timings,
                             double seconds_since_start);

}  // namespace mutoscope

#endif
