// A small decoder, whole and cut for tiles: stages of plain loops, with what tiles have to care
// for: neighbours, edges, group norms, and values of several sizes.
#ifndef MUTOSCOPE_TESTS_SMALL_DECODER_H
#define MUTOSCOPE_TESTS_SMALL_DECODER_H

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "tiled_decoding.h"

namespace mutoscope {

constexpr int64_t kChannels = 4;
constexpr double kEpsilon = 1e-6;

inline Array make_array(int64_t channels, int64_t height, int64_t width) {
    return Array::make_zeros(DType::float32, {1, channels, height, width});
}

inline Array make_latents(int64_t height, int64_t width) {
    const Array latents = Array::make(DType::float32, {1, kChannels, 1, height, width});
    std::mt19937 random(static_cast<unsigned>(height * 100 + width));
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < latents.size(); ++i) latents.as<float>()[i] = normal(random);
    return latents;
}

// A plane of rows and columns, repeated `scale` times along both.
inline Array repeat(const Array &value, int64_t scale) {
    const int64_t height = value.shape()[2] * scale, width = value.shape()[3] * scale;
    const Array result = make_array(value.shape()[1], height, width);
    for (int64_t i = 0; i < static_cast<int64_t>(result.size()); ++i) {
        const int64_t x = i % width, y = i / width % height, channel = i / width / height;
        result.as<float>()[i] =
            value.as<float>()[(channel * value.shape()[2] + y / scale) * value.shape()[3] +
                              x / scale];
    }
    return result;
}

// A sum of each pixel with those above and below and of the next channel; zeros beyond the edges.
inline Array convolve(const Array &value) {
    const int64_t channels = value.shape()[1], height = value.shape()[2], width = value.shape()[3];
    const Array result = make_array(channels, height, width);
    const auto get = [&](int64_t channel, int64_t y, int64_t x) {
        if (y < 0 || y >= height) return 0.0F;
        return value.as<float>()[(channel % channels * height + y) * width + x];
    };
    for (int64_t i = 0; i < static_cast<int64_t>(result.size()); ++i) {
        const int64_t x = i % width, y = i / width % height, channel = i / width / height;
        result.as<float>()[i] = 0.5F * get(channel, y, x) + 0.3F * get(channel, y - 1, x) -
                                0.4F * get(channel + 1, y + 1, x) + 0.2F;
    }
    return result;
}

inline Array normalize(const Array &value, const NamedArrays &statistics) {
    const Array mean = *find(statistics, "mean"), scale = *find(statistics, "reciprocal_std");
    const Array result = make_array(value.shape()[1], value.shape()[2], value.shape()[3]);
    const size_t group_size = value.size() / mean.size();
    for (size_t i = 0; i < value.size(); ++i) {
        const size_t group = i / group_size;
        const float x = (value.as<float>()[i] - mean.as<float>()[group]) * scale.as<float>()[group];
        result.as<float>()[i] = x / (1.0F + std::exp(-x));
    }
    return result;
}

inline Array add(const Array &a, const Array &b) {
    const Array result = make_array(a.shape()[1], a.shape()[2], a.shape()[3]);
    std::transform(a.as<float>(), a.as<float>() + a.size(), b.as<float>(), result.as<float>(),
                   [](float x, float y) { return x + y; });
    return result;
}

// The graphs, by path. What they take is named as in the record below.
inline NamedArrays run_head(const NamedArrays &feeds) {
    const Array &latents = *find(feeds, "latents");
    const Shape &shape = latents.shape();
    const Array flat = latents.reshape({1, shape[1], shape[3], shape[4]});
    // Each pixel sees the whole frame, as in attention.
    const Array result = make_array(shape[1], shape[3], shape[4]);
    float sum = 0;
    for (size_t i = 0; i < flat.size(); ++i) sum += flat.as<float>()[i];
    for (size_t i = 0; i < flat.size(); ++i) {
        result.as<float>()[i] = 3.0F * flat.as<float>()[i] + sum / 100.0F + 5.0F;
    }
    return {{"a", result}};
}

inline NamedArrays run_first(const NamedArrays &feeds) {
    return {{"b", convolve(repeat(*find(feeds, "a"), 2))}};
}

inline NamedArrays run_second(const NamedArrays &feeds) {
    return {{"c", convolve(normalize(*find(feeds, "b"), feeds))}};
}

inline NamedArrays run_last(const NamedArrays &feeds) {
    const Array &latents = *find(feeds, "latents");
    const Shape &shape = latents.shape();
    const Array flat = latents.reshape({1, shape[1], shape[3], shape[4]});
    const Array sum = add(normalize(*find(feeds, "c"), feeds), *find(feeds, "b"));
    const Array pixels = repeat(convolve(add(sum, repeat(flat, 2))), 2);
    const int64_t height = pixels.shape()[2], width = pixels.shape()[3];
    const Array frames = Array::make(DType::uint8, {1, 1, height, width, 3});
    for (int64_t i = 0; i < static_cast<int64_t>(frames.size()); ++i) {
        const float value = pixels.as<float>()[i % 3 * height * width + i / 3];
        frames.as<uint8_t>()[i] =
            static_cast<uint8_t>(std::clamp(std::round(128.0F + 20.0F * value), 0.0F, 255.0F));
    }
    return {{"frames", frames}};
}

using Graphs = std::map<std::string, RunGraph>;

inline Graphs make_graphs() {
    return {{"head", run_head}, {"first", run_first}, {"second", run_second}, {"last", run_last}};
}

inline TilesRecord make_tiles() {
    TilesRecord tiles;
    tiles.head = "head";
    tiles.stages = {
        {"first", {{"a", 1}}, {{"b", 2}}, 1, 1, {}},
        {"second", {{"b", 2}}, {{"c", 2}}, 2, 1, NormRecord{"b", 2, kEpsilon}},
        {"last",
         {{"latents", 1}, {"c", 2}, {"b", 2}},
         {{"frames", 4}},
         1,
         1,
         NormRecord{"c", 4, kEpsilon}},
    };
    return tiles;
}

// What a norm takes, of the whole value at once.
inline NamedArrays find_statistics(const Array &value, int groups) {
    const Array mean = Array::make(DType::float32, {1, groups, 1});
    const Array scale = Array::make(DType::float32, {1, groups, 1});
    const size_t count = value.size() / static_cast<size_t>(groups);
    for (size_t group = 0; group < mean.size(); ++group) {
        const float *values = value.as<float>() + group * count;
        double sum = 0, squares = 0;
        for (size_t i = 0; i < count; ++i) sum += values[i];
        const double average = sum / static_cast<double>(count);
        for (size_t i = 0; i < count; ++i) squares += std::pow(values[i] - average, 2.0);
        mean.as<float>()[group] = static_cast<float>(average);
        scale.as<float>()[group] =
            static_cast<float>(1 / std::sqrt(squares / static_cast<double>(count) + kEpsilon));
    }
    return {{"mean", mean}, {"reciprocal_std", scale}};
}

inline std::vector<uint8_t> decode_whole(const Array &latents) {
    NamedArrays values = {{"latents", latents}};
    const auto run = [&](const RunGraph &graph, const NamedArrays &statistics) {
        NamedArrays feeds = values;
        feeds.insert(feeds.end(), statistics.begin(), statistics.end());
        for (const auto &output : graph(feeds)) values.push_back(output);
    };
    run(run_head, {});
    run(run_first, {});
    run(run_second, find_statistics(*find(values, "b"), 2));
    run(run_last, find_statistics(*find(values, "c"), 4));
    const Array frames = *find(values, "frames");
    return {frames.as<uint8_t>(), frames.as<uint8_t>() + frames.size()};
}

}  // namespace mutoscope

#endif
