#include "resampling.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace mutoscope {

namespace {

constexpr double kPi = 3.14159265358979323846;
constexpr size_t kChannels = 3;
// Weights are whole numbers of 1 / 2^22, as Pillow has them.
constexpr int kPrecisionBits = 22;
constexpr int64_t kOne = int64_t{1} << kPrecisionBits;
// Columns that are made at once: few enough that what lies between the two passes fits in a cache.
constexpr size_t kBlock = 128;

// What one new pixel of a line takes: `count` old pixels from `first` on.
struct Taps {
    int64_t first;
    size_t count;
    size_t weights_begin;
};

// Some neighbouring new pixels of a line.
struct Line {
    std::vector<Taps> taps;
    std::vector<int32_t> weights;
};

double get_support(Filter filter) {
    switch (filter) {
        case Filter::box:
            return 0.5;
        case Filter::bilinear:
            return 1.0;
        case Filter::bicubic:
            return 2.0;
        case Filter::lanczos:
            return 3.0;
    }
    return 0.0;
}

double compute_sinc(double x) { return x == 0.0 ? 1.0 : std::sin(x * kPi) / (x * kPi); }

// The order of the operations is Pillow's, for the last bit of the result depends on it.
double compute_weight(Filter filter, double x) {
    const double distance = std::abs(x);
    switch (filter) {
        case Filter::box:
            return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
        case Filter::bilinear:
            return distance < 1.0 ? 1.0 - distance : 0.0;
        case Filter::bicubic:
            if (distance < 1.0) return (1.5 * distance - 2.5) * distance * distance + 1.0;
            if (distance < 2.0)
                return (((distance - 5.0) * distance + 8.0) * distance - 4.0) * -0.5;
            return 0.0;
        case Filter::lanczos:
            return x >= -3.0 && x < 3.0 ? compute_sinc(x) * compute_sinc(x / 3.0) : 0.0;
    }
    return 0.0;
}

int32_t round_weight(double weight) {
    return static_cast<int32_t>(weight * static_cast<double>(kOne) + (weight < 0.0 ? -0.5 : 0.5));
}

// The new pixels from `begin` to `end` of a line of old_size that becomes one of new_size.
Line make_line(int64_t old_size, int64_t new_size, Filter filter, int64_t begin, int64_t end) {
    Line line;
    const double scale = static_cast<double>(old_size) / static_cast<double>(new_size);
    const double stretch = std::max(scale, 1.0);
    const double support = get_support(filter) * stretch;
    std::vector<double> weights;
    for (int64_t position = begin; position < end; ++position) {
        if (old_size == new_size) {  // Pillow leaves out a pass that changes nothing.
            line.taps.push_back({position, 1, line.weights.size()});
            line.weights.push_back(static_cast<int32_t>(kOne));
            continue;
        }
        const double center = (static_cast<double>(position) + 0.5) * scale;
        const auto first = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
        const auto last = std::min(static_cast<int64_t>(center + support + 0.5), old_size);
        weights.clear();
        double sum = 0.0;
        for (int64_t old = first; old < last; ++old) {
            const double distance = static_cast<double>(old) - center + 0.5;
            weights.push_back(compute_weight(filter, distance * (1.0 / stretch)));
            sum += weights.back();
        }
        line.taps.push_back({first, weights.size(), line.weights.size()});
        for (const double weight : weights) {
            line.weights.push_back(round_weight(sum == 0.0 ? weight : weight / sum));
        }
    }
    return line;
}

uint8_t clip(int64_t sum) {
    return static_cast<uint8_t>(std::clamp<int64_t>(sum >> kPrecisionBits, 0, 255));
}

// Some columns of one row: uint8 [end - begin, 3].
void squeeze_row(uint8_t *result, const uint8_t *old, const Line &columns, size_t begin,
                 size_t end) {
    for (size_t column = begin; column < end; ++column) {
        const Taps &taps = columns.taps[column];
        const int32_t *weights = columns.weights.data() + taps.weights_begin;
        const uint8_t *pixel = old + static_cast<size_t>(taps.first) * kChannels;
        int64_t red = kOne / 2, green = kOne / 2, blue = kOne / 2;
        for (size_t tap = 0; tap < taps.count; ++tap, pixel += kChannels) {
            red += int64_t{pixel[0]} * weights[tap];
            green += int64_t{pixel[1]} * weights[tap];
            blue += int64_t{pixel[2]} * weights[tap];
        }
        *result++ = clip(red);
        *result++ = clip(green);
        *result++ = clip(blue);
    }
}

// One row out of those of `old`, which begins with the first that its taps name.
void blend_rows(uint8_t *result, const uint8_t *old, size_t row_bytes, const Line &rows,
                const Taps &taps, std::vector<int64_t> &sums) {
    sums.assign(row_bytes, kOne / 2);
    for (size_t tap = 0; tap < taps.count; ++tap, old += row_bytes) {
        const int64_t weight = rows.weights[taps.weights_begin + tap];
        for (size_t i = 0; i < row_bytes; ++i) sums[i] += weight * old[i];
    }
    std::transform(sums.begin(), sums.end(), result, clip);
}

// Where the result of a resize goes.
struct Target {
    uint8_t *corner;
    size_t row_bytes;
};

void resize_columns_first(const Target &target, const ImageView &image, const Line &rows,
                          const Line &columns) {
    const auto first = static_cast<size_t>(rows.taps.front().first);
    const size_t end_row = static_cast<size_t>(rows.taps.back().first) + rows.taps.back().count;
    const size_t old_row_bytes = static_cast<size_t>(image.width) * kChannels;
    std::vector<uint8_t> strip;
    std::vector<int64_t> sums;
    for (size_t begin = 0; begin < columns.taps.size(); begin += kBlock) {
        const size_t end = std::min(begin + kBlock, columns.taps.size());
        const size_t strip_row_bytes = (end - begin) * kChannels;
        strip.resize((end_row - first) * strip_row_bytes);
        for (size_t row = first; row < end_row; ++row) {
            squeeze_row(strip.data() + (row - first) * strip_row_bytes,
                        image.pixels + row * old_row_bytes, columns, begin, end);
        }
        uint8_t *result = target.corner + begin * kChannels;
        for (const Taps &taps : rows.taps) {
            const size_t skipped = static_cast<size_t>(taps.first) - first;
            blend_rows(result, strip.data() + skipped * strip_row_bytes, strip_row_bytes, rows,
                       taps, sums);
            result += target.row_bytes;
        }
    }
}

void resize_rows_first(const Target &target, const ImageView &image, const Line &rows,
                       const Line &columns) {
    std::vector<uint8_t> line(static_cast<size_t>(image.width) * kChannels);
    std::vector<int64_t> sums;
    uint8_t *result = target.corner;
    for (const Taps &taps : rows.taps) {
        const uint8_t *old = image.pixels + static_cast<size_t>(taps.first) * line.size();
        blend_rows(line.data(), old, line.size(), rows, taps, sums);
        squeeze_row(result, line.data(), columns, 0, columns.taps.size());
        result += target.row_bytes;
    }
}

}  // namespace

std::vector<uint8_t> resize(const ImageView &image, int64_t height, int64_t width, Filter filter,
                            const Window &window) {
    const size_t row_bytes = static_cast<size_t>(window.width) * kChannels;
    std::vector<uint8_t> result(static_cast<size_t>(window.height) * row_bytes);
    const int64_t top = std::max<int64_t>(window.top, 0);
    const int64_t left = std::max<int64_t>(window.left, 0);
    const Line rows =
        make_line(image.height, height, filter, top, std::min(height, window.top + window.height));
    const Line columns =
        make_line(image.width, width, filter, left, std::min(width, window.left + window.width));
    if (rows.taps.empty() || columns.taps.empty()) return result;
    const Target target = {result.data() + static_cast<size_t>(top - window.top) * row_bytes +
                               static_cast<size_t>(left - window.left) * kChannels,
                           row_bytes};
    // What is between the passes is rounded to 8 bits, so their order shows. It is that of Pillow
    // 13; earlier versions always took the columns first.
    const int64_t rows_less = image.height - height;
    if (rows_less > 0 && rows_less > 2 * (image.width - width)) {
        resize_rows_first(target, image, rows, columns);
    } else {
        resize_columns_first(target, image, rows, columns);
    }
    return result;
}

}  // namespace mutoscope
