// What a manifest says of the memory that a decoder needs, and of how a frame is cut: the records
// of runtime/decoding_records.py.
#ifndef MUTOSCOPE_DECODING_RECORDS_H
#define MUTOSCOPE_DECODING_RECORDS_H

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "records.h"

namespace mutoscope {

// A group norm at the start of a stage, whose statistics the runtime finds. The stage's graph takes
// them as `mean` and `reciprocal_std`, float32 [1, groups, 1].
struct NormRecord {
    std::string value;  // the stage's input that is normalised
    int groups = 1;
    double epsilon = 0;
};

// A part of a decoder that works on rows of a frame, given some more rows around them. Scales are
// rows of a value for each row of the latents, at least 1.
struct StageRecord {
    std::string graph;
    Ordered<int> inputs, outputs;  // the scale of each but the norm's statistics
    int scale = 1;                 // what halo counts at, the smallest of the inputs
    int halo = 0;                  // how many more rows of the inputs it must see on each side
    std::optional<NormRecord> norm;
};

// How one frame is decoded in tiles of its rows, with the result of the whole.
struct TilesRecord {
    std::string head;  // the graph that sees the whole frame, where it is small
    std::vector<StageRecord> stages;
    double head_bytes_per_latent = 0;
    double bytes_per_pixel = 0;
    int64_t weights_bytes = 0;  // the weights of the largest graph among them
};

// What decoding costs. A run on F frames of latents of h x w, that is, of H x W pixels, needs about
// F * max(bytes_per_pixel * H * W, bytes_per_latent_pair * (h * w)^2) bytes beside the weights.
struct DecoderRecord {
    bool independent_frames = false;  // whether frames may be decoded apart
    double bytes_per_pixel = 0;
    double bytes_per_latent_pair = 0;
    int64_t weights_bytes = 0;
    std::optional<TilesRecord> tiles;  // none where a frame cannot be cut
};

}  // namespace mutoscope

#endif
