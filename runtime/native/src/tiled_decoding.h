// Decode a frame in tiles of its rows, with the result of the whole: what the decoder does at the
// size of the latents runs on the whole frame, the rest stage by stage and tile by tile, with what
// the stages make in temporary files.
#ifndef MUTOSCOPE_TILED_DECODING_H
#define MUTOSCOPE_TILED_DECODING_H

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "array.h"
#include "decoding_records.h"

namespace mutoscope {

// Runs a graph: all outputs for these inputs. It owns what it needs, and frees it when destroyed.
using RunGraph = std::function<NamedArrays(const NamedArrays &feeds)>;

// Loads a graph by its path in the bundle.
using OpenGraph = std::function<RunGraph(const std::string &path)>;

// How many graph runs one frame takes; heights are in rows of the latents, at least 1.
int64_t count_tile_runs(const TilesRecord &tiles, int64_t height, int64_t tile_height);

// Decode one frame.
//
// latents: clean latents of the frame, float32 [1, C, 1, h, w].
// tile_height: rows of the latents in one tile, at least 1.
// on_run: called after each run of a graph; what it throws ends the decoding.
// frame: gets uint8 [H, W, 3], RGB; frame_bytes must be H * W * 3.
//
// Temporary files are made in TMPDIR, or /tmp, and have no name there, so that none is left behind.
// Raises EngineError where a graph cannot be loaded or run or returns something else than the
// record says, and where the files do not fit.
void decode_in_tiles(const OpenGraph &open_graph, const Array &latents, const TilesRecord &tiles,
                     int tile_height, const std::function<void()> &on_run, uint8_t *frame,
                     size_t frame_bytes);

}  // namespace mutoscope

#endif
