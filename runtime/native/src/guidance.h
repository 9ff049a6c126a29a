// The denoiser with its conditions: one pass, or two that guidance combines.
#ifndef MUTOSCOPE_GUIDANCE_H
#define MUTOSCOPE_GUIDANCE_H

#include <string>
#include <utility>
#include <vector>

#include "components.h"

namespace mutoscope {

// The denoiser of a bundle as the sampler calls it. All arrays are made once, at the start.
class GuidedDenoiser {
public:
    // passes: all that the denoiser may take, by source: of the prompt and, for guidance, of the
    //     negative prompt.
    // latents_shape: [1, C, F, h, w].
    // frame_guidance: the guidance scale of each frame.
    // is_batched: run the graph once for both passes.
    // Raises EngineError, or ParameterError where a batch cannot be.
    GuidedDenoiser(const Bundle &bundle, Components &components, const std::vector<Values> &passes,
                   const Shape &latents_shape, std::vector<float> frame_guidance, bool is_batched,
                   const RunContext &context);

    // The model output, float32 [1, C, F, h, w], which the next call overwrites.
    Array operator()(const Array &sample, double timestep);

private:
    // One run of the graph: what it is fed, and what it returns.
    struct Run {
        NamedArrays feeds;
        Array output;
    };

    void feed(Run &run, const Array &sample, double timestep) const;
    void combine(const float *conditional, const float *unconditional) const;

    const ComponentRecord &record_;
    Components &components_;
    RunContext context_;
    std::vector<float> frame_guidance_;
    std::vector<Run> runs_;
    Array model_output_;
};

// Raises ParameterError unless a denoiser can run both passes at once.
void check_batched(const ComponentRecord &record);

}  // namespace mutoscope

#endif
