#include "pipeline.h"

#include <algorithm>
#include <random>

#include "decoder.h"
#include "error.h"
#include "guidance.h"
#include "noise.h"
#include "sampler.h"
#include "text.h"
#include "windowed_denoiser.h"

namespace mutoscope {
namespace {

bool is_given(const PromptInput &prompt) { return prompt.text || !prompt.arrays.empty(); }

uint64_t draw_seed() { return std::random_device()(); }

}  // namespace

Pipeline::Use::Use(Pipeline &pipeline) : pipeline_(pipeline) {
    const std::lock_guard<std::mutex> lock(pipeline.mutex_);
    if (pipeline.is_busy_) {
        throw Error(MUTOSCOPE_ERROR_BUSY,
                    "the pipeline is in use: wait for the other call, or open another pipeline");
    }
    pipeline.is_busy_ = true;
    pipeline.is_cancelled_ = false;
}

Pipeline::Use::~Use() {
    const std::lock_guard<std::mutex> lock(pipeline_.mutex_);
    pipeline_.is_busy_ = false;
}

Pipeline::Pipeline(const std::string &bundle_path, const PipelineOptions &options)
    : options_(options),
      bundle_(Bundle::open(bundle_path)),
      components_(bundle_, onnxruntime_, options.engine, options.variant),
      conditions_(bundle_, components_) {}

void Pipeline::load() {
    if (options_.engine.low_memory) return;
    Timings timings;
    for (const auto &[source, record] : bundle_.manifest().tokenizers) {
        conditions_.load_tokenizer(source, timings);
    }
    const std::vector<std::string> denoisers = make_settings(bundle_, {}).plan.denoisers;
    for (const auto &[name, component] : bundle_.manifest().components) {
        const bool is_idle =
            is_denoiser(name) && std::count(denoisers.begin(), denoisers.end(), name) == 0;
        if (name != kPreviewDecoder && !is_idle) components_.load(name, timings);
    }
}

std::vector<Token> Pipeline::tokenize(const char *tokenizer, std::string_view text) {
    const auto &tokenizers = bundle_.manifest().tokenizers;
    if (tokenizers.empty()) {
        throw ParameterError("this bundle has no tokenizer: it makes a video of an image alone");
    }
    Timings timings;
    const std::string source = tokenizer == nullptr ? tokenizers.front().first : tokenizer;
    return conditions_.load_tokenizer(source, timings).encode(text);
}

Generation Pipeline::prepare(const Request &request, Timings &timings) {
    Generation generation;
    {
        const Stopwatch stopwatch(timings.seconds_load);
        generation.settings = make_settings(bundle_, request.wishes);
    }
    const Settings &settings = generation.settings;
    generation.seed = request.seed ? *request.seed : draw_seed();
    generation.passes = read_prompts(request, settings, timings);
    const std::string passes =
        request.guidance_passes.value_or(bundle_.manifest().defaults.guidance_passes);
    for (const std::string &name : generation.settings.plan.denoisers) {
        generation.is_batched = read_guidance_passes(bundle_.find_component(name), passes);
    }
    generation.values = make_values(bundle_.manifest(), settings, request.picture);
    generation.latents = request.latents;
    const auto &decoder = bundle_.find_component(kVaeDecoder).decoder;
    generation.decode_plan = plan_decode(decoder ? &*decoder : nullptr, settings.latents_shape,
                                         bundle_.manifest().latents.vae_scale_factor_spatial,
                                         options_.memory_limit_bytes);
    return generation;
}

// What is known of the prompt and, with guidance, of the negative prompt.
std::vector<Values> Pipeline::read_prompts(const Request &request, const Settings &settings,
                                           Timings &timings) {
    const Manifest &manifest = bundle_.manifest();
    std::vector<Values> passes{conditions_.read_prompt("prompt", request.prompt, timings)};
    if (conditions_.takes_prompt() && !is_given(request.prompt)) {
        throw ParameterError("prompt is missing: give prompt or prompt_embeds");
    }
    PromptInput negative = request.negative_prompt;
    if (!settings.uses_guidance()) {
        if ((negative.text && !negative.text->empty()) || !negative.arrays.empty()) {
            const auto refusal = find_guidance_refusal(bundle_, settings);
            if (refusal) throw ParameterError("negative_prompt has no effect; " + *refusal);
            throw ParameterError("negative_prompt has no effect at guidance_scale " +
                                 format_number(settings.guidance_scale) +
                                 ": leave it out, or use a guidance_scale above 1");
        }
        return passes;
    }
    if (!is_given(negative) && conditions_.takes_prompt() &&
        !manifest.force_zeros_for_empty_prompt) {
        negative.text = manifest.defaults.negative_prompt;
    }
    passes.push_back(conditions_.read_prompt("negative_prompt", negative, timings));
    return passes;
}

void Pipeline::check_cancelled(bool goes_on, const std::string &where) const {
    if (!goes_on) throw Error(MUTOSCOPE_ERROR_CANCELLED, "cancelled after " + where);
    if (is_cancelled_) throw Error(MUTOSCOPE_ERROR_CANCELLED, "cancelled by mutoscope_cancel");
}

void Pipeline::cancel() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!is_busy_) return;
    is_cancelled_ = true;
    if (control_ != nullptr) control_->stop();
}

void Pipeline::set_control(RunControl *control) {
    const std::lock_guard<std::mutex> lock(mutex_);
    control_ = control;
}

void Pipeline::generate(Generation generation, const Callbacks &callbacks, Timings &timings) {
    RunControl control(onnxruntime_, options_.engine);
    struct Running {
        Pipeline &pipeline;
        ~Running() {
            pipeline.set_control(nullptr);
            // After a failure too, nothing stays that was to be released.
            if (pipeline.options_.engine.low_memory) pipeline.unload();
        }
    } const running{*this};
    set_control(&control);
    // A cancel that came before found no run to stop.
    check_cancelled(true, "");
    try {
        run_components(generation, callbacks, {control, timings});
    } catch (const Error &error) {
        // onnxruntime calls it a failure when it is told to stop.
        if (error.status() == MUTOSCOPE_ERROR_ENGINE) check_cancelled(true, "");
        throw;
    }
}

void Pipeline::run_components(Generation &generation, const Callbacks &callbacks,
                              const RunContext &context) {
    const Settings &settings = generation.settings;
    const auto report = [&](int stage, const char *part, int done, int total) {
        check_cancelled(
            callbacks.on_progress(stage, done, total, nullptr),
            std::string(part) + " " + std::to_string(done) + " of " + std::to_string(total));
    };
    // One stream, as in diffusers: the noise of the encoders, of the start, of the steps.
    NoiseGenerator generator(generation.seed);
    conditions_.encode(
        generation.passes, generation.values, generator, context,
        [&](int done, int total) { report(MUTOSCOPE_STAGE_ENCODING, "encoder", done, total); });
    const Array clean = run_denoisers(generation, generator, callbacks, context);
    const DecodeCallbacks decoding{
        [&](int done, int total) { report(MUTOSCOPE_STAGE_DECODING, "run", done, total); },
        [&](int frame_index, const uint8_t *pixels) {
            bool goes_on = false;
            {
                const Stopwatch stopwatch(context.timings.seconds_output);
                goes_on = callbacks.on_frame(frame_index, pixels);
            }
            check_cancelled(goes_on, "frame " + std::to_string(frame_index + 1));
        }};
    decode_latents(bundle_, components_, clean, generation.decode_plan, settings.frames_shape(),
                   decoding, context);
}

// Start noise, unless the caller gave some.
Array Pipeline::make_latents(const Generation &generation, NoiseGenerator &generator) const {
    if (generation.latents) return *generation.latents;
    const Settings &settings = generation.settings;
    const Array latents = Array::make(DType::float32, settings.latents_shape);
    generator.fill_latents(latents, bundle_.manifest().latents.start_noise_frames_first);
    shuffle_start_noise(latents, settings.windows, generator);
    return latents;
}

Array Pipeline::run_denoisers(const Generation &generation, NoiseGenerator &generator,
                              const Callbacks &callbacks, const RunContext &context) {
    Timings &timings = context.timings;
    const Settings &settings = generation.settings;
    const auto sum_inner = [&] { return timings.seconds_load + timings.seconds_denoiser; };
    const double spent = sum_inner();
    const int num_rows = static_cast<int>(settings.table.rows.size());
    Array clean;
    {
        const Stopwatch stopwatch(timings.seconds_sampler);
        GuidedDenoiser denoiser(bundle_, components_, generation.settings.plan, generation.passes,
                                settings.denoised_shape(), generation.is_batched, context);
        WindowedDenoiser predict(denoiser, settings.windows, settings.latents_shape,
                                 settings.frame_guidance());
        const bool frames_first = bundle_.manifest().latents.step_noise_frames_first;
        clean = denoise(
            make_latents(generation, generator), settings.table, std::ref(predict),
            [&](const Array &noise) { generator.fill_latents(noise, frames_first); },
            [&](size_t step_index, const Array &now) {
                const int done = static_cast<int>(step_index) + 1;
                check_cancelled(
                    callbacks.on_progress(MUTOSCOPE_STAGE_DENOISING, done, num_rows, &now),
                    "step " + std::to_string(done) + " of " + std::to_string(num_rows));
            });
    }
    timings.seconds_sampler -= sum_inner() - spent;
    for (const std::string &name : generation.settings.plan.denoisers) components_.release(name);
    return clean;
}

}  // namespace mutoscope
