// The denoisers with their conditions: one pass, or two that guidance combines.
#ifndef MUTOSCOPE_GUIDANCE_H
#define MUTOSCOPE_GUIDANCE_H

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "components.h"
#include "row_plan.h"

namespace mutoscope {

// What rows hand on to later ones, by the name of the output: of each pass.
using Carried = std::vector<std::map<std::string, Array>>;

// The denoisers of a schedule table as the sampler calls them. The arrays that graphs are fed, and
// those of the model outputs, are made once, at the start.
class GuidedDenoiser {
public:
    // plan: what runs each row; it must outlive the object, as all that is given by reference.
    // passes: all that denoisers may take, by source: of the prompt and, for guidance, of the
    //     negative prompt.
    // latents_shape: [1, C, F, h, w].
    // is_batched: run the graph once for both passes.
    // Raises EngineError, or ParameterError where a batch cannot be.
    GuidedDenoiser(const Bundle &bundle, Components &components, const RowPlan &plan,
                   const std::vector<Values> &passes, const Shape &latents_shape, bool is_batched,
                   const RunContext &context);

    // The model output of a row, float32 [1, C, F, h, w], which the next call overwrites.
    //
    // frame_guidance: the guidance scale of each frame.
    // carried: what earlier rows made of the same frames; gets what this one makes.
    Array run(const Array &sample, const Row &row, const float *frame_guidance, Carried &carried);

private:
    // One run of a graph: what it is fed, and the model output that it returns.
    struct Run {
        NamedArrays feeds;
        Array output;
    };
    struct Denoiser {
        const ComponentRecord *record = nullptr;
        std::vector<Run> passes;   // one after the other; without guidance the prompt's alone
        std::optional<Run> batch;  // of both
    };

    Denoiser make_denoiser(const std::string &name, const std::vector<Values> &passes,
                           const Shape &latents_shape) const;
    // Run the graph of a row for some passes, whose carried outputs begin at `carried`.
    Array run_graph(const Row &row, Run &run, const Array &sample, Carried::iterator carried,
                    size_t num_passes);
    void feed(const Row &row, Run &run, const Array &sample, Carried::iterator carried,
              size_t num_passes) const;
    void combine(const float *conditional, const float *unconditional,
                 const float *frame_guidance) const;

    const Bundle &bundle_;
    Components &components_;
    const RowPlan &plan_;
    RunContext context_;
    size_t num_passes_;
    bool is_batched_;
    std::map<std::string, Denoiser> denoisers_;
    Array model_output_;
};

// Whether both passes run at once; raises ParameterError unless it is "separate" or "batched", and
// the denoiser can.
bool read_guidance_passes(const ComponentRecord &record, const std::string &guidance_passes);

}  // namespace mutoscope

#endif
