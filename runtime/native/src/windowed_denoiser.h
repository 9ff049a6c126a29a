// The denoisers of a schedule table on a whole clip, in context windows where it has some.
#ifndef MUTOSCOPE_WINDOWED_DENOISER_H
#define MUTOSCOPE_WINDOWED_DENOISER_H

#include <vector>

#include "context_windows.h"
#include "guidance.h"

namespace mutoscope {

// They as the sampler calls them. All arrays are made once, at the start.
class WindowedDenoiser {
public:
    // denoiser: for latents of the shape of one window, or of the clip where there are none.
    // frame_guidance: the guidance scale of each frame of the clip.
    WindowedDenoiser(GuidedDenoiser &denoiser, const ContextWindows &windows,
                     const Shape &latents_shape, std::vector<float> frame_guidance);

    // The model output of a row, float32 [1, C, F, h, w], which the next call overwrites.
    Array operator()(const Array &sample, const Row &row);

private:
    void add(const Array &model_output, int start) const;
    void divide() const;

    GuidedDenoiser &denoiser_;
    std::vector<int> starts_;
    std::vector<float> frame_guidance_;
    std::vector<Carried> carried_;  // of each window
    std::vector<float> weights_;    // of each frame of a window
    std::vector<float> sums_;       // of the weights of each frame of the clip
    Array part_, sum_;
};

}  // namespace mutoscope

#endif
