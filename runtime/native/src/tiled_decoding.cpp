#include "tiled_decoding.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "error.h"
#include "manifest.h"
#include "text.h"
#include "tiled_values.h"

namespace mutoscope {

namespace {

// Far above any decoder's, and small enough that no product of rows and scales overflows.
constexpr int kMaximumScale = 1024;
constexpr int64_t kMaximumHeight = int64_t{1} << 31;

// Which rows of each value a tile is about: rows `top` to `bottom` of `height` latents.
struct Tile {
    const StageRecord &stage;
    int64_t top;
    int64_t bottom;
    int64_t height;

    // The rows that the stage is given, at its own scale.
    RowRange find_given() const {
        return {std::max<int64_t>(top * stage.scale - stage.halo, 0),
                std::min(bottom * stage.scale + stage.halo, height * stage.scale)};
    }

    // The rows that the stage is given of an input.
    RowRange find_input(int scale) const {
        const RowRange given = find_given();
        return {given.begin * scale / stage.scale, given.end * scale / stage.scale};
    }

    // The rows of an output that are right, counted from its first.
    RowRange find_core(int scale) const {
        const int64_t begin = top * scale - find_given().begin * scale / stage.scale;
        return {begin, begin + (bottom - top) * scale};
    }
};

void check_scale(const std::string &graph, int scale) {
    if (scale < 1 || scale > kMaximumScale) {
        throw BundleError("manifest.json: tiles: " + graph + ": scale " + std::to_string(scale) +
                          " must be from 1 to " + std::to_string(kMaximumScale) + ": export again");
    }
}

void check_tiles(const TilesRecord &tiles, int64_t height) {
    if (height > kMaximumHeight) {
        throw EngineError("latents have " + std::to_string(height) +
                          " rows, which is more than can be decoded in tiles");
    }
    if (tiles.stages.empty() || tiles.stages.back().outputs.size() != 1) {
        throw BundleError(
            "manifest.json: tiles: the last stage must make the frames and nothing else: export "
            "again");
    }
    for (const StageRecord &stage : tiles.stages) {
        check_scale(stage.graph, stage.scale);
        for (const auto &[name, scale] : stage.inputs) check_scale(stage.graph, scale);
        for (const auto &[name, scale] : stage.outputs) check_scale(stage.graph, scale);
    }
}

// Rows of the latents, float32 [1, C, 1, rows, w].
Array copy_latents(const Array &latents, const RowRange &rows) {
    const Shape &shape = latents.shape();
    const int64_t height = shape[3], width = shape[4];
    if (rows.end > height || rows.size() < 1) {
        throw EngineError("vae_decoder: a tile graph takes rows " + std::to_string(rows.begin) +
                          " to " + std::to_string(rows.end) + " of " + std::to_string(height) +
                          " of the latents: export again");
    }
    Array part = Array::make(DType::float32, {1, shape[1], 1, rows.size(), width});
    const auto part_values = static_cast<size_t>(rows.size() * width);
    for (int64_t channel = 0; channel < shape[1]; ++channel) {
        std::memcpy(part.as<float>() + static_cast<size_t>(channel) * part_values,
                    latents.as<float>() + (channel * height + rows.begin) * width,
                    part_values * sizeof(float));
    }
    return part;
}

// Decodes one frame; what is between the stages lives as long as it.
class FrameDecoder {
public:
    FrameDecoder(const OpenGraph &open_graph, const Array &latents, const TilesRecord &tiles,
                 const std::function<void()> &on_run)
        : open_graph_(open_graph), latents_(latents), tiles_(tiles), on_run_(on_run) {
        for (const StageRecord &stage : tiles.stages) {
            if (stage.norm) values_.keep_moments(stage.norm->value, stage.norm->groups);
        }
    }

    // Make the values that the stages start from.
    void run_head() {
        const NamedArrays outputs = open_graph_(tiles_.head)({{kLatents, latents_}});
        for (const auto &[name, array] : outputs) {
            const int64_t rows = array.rank() == 4 ? array.shape()[2] : 0;
            values_.write(name, 0, array, {0, rows}, rows);
        }
        on_run_();
    }

    // Run a stage on all tiles; its outputs become values, or are the frame.
    void run_stage(const StageRecord &stage, int tile_height, uint8_t *frame, size_t frame_bytes) {
        const bool is_last = &stage == &tiles_.stages.back();
        NamedArrays statistics;
        if (stage.norm) {
            statistics = values_.find_statistics(stage.norm->value, stage.norm->epsilon);
        }
        const RunGraph run = open_graph_(stage.graph);
        const int64_t height = latents_.shape()[3];
        for (int64_t top = 0; top < height; top += tile_height) {
            const Tile tile = {stage, top, std::min(top + tile_height, height), height};
            const NamedArrays outputs = run(make_feeds(tile, statistics));
            for (const auto &[name, scale] : stage.outputs) {
                const Array &output = find_output(outputs, stage, name);
                if (is_last) {
                    copy_rows(output, tile, scale, frame, frame_bytes);
                } else {
                    values_.write(name, top * scale, output, tile.find_core(scale), height * scale);
                }
            }
            on_run_();
        }
    }

    // Forget the inputs of a stage that none after it takes.
    void drop_inputs(const StageRecord &stage) {
        const auto is_needed = [&](const std::string &name) {
            for (const StageRecord *later = &stage + 1;
                 later < tiles_.stages.data() + tiles_.stages.size(); ++later) {
                if (find(later->inputs, name) != nullptr) return true;
            }
            return false;
        };
        for (const auto &[name, scale] : stage.inputs) {
            if (!is_needed(name)) values_.drop(name);
        }
    }

private:
    NamedArrays make_feeds(const Tile &tile, const NamedArrays &statistics) {
        NamedArrays feeds;
        for (const auto &[name, scale] : tile.stage.inputs) {
            const RowRange rows = tile.find_input(scale);
            feeds.emplace_back(
                name, values_.has(name) ? values_.read(name, rows) : copy_latents(latents_, rows));
        }
        feeds.insert(feeds.end(), statistics.begin(), statistics.end());
        return feeds;
    }

    static const Array &find_output(const NamedArrays &outputs, const StageRecord &stage,
                                    const std::string &name) {
        const Array *output = find(outputs, name);
        if (output == nullptr) {
            throw EngineError("vae_decoder: " + stage.graph + " returned no " + quote(name) +
                              ": export again");
        }
        return *output;
    }

    // Put what the last stage makes of a tile, uint8 [1, 1, H, W, 3], into the frame.
    static void copy_rows(const Array &frames, const Tile &tile, int scale, uint8_t *frame,
                          size_t frame_bytes) {
        const RowRange core = tile.find_core(scale);
        const Shape &shape = frames.shape();
        if (frames.dtype() != DType::uint8 || shape.size() != 5 || shape[0] != 1 || shape[1] != 1 ||
            shape[4] != 3 || core.end > shape[2] ||
            static_cast<size_t>(tile.height * scale) * static_cast<size_t>(shape[3]) * 3 !=
                frame_bytes) {
            throw EngineError(std::string("vae_decoder: the last tile graph returned ") +
                              get_dtype_name(frames.dtype()) + format_shape(shape) +
                              "; it must be uint8 [1, 1, H, W, 3]: export again");
        }
        const size_t row_bytes = static_cast<size_t>(shape[3]) * 3;
        std::memcpy(frame + static_cast<size_t>(tile.top * scale) * row_bytes,
                    frames.as<uint8_t>() + static_cast<size_t>(core.begin) * row_bytes,
                    static_cast<size_t>(core.size()) * row_bytes);
    }

    const OpenGraph &open_graph_;
    const Array &latents_;
    const TilesRecord &tiles_;
    const std::function<void()> &on_run_;
    TiledValues values_;
};

}  // namespace

int64_t count_tile_runs(const TilesRecord &tiles, int64_t height, int64_t tile_height) {
    const int64_t num_tiles = (height - 1) / tile_height + 1;
    return 1 + static_cast<int64_t>(tiles.stages.size()) * num_tiles;
}

void decode_in_tiles(const OpenGraph &open_graph, const Array &latents, const TilesRecord &tiles,
                     int tile_height, const std::function<void()> &on_run, uint8_t *frame,
                     size_t frame_bytes) {
    check_tiles(tiles, latents.shape().at(3));
    FrameDecoder decoder(open_graph, latents, tiles, on_run);
    decoder.run_head();
    for (const StageRecord &stage : tiles.stages) {
        decoder.run_stage(stage, tile_height, frame, frame_bytes);
        decoder.drop_inputs(stage);
    }
}

}  // namespace mutoscope
