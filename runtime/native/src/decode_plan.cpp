#include "decode_plan.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>

#include "error.h"
#include "tiled_decoding.h"

namespace mutoscope {

namespace {

constexpr double kMib = 1024.0 * 1024.0;
// Without a limit one run stays below this, or is of one frame: less than in Python, since frames
// go out as they are made and need not be in memory together.
constexpr double kRunBytes = 16.0 * kMib;
// A C process with onnxruntime, before any graph: 24 MiB were measured, and 37 after a text
// encoder.
constexpr double kProcessBytes = 40.0 * kMib;
constexpr double kFrameBytesPerPixel = 3.0;

// Latents of a clip, in numbers that cannot overflow.
struct Clip {
    double num_frames;
    double height;
    double width;
    double pixels;  // of a frame

    Clip(const Shape &latents_shape, int scale_factor)
        : num_frames(static_cast<double>(latents_shape.at(2))),
          height(static_cast<double>(latents_shape.at(3))),
          width(static_cast<double>(latents_shape.at(4))),
          pixels(height * width * scale_factor * scale_factor) {}

    double positions() const { return height * width; }
};

int64_t divide_up(int64_t dividend, int64_t divisor) { return (dividend - 1) / divisor + 1; }

// What one frame needs in a run.
double estimate_frame(const DecoderRecord &decoder, const Clip &clip) {
    return std::max(decoder.bytes_per_pixel * clip.pixels,
                    decoder.bytes_per_latent_pair * clip.positions() * clip.positions());
}

// What a frame in tiles needs in a run.
double estimate_tile(const DecoderRecord &decoder, const Clip &clip, int tile_height) {
    const TilesRecord &tiles = *decoder.tiles;
    double halo = 0.0;
    for (const StageRecord &stage : tiles.stages) {
        halo = std::max(halo, std::ceil(static_cast<double>(stage.halo) / stage.scale));
    }
    const double rows = std::min(tile_height + 2.0 * halo, clip.height);
    return std::max({tiles.head_bytes_per_latent * clip.positions(),
                     decoder.bytes_per_latent_pair * clip.positions() * clip.positions(),
                     tiles.bytes_per_pixel * rows * (clip.pixels / clip.height)});
}

// Looks for the first plan within the limit, and remembers what the smallest needs.
class Search {
public:
    Search(const DecoderRecord &decoder, const Shape &latents_shape, int scale_factor, double limit)
        : decoder_(decoder),
          latents_shape_(latents_shape),
          scale_factor_(scale_factor),
          limit_(limit) {}

    // Whole frames, with fewer and fewer in one run.
    std::optional<DecodePlan> try_chunks() {
        const int64_t num_frames = latents_shape_.at(2);
        return try_parts(num_frames, num_frames, decoder_.independent_frames ? 1 : num_frames,
                         [](int64_t part) {
                             return DecodePlan{static_cast<int>(part), std::nullopt};
                         });
    }

    // One frame in tiles, from two to as many as the latents have rows.
    std::optional<DecodePlan> try_tilings() {
        const int64_t height = latents_shape_.at(3);
        if (!decoder_.tiles || height < 2) return std::nullopt;
        return try_parts(height, divide_up(height, 2), 1, [](int64_t part) {
            return DecodePlan{1, static_cast<int>(part)};
        });
    }

    double least() const { return least_; }

private:
    // The sizes from `largest` to `smallest` that cutting `whole` into equal parts can give.
    template <typename MakePlan>
    std::optional<DecodePlan> try_parts(int64_t whole, int64_t largest, int64_t smallest,
                                        MakePlan make_plan) {
        for (int64_t part = largest;; part = divide_up(whole, divide_up(whole, part - 1))) {
            const DecodePlan plan = make_plan(part);
            const double bytes = estimate_bytes(decoder_, latents_shape_, scale_factor_, plan);
            if (bytes <= limit_) return plan;
            least_ = std::min(least_, bytes);
            if (part <= smallest) return std::nullopt;
        }
    }

    const DecoderRecord &decoder_;
    const Shape &latents_shape_;
    int scale_factor_;
    double limit_;
    double least_ = std::numeric_limits<double>::infinity();
};

std::string format_whole(double value) {
    std::array<char, 400> text{};  // The largest double has 309 digits.
    std::snprintf(text.data(), text.size(), "%.0f", value);
    return text.data();
}

}  // namespace

double estimate_bytes(const DecoderRecord &decoder, const Shape &latents_shape, int scale_factor,
                      const DecodePlan &plan) {
    const Clip clip(latents_shape, scale_factor);
    const double frames = std::min<double>(plan.frames_per_chunk, clip.num_frames);
    // All frames at the end, and the chunk that is being added to them.
    const double result = (clip.num_frames + frames) * clip.pixels * kFrameBytesPerPixel;
    double weights = static_cast<double>(decoder.weights_bytes);
    double run = 0.0;
    if (decoder.tiles && plan.tile_height) {
        weights = static_cast<double>(decoder.tiles->weights_bytes);
        run = estimate_tile(decoder, clip, *plan.tile_height);
    } else {
        run = frames * estimate_frame(decoder, clip);
    }
    return kProcessBytes + weights + std::ceil(run) + result;
}

DecodePlan plan_decode(const DecoderRecord *decoder, const Shape &latents_shape, int scale_factor,
                       uint64_t memory_limit_bytes) {
    const Clip clip(latents_shape, scale_factor);
    const DecodePlan all = {static_cast<int>(latents_shape.at(2)), std::nullopt};
    if (decoder == nullptr) {
        if (memory_limit_bytes == 0) return all;
        throw ParameterError(
            "memory_limit is given, but this bundle does not say what its decoder needs: leave it "
            "out, or export the bundle again");
    }
    if (memory_limit_bytes == 0) {
        if (!decoder->independent_frames) return all;
        const double at_once =
            std::floor(kRunBytes / std::max(estimate_frame(*decoder, clip), 1.0));
        return {static_cast<int>(std::clamp(at_once, 1.0, clip.num_frames)), std::nullopt};
    }
    const auto limit = static_cast<double>(memory_limit_bytes);
    Search search(*decoder, latents_shape, scale_factor, limit);
    if (const auto plan = search.try_chunks()) return *plan;
    if (const auto plan = search.try_tilings()) return *plan;
    const std::string least = format_whole(std::ceil(search.least() / kMib));
    throw ParameterError("memory_limit is " + format_whole(limit / kMib) + " MiB; decoding " +
                         format_whole(clip.num_frames) + " frames of " +
                         format_whole(clip.height * scale_factor) + " x " +
                         format_whole(clip.width * scale_factor) + " pixels needs at least " +
                         least + " MiB: use " + least + "MiB");
}

int64_t count_runs(const DecodePlan &plan, const DecoderRecord *decoder,
                   const Shape &latents_shape) {
    const int64_t chunks = divide_up(latents_shape.at(2), plan.frames_per_chunk);
    if (decoder == nullptr || !decoder->tiles || !plan.tile_height) return chunks;
    return chunks * count_tile_runs(*decoder->tiles, latents_shape.at(3), *plan.tile_height);
}

}  // namespace mutoscope
