#include "records.h"

#include <limits>

#include "error.h"
#include "record_readers.h"
#include "text.h"

namespace mutoscope {

namespace {

constexpr int kMinInt = std::numeric_limits<int>::min();
constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

// The remainder that is not negative; divisor is at least 1.
int64_t find_remainder(int64_t value, int64_t divisor) {
    const int64_t remainder = value % divisor;
    return remainder < 0 ? remainder + divisor : remainder;
}

bool read_bool_or(const JsonField &field, const char *key, bool value) {
    const auto found = field.find(key);
    return found ? found->read_bool() : value;
}

int read_int_or(const JsonField &field, const char *key, int minimum, int value) {
    const auto found = field.find(key);
    return found ? found->read_int(minimum) : value;
}

std::string read_text_or_nothing(const JsonField &field, const char *key) {
    const auto found = field.find(key);
    return found ? found->read_text() : "";
}

LimitRecord read_limit(const JsonField &field) {
    LimitRecord record;
    record.minimum = field.get("minimum").read_int(kMinInt);
    if (const auto maximum = field.find_value("maximum")) {
        record.maximum = maximum->read_int(kMinInt);
    }
    record.multiple = read_int_or(field, "multiple", 1, 1);
    record.offset = read_int_or(field, "offset", kMinInt, 0);
    return record;
}

Axis read_axis(const JsonField &field) {
    if (field.value().is_whole()) return {field.read_whole(0, kMaxInt64), ""};
    return {-1, field.read_text()};
}

ImageSize read_image_size(const JsonField &field) {
    if (field.value().is_whole()) return {field.read_int(kMinInt), ""};
    return {0, field.read_text()};
}

std::vector<double> read_numbers(const JsonField &field) {
    return field.read_list([](const JsonField &item) { return item.read_number(); });
}

ImageOperation read_operation(const JsonField &field) {
    ImageOperation operation;
    operation.kind = field.get("kind").read_text();
    if (const auto height = field.find_value("height")) operation.height = read_image_size(*height);
    if (const auto width = field.find_value("width")) operation.width = read_image_size(*width);
    if (const auto filter = field.find_value("filter")) operation.filter = filter->read_text();
    if (const auto mean = field.find_value("mean")) operation.mean = read_numbers(*mean);
    if (const auto std = field.find_value("std")) operation.std = read_numbers(*std);
    return operation;
}

}  // namespace

void LimitRecord::check(const std::string &name, int64_t value) const {
    const std::string start = name + " is " + std::to_string(value) + "; this bundle ";
    if (value < minimum) {
        const std::string least = std::to_string(minimum);
        throw ParameterError(start + "needs at least " + least + ": use " + least);
    }
    if (maximum && value > *maximum) {
        const std::string most = std::to_string(*maximum);
        throw ParameterError(start + "allows at most " + most + ": use " + most);
    }
    // Both remainders first: the difference of value and offset may be too large.
    const int64_t above = find_remainder(
        find_remainder(value, multiple) - find_remainder(offset, multiple), multiple);
    if (above == 0) return;
    std::string allowed;
    if (above <= value - minimum) allowed = std::to_string(value - above);
    const int64_t most = maximum ? *maximum : kMaxInt64;
    if (multiple - above <= most - value) {
        if (!allowed.empty()) allowed += " or ";
        allowed += std::to_string(value + (multiple - above));
    }
    std::string rule = std::to_string(multiple) + "k";
    if (offset != 0) rule += " + " + std::to_string(offset);
    throw ParameterError(start + "needs " + rule + ": use " + allowed);
}

void ConditionRecord::check(const std::string &name, double value) const {
    if (minimum <= value && value <= maximum) return;
    throw ParameterError(name + " is " + format_number(value) + "; this bundle takes " +
                         format_number(minimum) + " to " + format_number(maximum) + ": use " +
                         format_number(default_value));
}

FileRecord read_file_record(const JsonField &field) {
    FileRecord record;
    record.size_bytes = static_cast<uint64_t>(field.get("size_bytes").read_whole(0, kMaxInt64));
    record.sha256 = field.get("sha256").read_text();
    return record;
}

TensorRecord read_tensor(const JsonField &field) {
    TensorRecord record;
    record.dtype = parse_dtype(field.get("dtype").read_text());
    record.shape = field.get("shape").read_list(read_axis);
    if (const auto source = field.find_value("source")) record.source = source->read_text();
    if (const auto unconditional = field.find_value("unconditional")) {
        record.unconditional = unconditional->read_text();
        if (record.unconditional.empty()) unconditional->fail("zeros");
    }
    return record;
}

TokenizerRecord read_tokenizer(const JsonField &field) {
    TokenizerRecord record;
    record.file = field.get("file").read_text();
    record.max_length = field.get("max_length").read_int(0);
    record.pad_token_id = field.get("pad_token_id").read_whole(-kMaxInt64, kMaxInt64);
    return record;
}

LatentsRecord read_latents(const JsonField &field) {
    LatentsRecord record;
    record.channels = field.get("channels").read_int(1);
    record.vae_scale_factor_spatial = field.get("vae_scale_factor_spatial").read_int(1);
    record.vae_scale_factor_temporal = read_int_or(field, "vae_scale_factor_temporal", 1, 1);
    record.start_noise_frames_first = read_bool_or(field, "start_noise_frames_first", false);
    record.step_noise_frames_first = read_bool_or(field, "step_noise_frames_first", false);
    return record;
}

LimitsRecord read_limits(const JsonField &field) {
    LimitsRecord record;
    record.height = read_limit(field.get("height"));
    record.width = read_limit(field.get("width"));
    record.num_frames = read_limit(field.get("num_frames"));
    return record;
}

ConditionRecord read_condition(const JsonField &field) {
    ConditionRecord record;
    record.default_value = field.get("default").read_number();
    record.minimum = field.get("minimum").read_number();
    record.maximum = field.get("maximum").read_number();
    record.description = read_text_or_nothing(field, "description");
    return record;
}

DefaultsRecord read_defaults(const JsonField &field) {
    DefaultsRecord record;
    record.scheduler = field.get("scheduler").read_text();
    record.num_inference_steps = field.get("num_inference_steps").read_int(kMinInt);
    record.guidance_scale = field.get("guidance_scale").read_number();
    record.height = field.get("height").read_int(kMinInt);
    record.width = field.get("width").read_int(kMinInt);
    record.num_frames = field.get("num_frames").read_int(kMinInt);
    record.frame_rate = field.get("frame_rate").read_number();
    record.negative_prompt = read_text_or_nothing(field, "negative_prompt");
    if (const auto scale = field.find_value("min_guidance_scale")) {
        record.min_guidance_scale = scale->read_number();
    }
    if (const auto passes = field.find("guidance_passes")) {
        record.guidance_passes = passes->read_text();
    }
    return record;
}

ImageRecord read_image(const JsonField &field) {
    return {field.get("operations").read_list(read_operation)};
}

}  // namespace mutoscope
