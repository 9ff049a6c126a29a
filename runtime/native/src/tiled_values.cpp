#include "tiled_values.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <system_error>
#include <utility>

#include "error.h"
#include "text.h"

namespace mutoscope {

namespace {

std::string describe_errno() { return std::generic_category().message(errno); }

[[noreturn]] void fail(const std::string &name, const std::string &problem) {
    throw EngineError("vae_decoder: the tile graphs disagree about " + quote(name) + ": " +
                      problem + ": export again");
}

// The sum of a term of each value. In lanes, which the processor adds at once.
template <typename Term>
double add_up(const float *values, size_t count, Term term) {
    std::array<double, 8> lanes{};
    size_t i = 0;
    for (; i + lanes.size() <= count; i += lanes.size()) {
        for (size_t lane = 0; lane < lanes.size(); ++lane) {
            lanes[lane] += term(static_cast<double>(values[i + lane]));
        }
    }
    for (; i < count; ++i) lanes[0] += term(static_cast<double>(values[i]));
    return std::accumulate(lanes.begin(), lanes.end(), 0.0);
}

}  // namespace

// Source: Chan, Golub, LeVeque: Updating Formulae and a Pairwise Algorithm for Computing Sample
// Variances, 1979, formula 2.1.
void Moments::add(const Array &part, const RowRange &rows) {
    const int64_t channels = part.shape()[1] / groups_;
    const int64_t height = part.shape()[2], width = part.shape()[3];
    const auto row_values = static_cast<size_t>(rows.size() * width);
    const double count = static_cast<double>(channels) * static_cast<double>(row_values);
    const double total = count_ + count;
    means_.resize(static_cast<size_t>(groups_));
    deviations_.resize(static_cast<size_t>(groups_));
    for (int64_t group = 0; group < groups_; ++group) {
        const auto add_group = [&](auto &&term) {
            double sum = 0.0;
            for (int64_t channel = group * channels; channel < (group + 1) * channels; ++channel) {
                sum += add_up(part.as<float>() + (channel * height + rows.begin) * width,
                              row_values, term);
            }
            return sum;
        };
        const double mean = add_group([](double value) { return value; }) / count;
        const double deviation =
            add_group([mean](double value) { return (value - mean) * (value - mean); });
        const auto index = static_cast<size_t>(group);
        const double difference = mean - means_[index];
        means_[index] += difference * count / total;
        deviations_[index] += deviation + difference * difference * count_ * count / total;
    }
    count_ = total;
}

NamedArrays Moments::find_statistics(double epsilon) const {
    const Array means = Array::make(DType::float32, {1, groups_, 1});
    const Array reciprocals = Array::make(DType::float32, {1, groups_, 1});
    for (size_t group = 0; group < means.size(); ++group) {
        means.as<float>()[group] = static_cast<float>(means_[group]);
        reciprocals.as<float>()[group] =
            static_cast<float>(1.0 / std::sqrt(deviations_[group] / count_ + epsilon));
    }
    return {{"mean", means}, {"reciprocal_std", reciprocals}};
}

TemporaryFile::TemporaryFile() {
    const char *folder = std::getenv("TMPDIR");
    folder_ = folder != nullptr && *folder != '\0' ? folder : "/tmp";
    std::string path = folder_ + "/mutoscope-XXXXXX";
    descriptor_ = mkostemp(path.data(), O_CLOEXEC);
    if (descriptor_ >= 0 && unlink(path.c_str()) == 0) return;
    const std::string reason = describe_errno();
    if (descriptor_ >= 0) close(descriptor_);
    throw EngineError("decoding in tiles needs a folder for temporary files (" + reason +
                      "): set TMPDIR to one that can be written to, or raise the memory limit");
}

TemporaryFile::~TemporaryFile() { close(descriptor_); }

void TemporaryFile::write(const std::byte *data, size_t bytes, uint64_t offset) {
    while (bytes > 0) {
        const ssize_t count = pwrite(descriptor_, data, bytes, static_cast<off_t>(offset));
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) {
            const std::string reason = count < 0 ? describe_errno() : "it takes no more bytes";
            throw EngineError("a temporary file in " + folder_ + " cannot be written: " + reason +
                              ": set TMPDIR to a folder on a disk with more room, or raise the "
                              "memory limit");
        }
        data += count;
        bytes -= static_cast<size_t>(count);
        offset += static_cast<uint64_t>(count);
    }
}

void TemporaryFile::read(std::byte *data, size_t bytes, uint64_t offset) {
    while (bytes > 0) {
        const ssize_t count = pread(descriptor_, data, bytes, static_cast<off_t>(offset));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) {
            const std::string reason = describe_errno();
            throw EngineError("a temporary file in " + folder_ + " cannot be read: " + reason +
                              ": decode again");
        }
        if (count == 0) {
            throw EngineError("a temporary file ended " + std::to_string(bytes) +
                              " bytes early: decode again");
        }
        data += count;
        bytes -= static_cast<size_t>(count);
        offset += static_cast<uint64_t>(count);
    }
}

void TiledValues::keep_moments(const std::string &name, int groups) {
    moments_.insert_or_assign(name, Moments(groups));
}

NamedArrays TiledValues::find_statistics(const std::string &name, double epsilon) const {
    if (!has(name)) fail(name, "a stage normalises it, and none before it makes it");
    return moments_.at(name).find_statistics(epsilon);
}

void TiledValues::write(const std::string &name, int64_t top, const Array &part,
                        const RowRange &rows, int64_t height) {
    const Shape &shape = part.shape();
    if (shape.size() != 4 || shape[0] != 1 || part.size() == 0 || rows.begin < 0 ||
        rows.size() < 1 || rows.end > shape[2] || top < 0 || top + rows.size() > height) {
        fail(name, "it is " + std::string(get_dtype_name(part.dtype())) + format_shape(shape) +
                       ", of which rows " + std::to_string(rows.begin) + " to " +
                       std::to_string(rows.end) + " are needed");
    }
    const auto moments = moments_.find(name);
    if (moments != moments_.end() &&
        (part.dtype() != DType::float32 || shape[1] % moments->second.groups() != 0)) {
        fail(name, "it is normalised in " + std::to_string(moments->second.groups()) +
                       " groups of channels, and is " + get_dtype_name(part.dtype()) +
                       format_shape(shape));
    }
    auto found = values_.find(name);
    if (found == values_.end()) {
        count_elements({shape[1], height, shape[3]});  // So that no offset overflows.
        found = values_.try_emplace(name).first;
        Value &value = found->second;
        value.dtype = part.dtype();
        value.channels = shape[1];
        value.height = height;
        value.width = shape[3];
    }
    Value &value = found->second;
    if (part.dtype() != value.dtype || shape[1] != value.channels || height != value.height ||
        shape[3] != value.width) {
        fail(name, "it has not the same shape in each tile");
    }
    const auto *data = part.as<std::byte>();
    for (int64_t channel = 0; channel < value.channels; ++channel) {
        const auto first = static_cast<size_t>(channel * shape[2] + rows.begin);
        value.file.write(data + first * value.row_bytes(),
                         static_cast<size_t>(rows.size()) * value.row_bytes(),
                         value.find_offset(channel, top));
    }
    if (moments != moments_.end()) moments->second.add(part, rows);
}

Array TiledValues::read(const std::string &name, const RowRange &rows) {
    Value &value = values_.at(name);
    if (rows.begin < 0 || rows.size() < 1 || rows.end > value.height) {
        fail(name, "it has " + std::to_string(value.height) + " rows, and a stage takes " +
                       std::to_string(rows.begin) + " to " + std::to_string(rows.end));
    }
    Array part = Array::make(value.dtype, {1, value.channels, rows.size(), value.width});
    const size_t bytes = static_cast<size_t>(rows.size()) * value.row_bytes();
    for (int64_t channel = 0; channel < value.channels; ++channel) {
        value.file.read(part.as<std::byte>() + static_cast<size_t>(channel) * bytes, bytes,
                        value.find_offset(channel, rows.begin));
    }
    return part;
}

uint64_t TiledValues::Value::find_offset(int64_t channel, int64_t row) const {
    return static_cast<uint64_t>(channel * height + row) * row_bytes();
}

}  // namespace mutoscope
