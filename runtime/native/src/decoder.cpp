#include "decoder.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "error.h"
#include "text.h"
#include "tiled_decoding.h"

namespace mutoscope {
namespace {

// Frames `first` to `first + count` of latents, float32 [1, C, count, h, w].
Array cut_frames(const Array &latents, int64_t first, int64_t count) {
    const Shape &shape = latents.shape();
    const Array part = Array::make(DType::float32, {1, shape[1], count, shape[3], shape[4]});
    const size_t plane = static_cast<size_t>(shape[3] * shape[4]);
    for (int64_t channel = 0; channel < shape[1]; ++channel) {
        std::memcpy(part.as<float>() + channel * count * plane,
                    latents.as<float>() + (channel * shape[2] + first) * plane,
                    count * plane * sizeof(float));
    }
    return part;
}

// Raises EngineError unless the decoder returned uint8 [1, count, height, width, 3].
void check_frames(const Array &frames, const Shape &frames_shape, int64_t count) {
    const Shape wanted{1, count, frames_shape[1], frames_shape[2], 3};
    if (frames.dtype() == DType::uint8 && frames.shape() == wanted) return;
    throw EngineError(std::string("vae_decoder returned ") + get_dtype_name(frames.dtype()) +
                      format_shape(frames.shape()) + "; a bundle's decoder returns uint8 " +
                      format_shape(wanted) + " here: export again");
}

// Runs a graph of tiles, which it keeps open.
RunGraph open_tile_graph(const Components &components, const std::string &path,
                         const RunContext &context) {
    const std::shared_ptr<Session> session = components.open_tile_graph(path);
    return [session, &context](const NamedArrays &feeds) {
        return session->run(feeds, {}, context.control);
    };
}

}  // namespace

void decode_latents(const Bundle &bundle, Components &components, const Array &latents,
                    const DecodePlan &plan, const Shape &frames_shape,
                    const DecodeCallbacks &callbacks, const RunContext &context) {
    const ComponentRecord &component = bundle.find_component(kVaeDecoder);
    const auto &decoder = component.decoder;
    const TilesRecord *tiles =
        plan.tile_height && decoder && decoder->tiles ? &*decoder->tiles : nullptr;
    const int64_t num_latent_frames = latents.shape()[2];
    const auto num_runs =
        static_cast<int>(count_runs(plan, decoder ? &*decoder : nullptr, latents.shape()));
    int num_done = 0;
    const auto count_run = [&] { callbacks.on_run(++num_done, num_runs); };
    if (tiles != nullptr) {
        // The whole decoder may be in memory from an earlier call; tiles read its weights.
        components.unload(kVaeDecoder);
        bundle.load_graph(kVaeDecoder, component.choose_variant("float32"), false);
    }
    int frame_index = 0;
    for (int64_t start = 0; start < num_latent_frames; start += plan.frames_per_chunk) {
        const int64_t count = std::min<int64_t>(plan.frames_per_chunk, num_latent_frames - start);
        const Array part = cut_frames(latents, start, count);
        // Where frames may not be decoded apart, one chunk is the whole clip.
        const int64_t num_frames = count == num_latent_frames ? frames_shape[0] : count;
        Array frames;
        if (tiles != nullptr) {
            const Stopwatch stopwatch(context.timings.seconds_vae_decoder);
            frames = Array::make(DType::uint8, {1, 1, frames_shape[1], frames_shape[2], 3});
            decode_in_tiles(
                [&](const std::string &path) { return open_tile_graph(components, path, context); },
                part, *tiles, *plan.tile_height, count_run, frames.as<uint8_t>(), frames.bytes());
        } else {
            const NamedArrays outputs = components.run(kVaeDecoder, {{kLatents, part}}, context);
            frames = *find(outputs, component.outputs.front().first);
            count_run();
        }
        check_frames(frames, frames_shape, num_frames);
        const size_t frame_bytes = frames.bytes() / static_cast<size_t>(num_frames);
        for (int64_t i = 0; i < num_frames; ++i) {
            callbacks.on_frame(frame_index++, frames.as<uint8_t>() + i * frame_bytes);
        }
    }
    components.release(kVaeDecoder);
}

}  // namespace mutoscope
