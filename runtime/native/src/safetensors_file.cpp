#include "safetensors_file.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "error.h"
#include "file_reader.h"
#include "json_reader.h"
#include "text.h"

namespace mutoscope {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr size_t kMaxRank = 8;
constexpr const char *kMetadata = "__metadata__";
constexpr const char *kDType = "F32";

[[noreturn]] void fail(const std::string &name, const std::string &what) {
    throw BundleError(name + " " + what + " (damaged?): copy or export it again");
}

Ordered<std::string> read_metadata(const JsonValue &value, const std::string &name) {
    Ordered<std::string> metadata;
    const std::string problem = std::string("has ") + kMetadata + " that are not texts";
    if (value.kind() != JsonKind::object) fail(name, problem);
    for (const auto &[key, text] : value.members()) {
        if (text.kind() != JsonKind::text) fail(name, problem);
        metadata.emplace_back(key, text.text());
    }
    return metadata;
}

// Whole numbers of at least `minimum`; returns whether that is what the value is.
bool read_counts(const std::optional<JsonValue> &value, int64_t minimum, Shape &counts) {
    if (!value || value->kind() != JsonKind::list) return false;
    for (const JsonValue &item : value->items()) {
        if (item.kind() != JsonKind::whole || item.whole() < minimum) return false;
        counts.push_back(item.whole());
    }
    return true;
}

// The bytes of float32 values of a shape; nothing where they are more than `most`.
std::optional<uint64_t> count_bytes(const Shape &shape, uint64_t most) {
    uint64_t bytes = sizeof(float);
    for (const int64_t length : shape) {
        if (static_cast<uint64_t>(length) > most / bytes) return std::nullopt;
        bytes *= static_cast<uint64_t>(length);
    }
    return bytes;
}

// One tensor; adds where its values lie to `places`.
SafetensorsHeader::Tensor read_tensor(std::string_view key, const JsonValue &value, uint64_t start,
                                      const std::string &name,
                                      std::vector<std::pair<uint64_t, uint64_t>> &places) {
    const std::string tensor = quote(key);
    const bool is_object = value.kind() == JsonKind::object;
    const auto dtype = is_object ? value.find("dtype") : std::nullopt;
    if (!dtype || dtype->kind() != JsonKind::text || dtype->text() != kDType) {
        fail(name, "has a tensor " + tensor + " that is not " + kDType);
    }
    Shape shape, offsets;
    if (!read_counts(value.find("shape"), 1, shape) ||
        !read_counts(value.find("data_offsets"), 0, offsets) || offsets.size() != 2) {
        fail(name, "has a tensor " + tensor + " without a shape or a place");
    }
    if (shape.size() > kMaxRank) {
        fail(name, "has a tensor " + tensor + " of " + std::to_string(shape.size()) +
                       " axes, more than " + std::to_string(kMaxRank));
    }
    const auto first = static_cast<uint64_t>(offsets[0]), last = static_cast<uint64_t>(offsets[1]);
    if (last < first || count_bytes(shape, last - first) != last - first) {
        fail(name, "has a tensor " + tensor + " whose shape is not that of its values");
    }
    places.emplace_back(start + first, start + last);
    return {std::move(shape), start + first};
}

}  // namespace

SafetensorsHeader parse_safetensors(std::string_view text, uint64_t file_bytes,
                                    const std::string &name) {
    std::string problem;
    const auto document = JsonDocument::parse(text, problem);
    if (!document || document->repeats_a_key()) fail(name, "has a header that is not JSON");
    const JsonValue root = document->root();
    if (root.kind() != JsonKind::object) fail(name, "has a header that is not an object");
    SafetensorsHeader header;
    const auto metadata = root.find(kMetadata);
    if (metadata) header.metadata = read_metadata(*metadata, name);
    const uint64_t start = kLengthBytes + text.size();
    std::vector<std::pair<uint64_t, uint64_t>> places;
    for (const auto &[key, value] : root.members()) {
        if (key == kMetadata) continue;
        header.tensors.emplace_back(key, read_tensor(key, value, start, name, places));
    }
    std::sort(places.begin(), places.end());
    uint64_t end = start;
    for (const auto &[first, last] : places) {
        if (first != end) fail(name, "has tensors that overlap or leave gaps");
        end = last;
    }
    if (end != file_bytes) {
        fail(name, "has " + std::to_string(file_bytes) + " bytes; its tensors end after " +
                       std::to_string(end));
    }
    return header;
}

SafetensorsFile::SafetensorsFile(std::string path, uint64_t file_bytes, std::string name)
    : path_(std::move(path)), name_(std::move(name)) {
    const auto read = [&](uint64_t offset, size_t size, void *data) {
        const std::error_code error = read_part(path_, offset, size, data);
        if (error) fail(name_, "cannot be read: " + error.message());
    };
    unsigned char bytes[kLengthBytes] = {};
    read(0, static_cast<size_t>(std::min(file_bytes, kLengthBytes)), bytes);
    uint64_t length = 0;
    for (size_t i = 0; i < kLengthBytes; ++i) length |= static_cast<uint64_t>(bytes[i]) << (8 * i);
    const std::string header = "has a header of " + std::to_string(length) + " bytes, ";
    if (file_bytes < kLengthBytes || length > file_bytes - kLengthBytes) {
        fail(name_, header + "which it cannot hold");
    }
    if (length > kMaxJsonBytes) fail(name_, header + "more than " + std::to_string(kMaxJsonBytes));
    std::string text(static_cast<size_t>(length), '\0');
    read(kLengthBytes, text.size(), text.data());
    header_ = parse_safetensors(text, file_bytes, name_);
}

Array SafetensorsFile::read_row(const std::string &tensor, size_t index) const {
    const SafetensorsHeader::Tensor &found = *find(header_.tensors, tensor);
    Shape shape = found.shape;
    shape.front() = 1;
    const Array row = Array::make(DType::float32, std::move(shape));
    const std::error_code error =
        read_part(path_, found.start + index * row.bytes(), row.bytes(), row.data());
    const float *values = row.as<float>();
    const auto is_finite = [](float value) { return std::isfinite(value); };
    if (error == std::errc::result_out_of_range ||
        (!error && !std::all_of(values, values + row.size(), is_finite))) {
        fail(name_, "has a damaged tensor " + quote(tensor));
    }
    if (error) fail(name_, "cannot be read: " + error.message());
    return row;
}

}  // namespace mutoscope
