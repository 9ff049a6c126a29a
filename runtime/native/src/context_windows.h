// Clips longer than the denoiser takes: overlapping context windows over time.
//
// In each row the denoiser sees one window of frames after the other, and the model output of a
// frame is the weighted mean of what the windows say that have it. runtime/windows.py is the same.
//
// Source: Qiu et al., FreeNoise (arXiv:2310.15169).
#ifndef MUTOSCOPE_CONTEXT_WINDOWS_H
#define MUTOSCOPE_CONTEXT_WINDOWS_H

#include <cstdint>
#include <optional>
#include <vector>

#include "array.h"
#include "manifest.h"
#include "noise.h"

namespace mutoscope {

// In frames of latents; a length of 0: the denoiser sees the clip whole.
struct ContextWindows {
    int length = 0;
    int stride = 0;  // from the start of a window to that of the next

    // The first frame of each window of a clip, in the order in which they run. The last window
    // ends with the clip, so it may start earlier than the stride says. None with a length of 0.
    std::vector<int> list_starts(int64_t num_frames) const;
    // How many those are; 1 where the denoiser sees the clip whole.
    int64_t count(int64_t num_frames) const;
};

// How many frames of latents decode to so many frames.
int64_t count_latent_frames(const LatentsRecord &record, int64_t num_frames);

// Whether clips may be longer than the limits say, in windows.
bool can_have_windows(const Manifest &manifest);

// The windows of a clip: some if the caller asks for them, or if it is longer than the bundle
// allows at once. Raises ParameterError; then num_frames is one that the bundle allows.
ContextWindows choose_windows(const Manifest &manifest, int64_t num_frames,
                              std::optional<int64_t> context_length,
                              std::optional<int64_t> context_stride);

// Let the frames behind the first window have the noise of earlier ones, in place: each stride of
// frames that of the one a window before it, in an order of its own.
//
// noise: start noise of the clip, float32 [1, C, F, h, w].
void shuffle_start_noise(const Array &noise, const ContextWindows &windows,
                         NoiseGenerator &generator);

}  // namespace mutoscope

#endif
