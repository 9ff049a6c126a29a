#include "noise.h"

#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

namespace mutoscope {
namespace {

constexpr size_t kBlock = 16;
constexpr size_t kHalfBlock = kBlock / 2;
constexpr double kPi = 3.14159265358979323846;

}  // namespace

void NoiseGenerator::fill(float *values, size_t count) {
    if (count < kBlock) {
        for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(draw_normal());
        return;
    }
    const size_t rest = count % kBlock;
    for (size_t i = 0; i + kBlock <= count; i += kBlock) fill_block(values + i);
    if (rest > 0) {
        // torch draws uniforms for these too before it draws the last block again.
        words_.discard(rest);
        fill_block(values + count - kBlock);
    }
}

Array NoiseGenerator::draw(Shape shape) {
    Array noise = Array::make(DType::float32, std::move(shape));
    fill(noise.as<float>(), noise.size());
    return noise;
}

void NoiseGenerator::fill_latents(const Array &latents, bool frames_first) {
    if (!frames_first) {
        fill(latents.as<float>(), latents.size());
        return;
    }
    const size_t channels = latents.shape()[1], frames = latents.shape()[2];
    const size_t plane = latents.shape()[3] * latents.shape()[4];
    const Array drawn = draw(latents.shape());
    for (size_t frame = 0; frame < frames; ++frame) {
        for (size_t channel = 0; channel < channels; ++channel) {
            std::memcpy(latents.as<float>() + (channel * frames + frame) * plane,
                        drawn.as<float>() + (frame * channels + channel) * plane,
                        plane * sizeof(float));
        }
    }
}

std::vector<int> NoiseGenerator::draw_permutation(int count) {
    std::vector<int> numbers(count);
    std::iota(numbers.begin(), numbers.end(), 0);
    for (int i = 0; i < count - 1; ++i) {
        const auto offset = static_cast<int>(words_() % static_cast<uint32_t>(count - i));
        std::swap(numbers[i], numbers[i + offset]);
    }
    return numbers;
}

// Box-Muller on uniforms with 24 random bits: eight radii, then eight angles. What is rounded from
// float64 has the same bits as in Python, on every machine.
void NoiseGenerator::fill_block(float *block) {
    for (size_t i = 0; i < kBlock; ++i) {
        block[i] = static_cast<float>(words_() & 0xFFFFFF) * 0x1p-24F;
    }
    const auto round = [](double value) { return static_cast<float>(value); };
    for (size_t i = 0; i < kHalfBlock; ++i) {
        const double rest = 1.0F - block[i];
        const double angle = static_cast<float>(2.0 * kPi) * block[i + kHalfBlock];
        const float radius = std::sqrt(-2.0F * round(std::log(rest)));
        block[i] = radius * round(std::cos(angle));
        block[i + kHalfBlock] = radius * round(std::sin(angle));
    }
}

double NoiseGenerator::draw_normal() {
    if (waiting_normal_) {
        const double normal = *waiting_normal_;
        waiting_normal_.reset();
        return normal;
    }
    const double angle = 2.0 * kPi * draw_uniform();
    const double radius = std::sqrt(-2.0 * std::log1p(-draw_uniform()));
    waiting_normal_ = radius * std::sin(angle);
    return radius * std::cos(angle);
}

// From [0, 1), with 53 random bits.
double NoiseGenerator::draw_uniform() {
    const uint64_t high = words_();
    const uint64_t low = words_();
    return static_cast<double>(((high << 32) | low) & ((uint64_t{1} << 53) - 1)) * 0x1p-53;
}

}  // namespace mutoscope
