#include "pipeline.h"

#include <random>

#include "decoder.h"
#include "error.h"
#include "guidance.h"
#include "noise.h"
#include "sampler.h"
#include "text.h"

namespace mutoscope {
namespace {

bool is_given(const PromptInput &prompt) { return prompt.text || !prompt.arrays.empty(); }

uint64_t draw_seed() { return std::random_device()(); }

}  // namespace

Pipeline::Use::Use(Pipeline &pipeline) : pipeline_(pipeline) {
    if (pipeline.is_busy_.exchange(true)) {
        throw Error(MUTOSCOPE_ERROR_BUSY,
                    "the pipeline is in use: wait for the other call, or open another pipeline");
    }
}

Pipeline::Use::~Use() { pipeline_.is_busy_ = false; }

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
    for (const auto &[name, component] : bundle_.manifest().components) {
        if (name != kPreviewDecoder) components_.load(name, timings);
    }
}

std::vector<Token> Pipeline::tokenize(const std::string &tokenizer, std::string_view text) {
    const auto &tokenizers = bundle_.manifest().tokenizers;
    if (tokenizers.empty()) {
        throw ParameterError("this bundle has no tokenizer: it makes a video of an image alone");
    }
    Timings timings;
    return conditions_
        .load_tokenizer(tokenizer.empty() ? tokenizers.front().first : tokenizer, timings)
        .encode(text);
}

Generation Pipeline::prepare(const Request &request, Timings &timings) {
    Generation generation;
    generation.settings = make_settings(bundle_, request.wishes);
    generation.seed = request.seed ? *request.seed : draw_seed();
    generation.passes = read_prompts(request, generation.settings, timings);
    generation.is_batched = request.is_batched;
    if (request.is_batched) check_batched(bundle_.find_component(components_.denoiser()));
    check_picture(bundle_.manifest(), request.picture);
    generation.picture = request.picture;
    generation.latents = request.latents;
    const auto &decoder = bundle_.find_component(kVaeDecoder).decoder;
    generation.decode_plan = plan_decode(
        decoder ? &*decoder : nullptr, generation.settings.latents_shape,
        bundle_.manifest().latents.vae_scale_factor_spatial, options_.memory_limit_bytes);
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
    if (control_ == nullptr) return;
    is_cancelled_ = true;
    control_->stop();
}

void Pipeline::generate(Generation generation, const Callbacks &callbacks, Timings &timings) {
    RunControl control(onnxruntime_, options_.engine);
    const auto set_control = [&](RunControl *value) {
        const std::lock_guard<std::mutex> lock(mutex_);
        control_ = value;
        is_cancelled_ = false;
    };
    struct Running {
        const decltype(set_control) &set;
        ~Running() { set(nullptr); }
    } const running{set_control};
    set_control(&control);
    const RunContext context{control, timings};
    const Settings &settings = generation.settings;
    try {
        // One stream, as in diffusers: the noise of the encoders, of the start, of the steps.
        NoiseGenerator generator(generation.seed);
        std::vector<Values> &passes = generation.passes;
        conditions_.encode(
            passes, make_values(bundle_.manifest(), settings, generation.picture), generator,
            context, [&](int done, int total) {
                check_cancelled(
                    callbacks.on_progress(MUTOSCOPE_STAGE_ENCODING, done, total, nullptr),
                    "encoder " + std::to_string(done) + " of " + std::to_string(total));
            });
        const Array clean = run_denoiser(generation, passes, generator, callbacks, context);
        const DecodeCallbacks decoding{
            [&](int done, int total) {
                check_cancelled(
                    callbacks.on_progress(MUTOSCOPE_STAGE_DECODING, done, total, nullptr),
                    "run " + std::to_string(done) + " of " + std::to_string(total));
            },
            [&](int frame_index, const uint8_t *pixels) {
                check_cancelled(callbacks.on_frame(frame_index, pixels),
                                "frame " + std::to_string(frame_index + 1));
            }};
        decode_latents(bundle_, components_, clean, generation.decode_plan,
                       {settings.num_frames, settings.height, settings.width, 3}, decoding,
                       context);
    } catch (const Error &error) {
        // onnxruntime calls it a failure when it is told to stop.
        if (error.status() == MUTOSCOPE_ERROR_ENGINE) check_cancelled(true, "");
        throw;
    }
}

Array Pipeline::run_denoiser(const Generation &generation, const std::vector<Values> &passes,
                             NoiseGenerator &generator, const Callbacks &callbacks,
                             const RunContext &context) {
    Timings &timings = context.timings;
    const Settings &settings = generation.settings;
    const LatentsRecord &record = bundle_.manifest().latents;
    const ScheduleTable table = [&] {
        const Stopwatch stopwatch(timings.seconds_load);
        return bundle_.load_schedule(settings.scheduler, settings.num_inference_steps);
    }();
    const auto sum_inner = [&] { return timings.seconds_load + timings.seconds_denoiser; };
    const double spent = sum_inner();
    const int num_rows = static_cast<int>(table.rows.size());
    Array clean;
    {
        const Stopwatch stopwatch(timings.seconds_sampler);
        GuidedDenoiser predict(bundle_, components_, passes, settings.latents_shape,
                               settings.frame_guidance(), generation.is_batched, context);
        Array latents = Array::make(DType::float32, settings.latents_shape);
        if (generation.latents) {
            latents = *generation.latents;
        } else {
            generator.fill_latents(latents, record.start_noise_frames_first);
        }
        clean = denoise(
            latents, table, std::ref(predict),
            [&](const Array &noise) {
                generator.fill_latents(noise, record.step_noise_frames_first);
            },
            [&](size_t step_index, const Array &now) {
                const int done = static_cast<int>(step_index) + 1;
                check_cancelled(
                    callbacks.on_progress(MUTOSCOPE_STAGE_DENOISING, done, num_rows, &now),
                    "step " + std::to_string(done) + " of " + std::to_string(num_rows));
            });
    }
    timings.seconds_sampler -= sum_inner() - spent;
    components_.release(components_.denoiser());
    return clean;
}

}  // namespace mutoscope
