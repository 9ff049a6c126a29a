// What a caller asks for, out of the public structs.
#ifndef MUTOSCOPE_REQUEST_H
#define MUTOSCOPE_REQUEST_H

#include <cstdint>
#include <optional>
#include <string>

#include "conditioning.h"
#include "mutoscope.h"
#include "settings.h"

namespace mutoscope {

// One generation as it was asked for. The picture is the caller's, all else is copied.
struct Request {
    Wishes wishes;
    std::optional<uint64_t> seed;                // absent: draw one
    std::optional<std::string> guidance_passes;  // absent: the bundle's
    PromptInput prompt, negative_prompt;
    std::optional<Picture> picture;
    std::optional<Array> latents;
};

// How a bundle is run.
struct PipelineOptions {
    EngineOptions engine;
    std::string variant;              // "": the default of each component
    uint64_t memory_limit_bytes = 0;  // 0: no limit
};

// Raise Error with MUTOSCOPE_ERROR_ARGUMENT for pointers that are not there and arrays that cannot
// be, ParameterError for choices that there are not.
Request read_request(const mutoscope_generate_params &params);
PipelineOptions read_options(const mutoscope_pipeline_params &params);

}  // namespace mutoscope

#endif
