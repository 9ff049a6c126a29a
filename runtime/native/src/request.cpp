#include "request.h"

#include <string>

#include "error.h"
#include "text.h"

namespace mutoscope {
namespace {

constexpr int32_t kMaxRank = 16;
// onnxruntime waits for ever where the system refuses it a thread.
constexpr int32_t kMaxThreads = 1024;
constexpr int64_t kMaxElements = int64_t{1} << 48;
// More than any bundle has inputs, few enough that a count which was never set is seen.
constexpr uint64_t kMaxCount = 4096;

[[noreturn]] void fail(const std::string &problem) {
    throw Error(MUTOSCOPE_ERROR_ARGUMENT, problem);
}

DType read_dtype(const std::string &name, int32_t dtype) {
    switch (dtype) {
        case MUTOSCOPE_FLOAT32:
            return DType::float32;
        case MUTOSCOPE_INT64:
            return DType::int64;
        case MUTOSCOPE_UINT8:
            return DType::uint8;
        default:
            fail(name + " has dtype " + std::to_string(dtype) + ": use MUTOSCOPE_FLOAT32");
    }
}

Shape read_shape(const std::string &name, const mutoscope_array &array) {
    if (array.rank < 0 || array.rank > kMaxRank) {
        fail(name + " has rank " + std::to_string(array.rank) + "; it must be from 0 to " +
             std::to_string(kMaxRank));
    }
    if (array.data == nullptr) fail(name + " has no data: its pointer is NULL");
    if (array.rank > 0 && array.shape == nullptr) fail(name + " has no shape: it is NULL");
    const Shape shape(array.shape, array.shape + array.rank);
    int64_t count = 1;
    for (const int64_t length : shape) {
        if (length < 0 || (length > 0 && count > kMaxElements / length)) {
            fail(name + " has the shape " + format_shape(shape) + ", which no array has");
        }
        count *= length;
    }
    return shape;
}

Array read_array(const std::string &name, const mutoscope_array &array) {
    return Array::copy_from(read_dtype(name, array.dtype), read_shape(name, array), array.data);
}

void check_count(const std::string &name, const void *values, uint64_t count) {
    if (count > kMaxCount) {
        fail("num_" + name + " is " + std::to_string(count) + "; it must be at most " +
             std::to_string(kMaxCount));
    }
    if (count > 0 && values == nullptr) fail(name + " is NULL, and num_" + name + " is not 0");
}

PromptInput read_prompt(const std::string &name, const char *text, const mutoscope_array *inputs,
                        uint64_t num_inputs) {
    check_count(name + "_inputs", inputs, num_inputs);
    PromptInput prompt;
    if (text != nullptr) prompt.text = text;
    for (uint64_t i = 0; i < num_inputs; ++i) {
        if (inputs[i].name == nullptr) fail(name + "_inputs has an array without a name");
        prompt.arrays.emplace_back(
            inputs[i].name, read_array(name + "_inputs[" + quote(inputs[i].name) + "]", inputs[i]));
    }
    return prompt;
}

Picture read_picture(const mutoscope_array &array) {
    const Shape shape = read_shape("image", array);
    const DType dtype = read_dtype("image", array.dtype);
    if (dtype != DType::uint8 || shape.size() != 3 || shape[2] != 3 || shape[0] == 0 ||
        shape[1] == 0) {
        throw ParameterError(std::string("image is ") + get_dtype_name(dtype) +
                             format_shape(shape) + "; an array must be uint8 [H, W, 3]");
    }
    return {static_cast<const uint8_t *>(array.data), shape[0], shape[1]};
}

// What is 0 is the bundle's.
template <typename T, typename U>
std::optional<T> unless_zero(U value) {
    return value == 0 ? std::nullopt : std::optional<T>(value);
}

Wishes read_wishes(const mutoscope_generate_params &params) {
    Wishes wishes;
    wishes.num_frames = unless_zero<int64_t>(params.num_frames);
    wishes.height = unless_zero<int64_t>(params.height);
    wishes.width = unless_zero<int64_t>(params.width);
    wishes.context_length = unless_zero<int64_t>(params.context_length);
    wishes.context_stride = unless_zero<int64_t>(params.context_stride);
    wishes.num_inference_steps = unless_zero<int64_t>(params.num_inference_steps);
    wishes.guidance_scale = unless_zero<double>(params.guidance_scale);
    wishes.min_guidance_scale = unless_zero<double>(params.min_guidance_scale);
    wishes.frame_rate = unless_zero<double>(params.frame_rate);
    if (params.scheduler != nullptr) wishes.scheduler = params.scheduler;
    check_count("conditions", params.conditions, params.num_conditions);
    for (uint64_t i = 0; i < params.num_conditions; ++i) {
        const mutoscope_number &condition = params.conditions[i];
        if (condition.name == nullptr) fail("conditions has a number without a name");
        wishes.conditions.emplace_back(condition.name, condition.value);
    }
    return wishes;
}

// Nothing for the bundle's own.
std::optional<std::string> read_guidance_passes(int32_t guidance_passes) {
    switch (guidance_passes) {
        case MUTOSCOPE_GUIDANCE_SEPARATE:
            return "separate";
        case MUTOSCOPE_GUIDANCE_BATCHED:
            return "batched";
        case MUTOSCOPE_GUIDANCE_DEFAULT:
            return std::nullopt;
        default:
            throw ParameterError("guidance_passes is " + std::to_string(guidance_passes) +
                                 "; it must be one of separate, batched: use separate");
    }
}

}  // namespace

Request read_request(const mutoscope_generate_params &params) {
    Request request;
    request.wishes = read_wishes(params);
    if (params.seed != MUTOSCOPE_SEED_RANDOM) request.seed = params.seed;
    request.guidance_passes = read_guidance_passes(params.guidance_passes);
    request.prompt =
        read_prompt("prompt", params.prompt, params.prompt_inputs, params.num_prompt_inputs);
    request.negative_prompt =
        read_prompt("negative_prompt", params.negative_prompt, params.negative_prompt_inputs,
                    params.num_negative_prompt_inputs);
    if (params.image != nullptr) request.picture = read_picture(*params.image);
    if (params.latents != nullptr) {
        request.latents = read_array("latents", *params.latents);
        check_array("latents", *request.latents, {1, -1, -1, -1, -1}, "1CFHW");
        request.wishes.latents_shape = request.latents->shape();
    }
    return request;
}

PipelineOptions read_options(const mutoscope_pipeline_params &params) {
    PipelineOptions options;
    if (params.num_threads < 0) {
        throw ParameterError("num_threads is " + std::to_string(params.num_threads) +
                             "; it must be at least 1: use 1");
    }
    if (params.num_threads > kMaxThreads) {
        throw ParameterError("num_threads is " + std::to_string(params.num_threads) +
                             "; it must be at most " + std::to_string(kMaxThreads) +
                             ": use the number of cores");
    }
    if (params.memory != MUTOSCOPE_MEMORY_NORMAL && params.memory != MUTOSCOPE_MEMORY_LOW) {
        throw ParameterError("memory is " + std::to_string(params.memory) +
                             "; it must be one of normal, low: use normal");
    }
    options.engine.num_threads = params.num_threads;
    options.engine.low_memory = params.memory == MUTOSCOPE_MEMORY_LOW;
    options.engine.allow_cpu_nodes = params.allow_cpu_nodes != 0;
    if (params.execution_provider != nullptr) {
        options.engine.execution_provider = params.execution_provider;
    }
    if (params.variant != nullptr) {
        if (*params.variant == '\0') {
            throw ParameterError("variant is '', a name of none: use NULL for the default one");
        }
        options.variant = params.variant;
    }
    options.memory_limit_bytes = params.memory_limit_bytes;
    if (params.num_provider_options == 0) return options;
    check_count("provider_options", params.provider_option_keys, params.num_provider_options);
    check_count("provider_options", params.provider_option_values, params.num_provider_options);
    for (uint64_t i = 0; i < params.num_provider_options; ++i) {
        const char *key = params.provider_option_keys[i], *value = params.provider_option_values[i];
        if (key == nullptr || value == nullptr) fail("a provider option is NULL");
        options.engine.provider_options.emplace_back(key, value);
    }
    return options;
}

}  // namespace mutoscope
