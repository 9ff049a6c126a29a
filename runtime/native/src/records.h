// What a manifest says of sizes, numbers, texts and images: the records of runtime/manifest.py.
#ifndef MUTOSCOPE_RECORDS_H
#define MUTOSCOPE_RECORDS_H

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "array.h"
#include "ordered.h"

namespace mutoscope {

// Size and digest of one file of the bundle.
struct FileRecord {
    uint64_t size_bytes = 0;
    std::string sha256;
};

// One axis of a graph's input or output: of a fixed length, or of one that may vary, with a name.
struct Axis {
    int64_t length = -1;  // -1: may vary
    std::string name;     // "" where the length is fixed
};

// One input or output of a graph.
struct TensorRecord {
    DType dtype = DType::float32;
    std::vector<Axis> shape;
    std::string source;         // where an input's value comes from; "" of outputs
    std::string unconditional;  // "zeros", or "" for what the negative prompt gives
};

// The text tokenizer; ids are padded to max_length with pad_token_id.
struct TokenizerRecord {
    std::string file;
    int max_length = 0;
    int64_t pad_token_id = 0;
};

// The shape of the latents that belong to a clip, and the order of their noise.
struct LatentsRecord {
    int channels = 1;
    int vae_scale_factor_spatial = 1;
    int vae_scale_factor_temporal = 1;
    bool start_noise_frames_first = false;
    bool step_noise_frames_first = false;
};

// The values one size may take: multiple * k + offset, from minimum to maximum.
struct LimitRecord {
    int minimum = 0;
    std::optional<int> maximum;
    int multiple = 1;  // at least 1
    int offset = 0;

    // Raises ParameterError with values that work, if value is not allowed.
    void check(const std::string &name, int64_t value) const;
};

// A number that the denoiser takes and the user may set; its name is a source.
struct ConditionRecord {
    double default_value = 0;
    double minimum = 0;
    double maximum = 0;
    std::string description;

    // Raises ParameterError with the range, if value is outside (or not a number).
    void check(const std::string &name, double value) const;
};

// What height, width (pixels) and num_frames may be.
struct LimitsRecord {
    LimitRecord height, width, num_frames;
};

// What a generation uses where the caller says nothing.
struct DefaultsRecord {
    std::string scheduler;
    int num_inference_steps = 1;
    double guidance_scale = 1;
    int height = 0;
    int width = 0;
    int num_frames = 0;
    double frame_rate = 0;
    std::string negative_prompt;
    // Guidance of the first frame, where it is not the same for all.
    std::optional<double> min_guidance_scale;
    // "separate" or "batched", whichever was measured to be faster.
    std::string guidance_passes = "separate";
};

// A size in pixels, or "height" or "width", which stands for that of the clip.
struct ImageSize {
    int64_t length = -1;  // -1: as `name` says
    std::string name;
};

// One operation on an image; it has the fields that its kind needs (runtime/image_records.py).
struct ImageOperation {
    std::string kind;
    std::optional<ImageSize> height, width;
    std::optional<std::string> filter;
    std::optional<std::vector<double>> mean, std;
};

// The operations that make a graph input out of an image, in their order.
struct ImageRecord {
    std::vector<ImageOperation> operations;
};

}  // namespace mutoscope

#endif
