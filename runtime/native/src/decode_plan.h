// How latents are cut for decoding, so that memory stays within a limit.
#ifndef MUTOSCOPE_DECODE_PLAN_H
#define MUTOSCOPE_DECODE_PLAN_H

#include <cstdint>
#include <optional>

#include "array.h"
#include "decoding_records.h"

namespace mutoscope {

struct DecodePlan {
    // In one run; every chunk but the last has as many.
    int frames_per_chunk = 1;
    // Rows of the latents in a tile of one frame; none: whole frames.
    std::optional<int> tile_height;
};

// How to cut latents: as little as the limit allows.
//
// decoder: what the manifest says of it; null if it says nothing.
// latents_shape: [1, C, F, h, w], each at least 1.
// scale_factor: pixels for each position of the latents, along one axis.
// memory_limit_bytes: what the whole process may use while it decodes. 0: no limit; frames stay
//     whole, and as many are in one run as need 16 MiB, at least one.
//
// Raises ParameterError where the smallest parts need more than the limit, and says how much.
DecodePlan plan_decode(const DecoderRecord *decoder, const Shape &latents_shape, int scale_factor,
                       uint64_t memory_limit_bytes);

// The peak memory of a process that decodes by a plan with low memory.
double estimate_bytes(const DecoderRecord &decoder, const Shape &latents_shape, int scale_factor,
                      const DecodePlan &plan);

// How many graph runs latents of a shape take by a plan that was made for the decoder.
int64_t count_runs(const DecodePlan &plan, const DecoderRecord *decoder,
                   const Shape &latents_shape);

}  // namespace mutoscope

#endif
