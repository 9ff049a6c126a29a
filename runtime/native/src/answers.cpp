#include "answers.h"

#include "memory_figures.h"

namespace mutoscope {
namespace {

mutoscope_limit make_limit(const LimitRecord &record) {
    return {record.minimum, record.maximum.value_or(0), record.multiple, record.offset};
}

}  // namespace

mutoscope_bundle_info make_bundle_info(const Pipeline &pipeline) {
    const Manifest &manifest = pipeline.bundle().manifest();
    mutoscope_bundle_info info{};
    info.format_version = manifest.format_version;
    info.takes_prompt = pipeline.conditions().takes_prompt();
    info.takes_image = !manifest.images.empty();
    info.guidance = manifest.guidance;
    info.num_inference_steps = manifest.defaults.num_inference_steps;
    info.num_frames = manifest.defaults.num_frames;
    info.height = manifest.defaults.height;
    info.width = manifest.defaults.width;
    info.latents_channels = manifest.latents.channels;
    info.vae_scale_factor_spatial = manifest.latents.vae_scale_factor_spatial;
    info.vae_scale_factor_temporal = manifest.latents.vae_scale_factor_temporal;
    info.guidance_scale = manifest.guidance ? manifest.defaults.guidance_scale : 1;
    info.min_guidance_scale = manifest.defaults.min_guidance_scale.value_or(0);
    info.frame_rate = manifest.defaults.frame_rate;
    info.scheduler = manifest.defaults.scheduler.c_str();
    info.negative_prompt = manifest.defaults.negative_prompt.c_str();
    info.name = manifest.name.c_str();
    info.family = manifest.family.c_str();
    info.num_frames_limit = make_limit(manifest.limits.num_frames);
    info.height_limit = make_limit(manifest.limits.height);
    info.width_limit = make_limit(manifest.limits.width);
    info.takes_context_windows = can_have_windows(manifest);
    info.guidance_passes = manifest.defaults.guidance_passes == "batched"
                               ? MUTOSCOPE_GUIDANCE_BATCHED
                               : MUTOSCOPE_GUIDANCE_SEPARATE;
    return info;
}

mutoscope_condition_info make_condition_info(const Manifest &manifest, const std::string &name) {
    const size_t index = find_condition(manifest, name);
    const ConditionRecord &record = manifest.conditions[index].second;
    mutoscope_condition_info info{};
    info.index = static_cast<int32_t>(index);
    info.default_value = record.default_value;
    info.minimum = record.minimum;
    info.maximum = record.maximum;
    info.description = record.description.c_str();
    return info;
}

mutoscope_settings make_public_settings(const Pipeline &pipeline, const Generation &generation) {
    const Settings &settings = generation.settings;
    mutoscope_settings made{};
    made.num_frames = settings.num_frames;
    made.height = settings.height;
    made.width = settings.width;
    made.num_inference_steps = settings.num_inference_steps;
    made.uses_guidance = settings.uses_guidance();
    made.guidance_scale = settings.guidance_scale;
    made.min_guidance_scale = settings.min_guidance_scale.value_or(0);
    made.frame_rate = settings.frame_rate;
    for (const auto &[name, tables] : pipeline.bundle().manifest().schedules) {
        if (settings.scheduler == name) made.scheduler = name.c_str();
    }
    made.frames_bytes = count_elements(settings.frames_shape());
    made.guidance_passes =
        generation.is_batched ? MUTOSCOPE_GUIDANCE_BATCHED : MUTOSCOPE_GUIDANCE_SEPARATE;
    made.context_length = settings.windows.length;
    made.context_stride = settings.windows.stride;
    const int64_t num_windows = settings.windows.count(settings.latents_shape[2]);
    made.num_context_windows = static_cast<int32_t>(num_windows);
    for (const Row &row : settings.table.rows) {
        const bool is_guided = settings.uses_guidance() && row.guidance;
        ++made.num_rows;
        made.num_guided_rows += is_guided;
        const int num_runs = is_guided && !generation.is_batched ? 2 : 1;
        made.num_denoiser_runs += static_cast<uint64_t>(num_runs * num_windows);
    }
    return made;
}

mutoscope_result make_result(const Generation &generation, const Timings &timings,
                             double seconds_since_start) {
    mutoscope_result result{};
    result.num_frames = generation.settings.num_frames;
    result.height = generation.settings.height;
    result.width = generation.settings.width;
    result.frame_rate = generation.settings.frame_rate;
    result.seed = generation.seed;
    result.seconds_load = timings.seconds_load;
    result.seconds_text_encoder = timings.seconds_text_encoder;
    result.seconds_image_encoder = timings.seconds_image_encoder;
    result.seconds_vae_encoder = timings.seconds_vae_encoder;
    result.seconds_denoiser = timings.seconds_denoiser;
    result.seconds_sampler = timings.seconds_sampler;
    result.seconds_vae_decoder = timings.seconds_vae_decoder;
    result.seconds_other = timings.seconds_other;
    result.seconds_total = seconds_since_start - timings.seconds_output;
    result.seconds_output = timings.seconds_output;
    const MemoryFigures memory = read_memory_figures();
    result.resident_bytes = memory.resident_bytes;
    result.peak_resident_bytes = memory.peak_resident_bytes;
    return result;
}

}  // namespace mutoscope
