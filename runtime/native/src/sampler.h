// The sampler: one loop over the rows of a schedule table; runtime/sampler.py is the same.
#ifndef MUTOSCOPE_SAMPLER_H
#define MUTOSCOPE_SAMPLER_H

#include <functional>

#include "array.h"
#include "schedule.h"

namespace mutoscope {

// The denoiser: what the model makes of a sample in a row of the table, float32 and shaped as the
// latents; it may be the same array each time, but not the sample.
using Predict = std::function<Array(const Array &sample, const Row &row)>;
// Fills an array of that shape with standard normal noise.
using DrawNoise = std::function<void(const Array &noise)>;
// Called after each row with the latents now; raises an Error to stop.
using OnStep = std::function<void(size_t step_index, const Array &latents)>;

// Run a schedule table over the denoiser and return the clean latents.
//
// latents: start noise, float32 of any shape, unit variance; overwritten.
Array denoise(const Array &latents, const ScheduleTable &table, const Predict &predict,
              const DrawNoise &draw_noise, const OnStep &on_step);

}  // namespace mutoscope

#endif
