// The settings of one generation: what the caller asked for, checked, else the bundle's.
#ifndef MUTOSCOPE_SETTINGS_H
#define MUTOSCOPE_SETTINGS_H

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "array.h"
#include "bundle.h"
#include "context_windows.h"
#include "row_plan.h"

namespace mutoscope {

// What the caller asked for; what is absent is taken from the bundle.
struct Wishes {
    std::optional<int64_t> num_frames, height, width, num_inference_steps;
    std::optional<int64_t> context_length, context_stride;
    std::optional<double> guidance_scale, min_guidance_scale, frame_rate;
    std::optional<std::string> scheduler;
    std::vector<std::pair<std::string, double>> conditions;
    std::optional<Shape> latents_shape;  // of start latents, which set the size
};

// Everything besides the prompt and the seed that a generation depends on.
struct Settings {
    int num_frames = 0;
    int height = 0;
    int width = 0;
    int num_inference_steps = 0;
    double guidance_scale = 1;
    std::optional<double> min_guidance_scale;
    double frame_rate = 0;
    std::string scheduler;  // its name in the manifest
    ScheduleTable table;
    RowPlan plan;
    ContextWindows windows;
    std::vector<std::pair<std::string, double>> conditions;
    Shape latents_shape;  // [1, C, F, h, w]

    // What the denoiser sees at once, [1, C, F, h, w].
    Shape denoised_shape() const;
    // [F, H, W, 3] of the video.
    Shape frames_shape() const { return {num_frames, height, width, 3}; }
    // The guidance scale of each frame of the latents.
    std::vector<float> frame_guidance() const;
    // Whether any step needs a second pass of the denoiser.
    bool uses_guidance() const;
};

// Where the manifest has a condition; raises ParameterError, which names those there are.
size_t find_condition(const Manifest &manifest, const std::string &name);

// Why guidance cannot work with the table of settings, and the way out; nothing if it can. May read
// tables of other schedulers, and raise what is wrong with them.
std::optional<std::string> find_guidance_refusal(const Bundle &bundle, const Settings &settings);

// ParameterError: a value is not allowed; the message names one that is.
// BundleError, ScheduleError: the schedule table is damaged, or not for this bundle.
Settings make_settings(const Bundle &bundle, const Wishes &wishes);

}  // namespace mutoscope

#endif
