// Decode latents with the decoder of a bundle, chunk by chunk.
#ifndef MUTOSCOPE_DECODER_H
#define MUTOSCOPE_DECODER_H

#include <cstdint>
#include <functional>

#include "components.h"
#include "decode_plan.h"

namespace mutoscope {

struct DecodeCallbacks {
    // After each run of a graph, with the number that are done, and that there are.
    std::function<void(int num_done, int num_in_all)> on_run;
    // pixels: uint8 [height, width, 3], until it returns.
    std::function<void(int frame_index, const uint8_t *pixels)> on_frame;
};

// Decode clean latents, float32 [1, C, F, h, w], and hand out the frames in order.
//
// Raises EngineError where the decoder returns something else than frames of num_frames, height and
// width, and what the callbacks raise.
void decode_latents(const Bundle &bundle, Components &components, const Array &latents,
                    const DecodePlan &plan, const Shape &frames_shape,
                    const DecodeCallbacks &callbacks, const RunContext &context);

}  // namespace mutoscope

#endif
