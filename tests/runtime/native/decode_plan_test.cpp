// How latents are cut for decoding: tests/runtime/test_decoding.py has the same of Python.
#include "decode_plan.h"

#include <limits>
#include <optional>
#include <string>

#include "check.h"

namespace mutoscope {
namespace {

constexpr int kScale = 8;
constexpr uint64_t kMib = 1024 * 1024;
const Shape kClip = {1, 4, 16, 64, 64};

// Those of a Stable Diffusion 1.5 decoder.
DecoderRecord make_decoder() {
    DecoderRecord decoder;
    decoder.independent_frames = true;
    decoder.bytes_per_pixel = 4096.0;
    decoder.bytes_per_latent_pair = 11.0;
    decoder.weights_bytes = 198000000;
    return decoder;
}

DecoderRecord make_temporal() {
    DecoderRecord decoder = make_decoder();
    decoder.independent_frames = false;
    return decoder;
}

DecoderRecord make_tiled() {
    DecoderRecord decoder = make_decoder();
    TilesRecord tiles;
    tiles.head = "head.onnx";
    tiles.stages = {{"1.onnx", {{"a", 1}}, {{"b", 2}}, 1, 2, {}},
                    {"2.onnx", {{"b", 2}}, {{"frames", 8}}, 2, 3, {}}};
    tiles.head_bytes_per_latent = 16406.0;
    tiles.bytes_per_pixel = 4779.0;
    tiles.weights_bytes = 98000000;
    decoder.tiles = tiles;
    return decoder;
}

void check_plan(const DecodePlan &plan, int frames_per_chunk, std::optional<int> tile_height = {}) {
    CHECK_EQUAL(plan.frames_per_chunk, frames_per_chunk);
    CHECK_EQUAL(plan.tile_height.value_or(0), tile_height.value_or(0));
}

// What the message of a limit that is too low says would work, in bytes.
uint64_t find_least(const DecoderRecord &decoder, const Shape &shape) {
    try {
        plan_decode(&decoder, shape, kScale, 1);
    } catch (const ParameterError &error) {
        const std::string message = error.what();
        return std::stoull(message.substr(message.find("use ") + 4)) * kMib;
    }
    return 0;
}

TEST(without_a_limit_frames_stay_whole_and_a_run_stays_below_16_mebibytes) {
    const DecoderRecord decoder = make_decoder(), temporal = make_temporal();
    check_plan(plan_decode(&decoder, {1, 4, 16, 4, 4}, kScale, 0), 4);
    check_plan(plan_decode(&decoder, {1, 4, 16, 128, 128}, kScale, 0), 1);
    check_plan(plan_decode(&decoder, {1, 4, 2, 4, 4}, kScale, 0), 2);
    check_plan(plan_decode(&temporal, kClip, kScale, 0), 16);
    check_plan(plan_decode(nullptr, kClip, kScale, 0), 16);
}

TEST(a_limit_takes_fewer_frames_first_and_then_tiles) {
    const DecoderRecord decoder = make_decoder(), tiled = make_tiled();
    check_plan(plan_decode(&tiled, kClip, kScale, 32 * 1024 * kMib), 16);
    check_plan(plan_decode(&tiled, kClip, kScale, 3 * 1024 * kMib), 2);
    check_plan(plan_decode(&tiled, kClip, kScale, 1400 * kMib), 1);
    const DecodePlan plan = plan_decode(&tiled, kClip, kScale, 540 * kMib);
    check_plan(plan, 1, 16);
    // One run of the head, and two stages of four tiles, for each of 16 frames.
    CHECK_EQUAL(count_runs(plan, &tiled, kClip), 16 * (1 + 2 * 4));
    CHECK_EQUAL(count_runs({3, std::nullopt}, &tiled, kClip), 6);
    CHECK_THROWS(plan_decode(&decoder, kClip, kScale, 600 * kMib),
                 "memory_limit is 600 MiB; decoding 16 frames of 512 x 512 pixels needs at least "
                 "1266 MiB: use 1266MiB");
}

TEST(tiles_take_the_rows_around_them) {
    // 40 MiB, the weights, 16 + 2 * 2 rows of 64 * 8^2 pixels, and 17 frames.
    CHECK_EQUAL(estimate_bytes(make_tiled(), kClip, kScale, {1, 16}),
                40.0 * 1024 * 1024 + 98e6 + 4779.0 * 20 * 64 * 64 + 17.0 * 512 * 512 * 3);
    // Attention is more than a tile with a row of the latents.
    CHECK_EQUAL(estimate_bytes(make_tiled(), kClip, kScale, {1, 1}),
                40.0 * 1024 * 1024 + 98e6 + 11.0 * 4096 * 4096 + 17.0 * 512 * 512 * 3);
}

TEST(the_limit_that_an_error_names_is_enough) {
    for (const DecoderRecord &decoder : {make_decoder(), make_temporal(), make_tiled()}) {
        const uint64_t least = find_least(decoder, kClip);
        const DecodePlan plan = plan_decode(&decoder, kClip, kScale, least);
        CHECK(estimate_bytes(decoder, kClip, kScale, plan) <= static_cast<double>(least));
        CHECK_THROWS(plan_decode(&decoder, kClip, kScale, least - kMib), "needs at least");
    }
}

TEST(every_plan_stays_within_its_limit) {
    const DecoderRecord tiled = make_tiled();
    for (int64_t num_frames = 1; num_frames < 20; num_frames += 3) {
        for (int64_t height = 1; height < 130; height += 7) {
            const Shape shape = {1, 4, num_frames, height, 1 + height * 37 % 129};
            const uint64_t least = find_least(tiled, shape);
            for (uint64_t limit = least; limit < 4000 * kMib; limit += 97 * kMib) {
                const DecodePlan plan = plan_decode(&tiled, shape, kScale, limit);
                CHECK(estimate_bytes(tiled, shape, kScale, plan) <= static_cast<double>(limit));
                CHECK(!plan.tile_height || (plan.frames_per_chunk == 1 && *plan.tile_height > 0 &&
                                            *plan.tile_height < height));
            }
        }
    }
}

TEST(frames_that_depend_on_each_other_are_never_decoded_apart) {
    const DecoderRecord temporal = make_temporal();
    check_plan(plan_decode(&temporal, kClip, kScale, 17 * 1024 * kMib), 16);
    CHECK_THROWS(plan_decode(&temporal, kClip, kScale, 3 * 1024 * kMib), "needs at least");
}

TEST(a_limit_needs_a_bundle_that_says_what_its_decoder_takes) {
    CHECK_THROWS(plan_decode(nullptr, kClip, kScale, kMib),
                 "memory_limit is given, but this bundle does not say what its decoder needs: "
                 "leave it out, or export the bundle again");
}

TEST(numbers_without_end_are_refused_in_one_line) {
    DecoderRecord decoder = make_tiled();
    constexpr int kMost = std::numeric_limits<int>::max();
    decoder.bytes_per_pixel = decoder.bytes_per_latent_pair = 1e308;
    decoder.weights_bytes = std::numeric_limits<int64_t>::max();
    decoder.tiles->bytes_per_pixel = decoder.tiles->head_bytes_per_latent = 1e308;
    decoder.tiles->weights_bytes = decoder.weights_bytes;
    for (StageRecord &stage : decoder.tiles->stages) stage.halo = stage.scale = kMost;
    const Shape longest = {1, 4, kMost, kMost, kMost};
    CHECK_THROWS(plan_decode(&decoder, longest, kMost, kMib), "needs at least inf MiB");
    check_plan(plan_decode(&decoder, longest, kMost, 0), 1);
    CHECK_THROWS(plan_decode(&decoder, {1, 4, 1, 1, 1}, 1, kMib), "needs at least");
    check_plan(plan_decode(nullptr, longest, kMost, 0), kMost);
}

}  // namespace
}  // namespace mutoscope
