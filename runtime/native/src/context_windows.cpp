#include "context_windows.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string>

#include "error.h"
#include "row_plan.h"

namespace mutoscope {
namespace {

// An input of a denoiser that cannot be cut into windows; "" if there is none.
std::string find_input_of_all_frames(const Manifest &manifest) {
    std::set<std::string> cut = find_carried(manifest);
    cut.insert(kLatents);
    for (const auto &[name, component] : manifest.components) {
        if (!is_denoiser(name)) continue;
        for (const auto &[input, tensor] : component.inputs) {
            if (cut.count(tensor.source) > 0) continue;
            const bool has_axis = std::any_of(
                tensor.shape.begin(), tensor.shape.end(),
                [](const Axis &axis) { return axis.length < 0 && axis.name == kNumFrames; });
            if (tensor.source == kNumFrames || has_axis) return input;
        }
    }
    return "";
}

// Raises ParameterError if the denoiser must see the clip whole.
void check_can_cut(const Manifest &manifest, int64_t num_frames,
                   std::optional<int64_t> context_length, std::optional<int64_t> context_stride) {
    const std::string fixed = find_input_of_all_frames(manifest);
    if (fixed.empty()) return;
    const auto fail = [&](const std::string &name, int64_t value, const std::string &way_out) {
        throw ParameterError(name + " is " + std::to_string(value) +
                             "; there can be no windows, since this bundle's denoiser takes " +
                             fixed + " of all frames: " + way_out);
    };
    if (context_length) fail("context_length", *context_length, "leave context_length out");
    if (context_stride) fail("context_stride", *context_stride, "leave context_stride out");
    fail("num_frames", num_frames, "use " + std::to_string(*manifest.limits.num_frames.maximum));
}

}  // namespace

bool can_have_windows(const Manifest &manifest) {
    return find_input_of_all_frames(manifest).empty();
}

int64_t count_latent_frames(const LatentsRecord &record, int64_t num_frames) {
    return (num_frames - 1) / record.vae_scale_factor_temporal + 1;
}

ContextWindows choose_windows(const Manifest &manifest, int64_t num_frames,
                              std::optional<int64_t> context_length,
                              std::optional<int64_t> context_stride) {
    LimitRecord limit = manifest.limits.num_frames;
    const bool is_long = limit.maximum && num_frames > *limit.maximum;
    if (!is_long && !context_length && !context_stride) {
        limit.check("num_frames", num_frames);
        return {};
    }
    check_can_cut(manifest, num_frames, context_length, context_stride);
    const int64_t maximum = limit.maximum.value_or(0);
    limit.maximum.reset();
    limit.check("num_frames", num_frames);
    const int64_t whole = count_latent_frames(manifest.latents, num_frames);
    const int64_t longest = maximum != 0 ? count_latent_frames(manifest.latents, maximum) : whole;
    const int64_t most = std::min(longest, whole);
    const int64_t length = context_length.value_or(most);
    if (length < 1 || length > most) {
        throw ParameterError("context_length is " + std::to_string(length) +
                             "; it must lie within 1 and " + std::to_string(most) +
                             ", the frames of latents " +
                             (whole < longest ? "of the clip" : "that this bundle allows") +
                             ": use " + std::to_string(most));
    }
    const int64_t half = std::max<int64_t>(1, length / 2);
    const int64_t stride = context_stride.value_or(half);
    if (stride < 1 || stride > length) {
        throw ParameterError("context_stride is " + std::to_string(stride) +
                             "; it must lie within 1 and the context_length, " +
                             std::to_string(length) + ": use " + std::to_string(half));
    }
    return {static_cast<int>(length), static_cast<int>(stride)};
}

std::vector<int> ContextWindows::list_starts(int64_t num_frames) const {
    std::vector<int> starts;
    if (length == 0) return starts;
    for (int64_t window = 0; window < count(num_frames); ++window) {
        starts.push_back(static_cast<int>(std::min(window * stride, num_frames - length)));
    }
    return starts;
}

int64_t ContextWindows::count(int64_t num_frames) const {
    return length == 0 ? 1 : (num_frames - length + stride - 1) / stride + 1;
}

void shuffle_start_noise(const Array &noise, const ContextWindows &windows,
                         NoiseGenerator &generator) {
    if (windows.length == 0) return;
    const int64_t num_frames = noise.shape()[2];
    const auto plane = static_cast<size_t>(noise.shape()[3] * noise.shape()[4]);
    const auto find_frame = [&](int64_t channel, int64_t frame) {
        return noise.as<float>() + static_cast<size_t>(channel * num_frames + frame) * plane;
    };
    for (int64_t first = windows.length; first < num_frames; first += windows.stride) {
        const std::vector<int> order = generator.draw_permutation(windows.stride);
        const int64_t count = std::min<int64_t>(windows.stride, num_frames - first);
        for (int64_t channel = 0; channel < noise.shape()[1]; ++channel) {
            for (int64_t i = 0; i < count; ++i) {
                std::memcpy(find_frame(channel, first + i),
                            find_frame(channel, first - windows.length + order[i]),
                            plane * sizeof(float));
            }
        }
    }
}

}  // namespace mutoscope
