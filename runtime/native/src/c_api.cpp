// The functions of mutoscope.h.
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "answers.h"
#include "boundary.h"
#include "error.h"
#include "mutoscope.h"
#include "pipeline.h"
#include "structs.h"
#include "text.h"

using mutoscope::Error;
using mutoscope::guard;
using mutoscope::Pipeline;

struct mutoscope_pipeline {
    mutoscope_pipeline(const char *bundle_path, const mutoscope::PipelineOptions &options)
        : pipeline(bundle_path, options) {}

    Pipeline pipeline;
    // What is handed out: pointers into the manifest, and into `steps`.
    std::vector<const char *> lists[MUTOSCOPE_LIST_PROMPT_EMBEDS + 1];
    std::map<std::string, std::vector<int32_t>> steps;
};

namespace {

void check_argument(bool is_right, const char *problem) {
    if (!is_right) throw Error(MUTOSCOPE_ERROR_ARGUMENT, problem);
}

void check_pipeline(const mutoscope_pipeline *pipeline) {
    check_argument(pipeline != nullptr, "pipeline is NULL");
}

// An out parameter is checked before the work, and written after it.
template <typename T>
void check_out(const char *name, const T *given) {
    const size_t struct_size = given == nullptr ? 0 : given->struct_size;
    mutoscope::check_struct(name, given, struct_size);
    mutoscope::check_tail(name, given, struct_size, sizeof(T));
}

void check_room(const uint8_t *frames, uint64_t frames_bytes, const mutoscope::Settings &settings) {
    const uint64_t needed = mutoscope::count_elements(settings.frames_shape());
    if (frames == nullptr || frames_bytes >= needed) return;
    throw Error(MUTOSCOPE_ERROR_ARGUMENT, "frames_bytes is " + std::to_string(frames_bytes) +
                                              "; the frames take " + std::to_string(needed) +
                                              ": ask mutoscope_resolve");
}

mutoscope_generate_params default_generate_params() {
    mutoscope_generate_params params{};
    params.seed = MUTOSCOPE_SEED_RANDOM;
    params.guidance_passes = MUTOSCOPE_GUIDANCE_DEFAULT;
    return params;
}

// Adds the names that are not in the list yet.
template <typename T>
void add_names(std::vector<const char *> &list, const mutoscope::Ordered<T> &values) {
    std::set<std::string_view> known(list.begin(), list.end());
    for (const auto &entry : values) {
        const std::string &name = entry.first;
        if (name.find('\0') != name.npos) {
            throw mutoscope::BundleError("manifest.json has a name with a zero byte, " +
                                         mutoscope::quote(name) + ": export again");
        }
        if (known.insert(name).second) list.push_back(name.c_str());
    }
}

void fill_lists(mutoscope_pipeline &handle) {
    const mutoscope::Manifest &manifest = handle.pipeline.bundle().manifest();
    add_names(handle.lists[MUTOSCOPE_LIST_SCHEDULERS], manifest.schedules);
    add_names(handle.lists[MUTOSCOPE_LIST_COMPONENTS], manifest.components);
    add_names(handle.lists[MUTOSCOPE_LIST_CONDITIONS], manifest.conditions);
    add_names(handle.lists[MUTOSCOPE_LIST_TOKENIZERS], manifest.tokenizers);
    add_names(handle.lists[MUTOSCOPE_LIST_PROMPT_EMBEDS],
              handle.pipeline.conditions().prompt_embeds());
    for (const auto &[name, component] : manifest.components) {
        add_names(handle.lists[MUTOSCOPE_LIST_VARIANTS], component.variants);
    }
    for (const auto &[scheduler, tables] : manifest.schedules) {
        handle.steps[scheduler] = mutoscope::list_steps(tables);
    }
}

// What a callback returned, or that it threw, which C callers cannot.
template <typename Callback, typename Shown>
bool call(Callback callback, const Shown &shown, void *user_data) {
    try {
        return callback(&shown, user_data) == MUTOSCOPE_CONTINUE;
    } catch (...) {
        throw Error(MUTOSCOPE_ERROR_ARGUMENT,
                    "a callback threw an exception: return MUTOSCOPE_CANCEL instead");
    }
}

bool call_progress(const mutoscope_generate_params &params, int stage, int num_done, int num_in_all,
                   const mutoscope::Array *latents, double seconds) {
    if (params.progress_callback == nullptr) return true;
    mutoscope_progress progress{};
    progress.struct_size = sizeof progress;
    progress.stage = stage;
    progress.num_done = num_done;
    progress.num_in_all = num_in_all;
    progress.seconds_since_start = seconds;
    progress.latents = latents == nullptr ? nullptr : latents->as<float>();
    progress.latents_shape = latents == nullptr ? nullptr : latents->shape().data();
    return call(params.progress_callback, progress, params.progress_user_data);
}

bool call_frame(const mutoscope_generate_params &params, const mutoscope::Settings &settings,
                int frame_index, const uint8_t *pixels) {
    if (params.frame_callback == nullptr) return true;
    mutoscope_frame frame{};
    frame.struct_size = sizeof frame;
    frame.frame_index = frame_index;
    frame.num_frames = settings.num_frames;
    frame.height = settings.height;
    frame.width = settings.width;
    frame.row_bytes = 3 * settings.width;
    frame.pixels = pixels;
    return call(params.frame_callback, frame, params.frame_user_data);
}

// The arguments must outlive what is returned.
mutoscope::Callbacks make_callbacks(const mutoscope_generate_params &params, uint8_t *frames,
                                    const mutoscope::Settings &settings,
                                    const mutoscope::Stopwatch &stopwatch) {
    const size_t frame_bytes = size_t{3} * settings.height * settings.width;
    return {[&](int stage, int num_done, int num_in_all, const mutoscope::Array *latents) {
                return call_progress(params, stage, num_done, num_in_all, latents,
                                     stopwatch.elapsed());
            },
            [&params, &settings, frames, frame_bytes](int frame_index, const uint8_t *pixels) {
                if (frames != nullptr) {
                    std::memcpy(frames + frame_index * frame_bytes, pixels, frame_bytes);
                }
                return call_frame(params, settings, frame_index, pixels);
            }};
}

}  // namespace

extern "C" {

const char *mutoscope_version(void) { return MUTOSCOPE_VERSION; }

uint32_t mutoscope_abi_version(void) { return MUTOSCOPE_ABI_VERSION; }

const char *mutoscope_status_name(int32_t status) {
    switch (status) {
        case MUTOSCOPE_OK:
            return "MUTOSCOPE_OK";
        case MUTOSCOPE_ERROR_ARGUMENT:
            return "MUTOSCOPE_ERROR_ARGUMENT";
        case MUTOSCOPE_ERROR_PARAMETER:
            return "MUTOSCOPE_ERROR_PARAMETER";
        case MUTOSCOPE_ERROR_BUNDLE:
            return "MUTOSCOPE_ERROR_BUNDLE";
        case MUTOSCOPE_ERROR_SCHEDULE:
            return "MUTOSCOPE_ERROR_SCHEDULE";
        case MUTOSCOPE_ERROR_ENGINE:
            return "MUTOSCOPE_ERROR_ENGINE";
        case MUTOSCOPE_ERROR_EXECUTION_PROVIDER:
            return "MUTOSCOPE_ERROR_EXECUTION_PROVIDER";
        case MUTOSCOPE_ERROR_CANCELLED:
            return "MUTOSCOPE_ERROR_CANCELLED";
        case MUTOSCOPE_ERROR_OUT_OF_MEMORY:
            return "MUTOSCOPE_ERROR_OUT_OF_MEMORY";
        case MUTOSCOPE_ERROR_BUSY:
            return "MUTOSCOPE_ERROR_BUSY";
        case MUTOSCOPE_ERROR_INTERNAL:
            return "MUTOSCOPE_ERROR_INTERNAL";
        default:
            return "MUTOSCOPE_UNKNOWN";
    }
}

const char *mutoscope_last_error(void) { return mutoscope::get_last_error(); }

int32_t mutoscope_pipeline_params_init(mutoscope_pipeline_params *params, size_t struct_size) {
    return guard([&] {
        mutoscope::init_struct("mutoscope_pipeline_params", params, struct_size,
                               mutoscope_pipeline_params{});
    });
}

int32_t mutoscope_generate_params_init(mutoscope_generate_params *params, size_t struct_size) {
    return guard([&] {
        mutoscope::init_struct("mutoscope_generate_params", params, struct_size,
                               default_generate_params());
    });
}

int32_t mutoscope_bundle_info_init(mutoscope_bundle_info *info, size_t struct_size) {
    return guard([&] {
        mutoscope::init_struct("mutoscope_bundle_info", info, struct_size, mutoscope_bundle_info{});
    });
}

int32_t mutoscope_condition_info_init(mutoscope_condition_info *info, size_t struct_size) {
    return guard([&] {
        mutoscope::init_struct("mutoscope_condition_info", info, struct_size,
                               mutoscope_condition_info{});
    });
}

int32_t mutoscope_settings_init(mutoscope_settings *settings, size_t struct_size) {
    return guard([&] {
        mutoscope::init_struct("mutoscope_settings", settings, struct_size, mutoscope_settings{});
    });
}

int32_t mutoscope_result_init(mutoscope_result *result, size_t struct_size) {
    return guard([&] {
        mutoscope::init_struct("mutoscope_result", result, struct_size, mutoscope_result{});
    });
}

int32_t mutoscope_pipeline_open(mutoscope_pipeline **pipeline, const char *bundle_path,
                                const mutoscope_pipeline_params *params) {
    return guard([&] {
        check_argument(pipeline != nullptr, "pipeline is NULL");
        check_argument(bundle_path != nullptr, "bundle_path is NULL");
        mutoscope_pipeline_params known{};
        if (params != nullptr) {
            known = mutoscope::read_struct("mutoscope_pipeline_params", params, known);
        }
        auto handle =
            std::make_unique<mutoscope_pipeline>(bundle_path, mutoscope::read_options(known));
        fill_lists(*handle);
        *pipeline = handle.release();
    });
}

void mutoscope_pipeline_close(mutoscope_pipeline *pipeline) { delete pipeline; }

int32_t mutoscope_pipeline_load(mutoscope_pipeline *pipeline) {
    return guard([&] {
        check_pipeline(pipeline);
        const Pipeline::Use use(pipeline->pipeline);
        pipeline->pipeline.load();
    });
}

int32_t mutoscope_pipeline_unload(mutoscope_pipeline *pipeline) {
    return guard([&] {
        check_pipeline(pipeline);
        const Pipeline::Use use(pipeline->pipeline);
        pipeline->pipeline.unload();
    });
}

int32_t mutoscope_pipeline_info(mutoscope_bundle_info *info, const mutoscope_pipeline *pipeline) {
    return guard([&] {
        check_pipeline(pipeline);
        check_out("mutoscope_bundle_info", info);
        mutoscope::write_struct(info, mutoscope::make_bundle_info(pipeline->pipeline));
    });
}

int32_t mutoscope_pipeline_list(const char *const **names, size_t *count,
                                const mutoscope_pipeline *pipeline, int32_t list) {
    return guard([&] {
        check_pipeline(pipeline);
        check_argument(names != nullptr && count != nullptr, "names or count is NULL");
        check_argument(list >= 0 && list < static_cast<int32_t>(std::size(pipeline->lists)),
                       "list is none of MUTOSCOPE_LIST_SCHEDULERS and so on");
        *names = pipeline->lists[list].data();
        *count = pipeline->lists[list].size();
    });
}

int32_t mutoscope_pipeline_steps(const int32_t **steps, size_t *count,
                                 const mutoscope_pipeline *pipeline, const char *scheduler) {
    return guard([&] {
        check_pipeline(pipeline);
        check_argument(steps != nullptr && count != nullptr, "steps or count is NULL");
        const mutoscope::Bundle &bundle = pipeline->pipeline.bundle();
        const std::string name = bundle.find_scheduler(
            scheduler == nullptr ? bundle.manifest().defaults.scheduler : scheduler);
        const std::vector<int32_t> &found = pipeline->steps.at(name);
        *steps = found.data();
        *count = found.size();
    });
}

int32_t mutoscope_pipeline_condition(mutoscope_condition_info *info,
                                     const mutoscope_pipeline *pipeline, const char *name) {
    return guard([&] {
        check_pipeline(pipeline);
        check_out("mutoscope_condition_info", info);
        check_argument(name != nullptr, "name is NULL");
        mutoscope::write_struct(
            info, mutoscope::make_condition_info(pipeline->pipeline.bundle().manifest(), name));
    });
}

int32_t mutoscope_pipeline_variant(const char **variant, const mutoscope_pipeline *pipeline,
                                   const char *component) {
    return guard([&] {
        check_pipeline(pipeline);
        check_argument(variant != nullptr && component != nullptr, "variant or component is NULL");
        *variant = pipeline->pipeline.components().find_variant(component).c_str();
    });
}

int32_t mutoscope_tokenize(int64_t *ids, size_t capacity, size_t *num_ids,
                           mutoscope_pipeline *pipeline, const char *tokenizer, const char *text,
                           size_t text_bytes) {
    return guard([&] {
        check_pipeline(pipeline);
        check_argument(num_ids != nullptr, "num_ids is NULL");
        check_argument(ids != nullptr || capacity == 0, "ids is NULL, and capacity is not 0");
        check_argument(text != nullptr || text_bytes == 0, "text is NULL");
        const Pipeline::Use use(pipeline->pipeline);
        const auto tokens =
            pipeline->pipeline.tokenize(tokenizer, std::string_view(text, text_bytes));
        *num_ids = tokens.size();
        for (size_t i = 0; tokens.size() <= capacity && i < tokens.size(); ++i) {
            ids[i] = tokens[i].id;
        }
    });
}

int32_t mutoscope_resolve(mutoscope_settings *settings, mutoscope_pipeline *pipeline,
                          const mutoscope_generate_params *params) {
    return guard([&] {
        check_pipeline(pipeline);
        check_out("mutoscope_settings", settings);
        const auto known =
            mutoscope::read_struct("mutoscope_generate_params", params, default_generate_params());
        const Pipeline::Use use(pipeline->pipeline);
        mutoscope::Timings timings;
        const mutoscope::Request request = mutoscope::read_request(known);
        const auto generation = pipeline->pipeline.prepare(request, timings);
        auto made = mutoscope::make_public_settings(pipeline->pipeline, generation);
        made.seed = request.seed.value_or(0);
        mutoscope::write_struct(settings, made);
    });
}

int32_t mutoscope_generate(mutoscope_result *result, uint8_t *frames, uint64_t frames_bytes,
                           mutoscope_pipeline *pipeline, const mutoscope_generate_params *params) {
    return guard([&] {
        check_pipeline(pipeline);
        if (result != nullptr) check_out("mutoscope_result", result);
        const auto known =
            mutoscope::read_struct("mutoscope_generate_params", params, default_generate_params());
        check_argument(frames != nullptr || known.frame_callback != nullptr,
                       "frames and frame_callback are both NULL: the video would go nowhere");
        const Pipeline::Use use(pipeline->pipeline);
        double seconds_total = 0;
        mutoscope::Timings timings;
        const mutoscope::Stopwatch stopwatch(seconds_total);
        const mutoscope::Generation generation =
            pipeline->pipeline.prepare(mutoscope::read_request(known), timings);
        check_room(frames, frames_bytes, generation.settings);
        const mutoscope::Callbacks callbacks =
            make_callbacks(known, frames, generation.settings, stopwatch);
        pipeline->pipeline.generate(generation, callbacks, timings);
        if (result == nullptr) return;
        mutoscope::write_struct(result,
                                mutoscope::make_result(generation, timings, stopwatch.elapsed()));
    });
}

int32_t mutoscope_cancel(mutoscope_pipeline *pipeline) {
    return guard([&] {
        check_pipeline(pipeline);
        pipeline->pipeline.cancel();
    });
}

}  // extern "C"
