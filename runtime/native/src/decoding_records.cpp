#include "decoding_records.h"

#include <limits>

#include "record_readers.h"

namespace mutoscope {

namespace {

constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

NormRecord read_norm(const JsonField &field) {
    NormRecord record;
    record.value = field.get("value").read_text();
    record.groups = field.get("groups").read_int(1);
    record.epsilon = field.get("epsilon").read_number();
    return record;
}

int read_scale(const JsonField &field) { return field.read_int(1); }

StageRecord read_stage(const JsonField &field) {
    StageRecord record;
    record.graph = field.get("graph").read_text();
    record.inputs = field.get("inputs").read_map(read_scale);
    record.outputs = field.get("outputs").read_map(read_scale);
    record.scale = field.get("scale").read_int(1);
    record.halo = field.get("halo").read_int(0);
    if (const auto norm = field.find_value("norm")) record.norm = read_norm(*norm);
    return record;
}

TilesRecord read_tiles(const JsonField &field) {
    TilesRecord record;
    record.head = field.get("head").read_text();
    record.stages = field.get("stages").read_list(read_stage);
    record.head_bytes_per_latent = field.get("head_bytes_per_latent").read_positive_or_zero();
    record.bytes_per_pixel = field.get("bytes_per_pixel").read_positive_or_zero();
    record.weights_bytes = field.get("weights_bytes").read_whole(0, kMaxInt64);
    return record;
}

}  // namespace

DecoderRecord read_decoder(const JsonField &field) {
    DecoderRecord record;
    record.independent_frames = field.get("independent_frames").read_bool();
    record.bytes_per_pixel = field.get("bytes_per_pixel").read_positive_or_zero();
    record.bytes_per_latent_pair = field.get("bytes_per_latent_pair").read_positive_or_zero();
    record.weights_bytes = field.get("weights_bytes").read_whole(0, kMaxInt64);
    if (const auto tiles = field.find_value("tiles")) record.tiles = read_tiles(*tiles);
    return record;
}

}  // namespace mutoscope
