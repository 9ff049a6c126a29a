#include "windowed_denoiser.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace mutoscope {
namespace {

Shape replace_frames(Shape shape, size_t num_frames) {
    shape[2] = static_cast<int64_t>(num_frames);
    return shape;
}

size_t count_plane(const Shape &shape) { return static_cast<size_t>(shape[3] * shape[4]); }

}  // namespace

WindowedDenoiser::WindowedDenoiser(GuidedDenoiser &denoiser, const ContextWindows &windows,
                                   const Shape &latents_shape, std::vector<float> frame_guidance)
    : denoiser_(denoiser),
      starts_(windows.list_starts(latents_shape[2])),
      frame_guidance_(std::move(frame_guidance)),
      carried_(std::max<size_t>(starts_.size(), 1)) {
    if (starts_.empty()) return;
    for (int i = 0; i < windows.length; ++i) {
        weights_.push_back(static_cast<float>(std::min(i + 1, windows.length - i)));
    }
    sums_.resize(frame_guidance_.size());
    for (const int start : starts_) {
        for (int i = 0; i < windows.length; ++i) sums_[start + i] += weights_[i];
    }
    part_ = Array::make(DType::float32, replace_frames(latents_shape, weights_.size()));
    sum_ = Array::make(DType::float32, latents_shape);
}

Array WindowedDenoiser::operator()(const Array &sample, const Row &row) {
    if (starts_.empty()) {
        return denoiser_.run(sample, row, frame_guidance_.data(), carried_.front());
    }
    std::fill_n(sum_.as<float>(), sum_.size(), 0.0F);
    const size_t plane = count_plane(sample.shape());
    const size_t part_size = weights_.size() * plane, clip_size = sums_.size() * plane;
    for (size_t window = 0; window < starts_.size(); ++window) {
        const int start = starts_[window];
        for (int64_t channel = 0; channel < sample.shape()[1]; ++channel) {
            std::memcpy(part_.as<float>() + channel * part_size,
                        sample.as<float>() + channel * clip_size + start * plane,
                        part_size * sizeof(float));
        }
        add(denoiser_.run(part_, row, frame_guidance_.data() + start, carried_[window]), start);
    }
    divide();
    return sum_;
}

// Add the model output of a window, weighted, to the sum.
void WindowedDenoiser::add(const Array &model_output, int start) const {
    const size_t plane = count_plane(sum_.shape()), num_frames = sums_.size();
    const float *values = model_output.as<float>();
    for (int64_t channel = 0; channel < sum_.shape()[1]; ++channel) {
        for (size_t frame = 0; frame < weights_.size(); ++frame, values += plane) {
            float *sum = sum_.as<float>() + (channel * num_frames + start + frame) * plane;
            for (size_t i = 0; i < plane; ++i) sum[i] += values[i] * weights_[frame];
        }
    }
}

void WindowedDenoiser::divide() const {
    const size_t plane = count_plane(sum_.shape());
    float *values = sum_.as<float>();
    for (size_t frame = 0; frame < sum_.size() / plane; ++frame, values += plane) {
        const float weight = sums_[frame % sums_.size()];
        for (size_t i = 0; i < plane; ++i) values[i] /= weight;
    }
}

}  // namespace mutoscope
