// The public header as a program uses it, for sanitizers and valgrind: every function, every
// status, and the recorded generations. argv: the folder of record_cases.py.
#include <cmath>
#include <exception>
#include <filesystem>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "cases.h"
#include "check.h"

using cases::Case;
using cases::OwnBundle;
using cases::Params;
using cases::Pipeline;

namespace {

std::string folder() { return test_arguments().at(0); }

Pipeline open_case(const std::string &name) {
    return cases::open(folder(), cases::find_case(folder(), name));
}

mutoscope_settings make_settings() {
    mutoscope_settings settings;
    mutoscope_settings_init(&settings, sizeof settings);
    return settings;
}

// The message of a call that failed with this status.
void check_failed(int32_t status, int32_t expected, const std::string &part, int line) {
    const std::string message = mutoscope_last_error();
    if (status != expected || message.find(part) == std::string::npos ||
        message.find('\n') != std::string::npos || message.empty()) {
        check::fail("api_test.cpp", line,
                    std::string(mutoscope_status_name(status)) + ": \"" + message + "\", not " +
                        mutoscope_status_name(expected) + " with \"" + part + "\"");
    }
}
#define CHECK_FAILED(call, status, part) check_failed(call, status, part, __LINE__)

struct Generated {
    int32_t status = 0;
    std::vector<uint8_t> frames;
    mutoscope_result result{};
};

Generated generate(const Pipeline &pipeline, const mutoscope_generate_params &params) {
    Generated made;
    mutoscope_settings settings = make_settings();
    mutoscope_result_init(&made.result, sizeof made.result);
    made.status = mutoscope_resolve(&settings, pipeline.get(), &params);
    if (made.status != MUTOSCOPE_OK) return made;
    made.frames.resize(settings.frames_bytes);
    made.status = mutoscope_generate(&made.result, made.frames.data(), made.frames.size(),
                                     pipeline.get(), &params);
    return made;
}

// Counts its calls, and cancels in one of them.
struct Counter {
    int num_calls = 0;
    int cancels_at = 0;
    std::vector<int> stages;
    std::vector<uint8_t> frames;
};

int32_t on_progress(const mutoscope_progress *progress, void *user_data) {
    auto &counter = *static_cast<Counter *>(user_data);
    counter.stages.push_back(progress->stage);
    if ((progress->stage == MUTOSCOPE_STAGE_DENOISING) != (progress->latents != nullptr)) {
        check::fail("on_progress", 0, "latents are shown while denoising, and only then");
    }
    return ++counter.num_calls == counter.cancels_at ? MUTOSCOPE_CANCEL : MUTOSCOPE_CONTINUE;
}

int32_t on_frame(const mutoscope_frame *frame, void *user_data) {
    auto &counter = *static_cast<Counter *>(user_data);
    CHECK_EQUAL(frame->frame_index, counter.num_calls);
    counter.frames.insert(counter.frames.end(), frame->pixels,
                          frame->pixels + size_t{3} * frame->height * frame->width);
    return ++counter.num_calls == counter.cancels_at ? MUTOSCOPE_CANCEL : MUTOSCOPE_CONTINUE;
}

template <typename Shown, typename Thrown>
int32_t throw_from(const Shown *, void *) {
    throw Thrown{};
}

int32_t open_path(const std::string &path) {
    mutoscope_pipeline *pipeline = nullptr;
    const int32_t status = mutoscope_pipeline_open(&pipeline, path.c_str(), nullptr);
    CHECK_EQUAL(pipeline != nullptr, status == MUTOSCOPE_OK);
    mutoscope_pipeline_close(pipeline);
    return status;
}

int32_t generate_path(const std::string &path) {
    mutoscope_pipeline *opened = nullptr;
    const int32_t status = mutoscope_pipeline_open(&opened, path.c_str(), nullptr);
    if (status != MUTOSCOPE_OK) return status;
    const Pipeline pipeline(opened);
    const Params params(folder(), cases::find_case(folder(), "plain"));
    return generate(pipeline, params.params).status;
}

}  // namespace

TEST(recorded_generations_are_those_of_python) {
    int num_cases = 0;
    for (const Case &given : cases::read_cases(folder())) {
        const Pipeline pipeline = cases::open(folder(), given);
        const Params params(folder(), given);
        const std::string expected =
            cases::read_file(folder() + "/" + given.at("name") + ".frames");
        // The second finds what the first loaded.
        for (int i = 0; i < 2; ++i) {
            const Generated made = generate(pipeline, params.params);
            if (made.status != MUTOSCOPE_OK || !cases::are_frames(made.frames, expected)) {
                check::fail(given.at("name").c_str(), i, mutoscope_last_error());
            }
        }
        ++num_cases;
    }
    CHECK(num_cases > 10);
}

TEST(a_result_says_what_was_made) {
    const Pipeline pipeline = open_case("plain");
    const Params params(folder(), cases::find_case(folder(), "plain"));
    const Generated made = generate(pipeline, params.params);
    CHECK_EQUAL(made.status, MUTOSCOPE_OK);
    CHECK_EQUAL(made.result.num_frames, 6);
    CHECK_EQUAL(made.result.height, 32);
    CHECK_EQUAL(made.result.width, 48);
    CHECK_EQUAL(made.result.seed, 7);
    CHECK_EQUAL(made.result.frame_rate, 8.0);
    CHECK(made.result.seconds_total > made.result.seconds_denoiser);
    CHECK(made.result.seconds_denoiser > 0);
    CHECK(made.result.peak_resident_bytes >= made.result.resident_bytes);
}

TEST(every_progress_callback_can_cancel) {
    const Pipeline pipeline = open_case("chunks");
    Params params(folder(), cases::find_case(folder(), "chunks"));
    Counter counter;
    params.params.progress_callback = on_progress;
    params.params.progress_user_data = &counter;
    const Generated whole = generate(pipeline, params.params);
    CHECK_EQUAL(whole.status, MUTOSCOPE_OK);
    const int num_calls = counter.num_calls;
    CHECK(num_calls >= 1 + 4 + 2);
    for (int i = 1; i <= num_calls; ++i) {
        counter = Counter{};
        counter.cancels_at = i;
        CHECK_FAILED(generate(pipeline, params.params).status, MUTOSCOPE_ERROR_CANCELLED,
                     "cancelled after");
        CHECK_EQUAL(counter.num_calls, i);
    }
    counter = Counter{};
    const Generated again = generate(pipeline, params.params);
    CHECK_EQUAL(again.status, MUTOSCOPE_OK);
    CHECK(again.frames == whole.frames);
}

TEST(every_frame_callback_sees_its_frame_and_can_cancel) {
    for (const char *name : {"plain", "chunks"}) {
        const Pipeline pipeline = open_case(name);
        Params params(folder(), cases::find_case(folder(), name));
        Counter counter;
        params.params.frame_callback = on_frame;
        params.params.frame_user_data = &counter;
        const Generated whole = generate(pipeline, params.params);
        CHECK_EQUAL(whole.status, MUTOSCOPE_OK);
        CHECK(counter.frames == whole.frames);
        counter = Counter{};
        CHECK_EQUAL(mutoscope_generate(nullptr, nullptr, 0, pipeline.get(), &params.params),
                    MUTOSCOPE_OK);
        CHECK(counter.frames == whole.frames);
        for (int i = 1; i <= 6; ++i) {
            counter = Counter{};
            counter.cancels_at = i;
            CHECK_FAILED(generate(pipeline, params.params).status, MUTOSCOPE_ERROR_CANCELLED,
                         "cancelled after frame");
            CHECK_EQUAL(counter.num_calls, i);
        }
    }
}

TEST(a_callback_must_not_generate) {
    struct Again {
        const Pipeline *pipeline;
        Params *params;
        int32_t status;
    };
    const Pipeline pipeline = open_case("plain");
    Params params(folder(), cases::find_case(folder(), "plain"));
    Params inner(folder(), cases::find_case(folder(), "plain"));
    Again again{&pipeline, &inner, 0};
    params.params.progress_user_data = &again;
    params.params.progress_callback = [](const mutoscope_progress *, void *user_data) -> int32_t {
        auto &data = *static_cast<Again *>(user_data);
        data.status = generate(*data.pipeline, data.params->params).status;
        return MUTOSCOPE_CONTINUE;
    };
    CHECK_EQUAL(generate(pipeline, params.params).status, MUTOSCOPE_OK);
    CHECK_EQUAL(again.status, MUTOSCOPE_ERROR_BUSY);
}

TEST(a_callback_that_throws_cancels) {
    const Pipeline pipeline = open_case("plain");
    Params params(folder(), cases::find_case(folder(), "plain"));
    const auto check = [&] {
        CHECK_FAILED(generate(pipeline, params.params).status, MUTOSCOPE_ERROR_ARGUMENT,
                     "a callback threw an exception");
    };
    for (const auto callback :
         {throw_from<mutoscope_progress, std::exception>,
          throw_from<mutoscope_progress, std::bad_alloc>, throw_from<mutoscope_progress, int>}) {
        params.params.progress_callback = callback;
        check();
    }
    params.params.progress_callback = nullptr;
    params.params.frame_callback = throw_from<mutoscope_frame, std::exception>;
    check();
    params.params.frame_callback = nullptr;
    CHECK_EQUAL(generate(pipeline, params.params).status, MUTOSCOPE_OK);
}

TEST(questions_are_answered) {
    const Pipeline pipeline = open_case("plain");
    mutoscope_bundle_info info;
    mutoscope_bundle_info_init(&info, sizeof info);
    CHECK_EQUAL(mutoscope_pipeline_info(&info, pipeline.get()), MUTOSCOPE_OK);
    CHECK_EQUAL(info.name, "hand-made");
    CHECK_EQUAL(info.scheduler, "ddim");
    CHECK_EQUAL(info.height_limit.multiple, 16);
    for (int32_t list = MUTOSCOPE_LIST_SCHEDULERS; list <= MUTOSCOPE_LIST_PROMPT_EMBEDS; ++list) {
        const char *const *names = nullptr;
        size_t count = 0;
        CHECK_EQUAL(mutoscope_pipeline_list(&names, &count, pipeline.get(), list), MUTOSCOPE_OK);
        CHECK(count > 0);
        for (size_t i = 0; i < count; ++i) CHECK(std::string(names[i]) != "");
    }
    const int32_t *steps = nullptr;
    size_t count = 0;
    CHECK_EQUAL(mutoscope_pipeline_steps(&steps, &count, pipeline.get(), "DDIM"), MUTOSCOPE_OK);
    CHECK_EQUAL(std::vector<int32_t>(steps, steps + count), std::vector<int32_t>({1, 2, 3, 4, 8}));
    mutoscope_condition_info condition;
    mutoscope_condition_info_init(&condition, sizeof condition);
    CHECK_EQUAL(mutoscope_pipeline_condition(&condition, pipeline.get(), "strength"), MUTOSCOPE_OK);
    CHECK_EQUAL(condition.maximum, 10.0);
    const char *variant = nullptr;
    CHECK_EQUAL(mutoscope_pipeline_variant(&variant, pipeline.get(), "unet"), MUTOSCOPE_OK);
    CHECK_EQUAL(variant, "float32");
    int64_t ids[8] = {};
    CHECK_EQUAL(mutoscope_tokenize(ids, 8, &count, pipeline.get(), nullptr, "a red", 5),
                MUTOSCOPE_OK);
    CHECK_EQUAL(count, 4);
    CHECK_EQUAL(ids[0], 620);
    CHECK_EQUAL(ids[3], 621);
    CHECK_EQUAL(mutoscope_pipeline_load(pipeline.get()), MUTOSCOPE_OK);
    CHECK_EQUAL(mutoscope_pipeline_unload(pipeline.get()), MUTOSCOPE_OK);
    CHECK_EQUAL(mutoscope_cancel(pipeline.get()), MUTOSCOPE_OK);
}

TEST(a_wrong_value_is_refused_with_a_way_out) {
    const Pipeline pipeline = open_case("plain");
    const auto check = [&](const char *part,
                           const std::function<void(mutoscope_generate_params &)> &change) {
        Params params(folder(), cases::find_case(folder(), "plain"));
        change(params.params);
        CHECK_FAILED(generate(pipeline, params.params).status, MUTOSCOPE_ERROR_PARAMETER, part);
    };
    const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
    using Given = mutoscope_generate_params;
    check("use 32 or 48", [](Given &p) { p.height = 40; });
    check("use 256", [](Given &p) { p.width = std::numeric_limits<int32_t>::max(); });
    check("use 16", [](Given &p) { p.width = std::numeric_limits<int32_t>::min(); });
    check("use 6", [](Given &p) { p.context_length = 33; });
    check("use 8", [](Given &p) { p.num_inference_steps = 60; });
    check("must be finite", [&](Given &p) { p.guidance_scale = nan; });
    check("must be finite", [&](Given &p) { p.min_guidance_scale = -infinity; });
    check("must be finite", [&](Given &p) { p.frame_rate = infinity; });
    check("use 1 for no guidance", [](Given &p) { p.guidance_scale = 1e-300; });
    check("'unipc' is not in", [](Given &p) { p.scheduler = "unipc"; });
    check("is not in this bundle", [](Given &p) { p.scheduler = "\xff\xfe"; });
    check("prompt is missing", [](Given &p) { p.prompt = nullptr; });
    check("not valid UTF-8", [](Given &p) { p.prompt = "a \xed\xa0\x80"; });
    check("not valid UTF-8", [](Given &p) { p.negative_prompt = "\xc3"; });
    check("shorten it", [](Given &p) { p.prompt = "a a a a a a a a a a a a a a a a a a"; });
    check("has no effect", [](Given &p) {
        p.guidance_scale = 1;
        p.negative_prompt = "a";
    });
    const mutoscope_number unknown{"weakness", 1}, large{"strength", 11};
    check("use some of strength", [&](Given &p) {
        p.conditions = &unknown;
        p.num_conditions = 1;
    });
    check("takes 0 to 10", [&](Given &p) {
        p.conditions = &large;
        p.num_conditions = 1;
    });
}

TEST(a_bad_bundle_is_refused) {
    CHECK_FAILED(open_path(folder() + "/nothing"), MUTOSCOPE_ERROR_BUNDLE, "does not exist");
    CHECK_FAILED(open_path(folder()), MUTOSCOPE_ERROR_BUNDLE, "has no manifest.json");
    CHECK_FAILED(open_path(folder() + "/cases.txt"), MUTOSCOPE_ERROR_BUNDLE, "is a file");
    const auto check = [](const char *old, const char *now, const char *part) {
        const OwnBundle bundle(folder());
        bundle.replace("manifest.json", old, now);
        CHECK_FAILED(open_path(bundle.path()), MUTOSCOPE_ERROR_BUNDLE, part);
    };
    check("\"format_version\": 1", "\"format_version\": 9", "has format_version 9");
    check("{", "[", "is not valid JSON");
    check("\"latents\": {", "\"latents\": 3, \"old\": {", "latents must be an object");
    check("unet/model.onnx", "../secret", "is not inside the bundle");
    check("\"source\": \"timestep\"", "\"source\": \"motion\"", "does not know");
    const std::string manifest = cases::read_file(folder() + "/text/manifest.json");
    for (size_t length = 0; length < manifest.size(); length += 97) {
        const OwnBundle bundle(folder());
        cases::write_file(bundle.path("manifest.json"), manifest.substr(0, length));
        CHECK_FAILED(open_path(bundle.path()), MUTOSCOPE_ERROR_BUNDLE, "is not valid JSON");
    }
}

TEST(a_bad_file_is_refused_when_it_is_read) {
    for (const char *name : {"unet/model.onnx", "vae_decoder/model.onnx", "text_encoder/model.onnx",
                             "schedules/ddim_4.json", "tokenizer/tokenizer.json"}) {
        const OwnBundle bundle(folder());
        std::string data = cases::read_file(bundle.path(name));
        data[data.size() / 2] ^= 1;
        cases::write_file(bundle.path(name), data);
        CHECK_FAILED(generate_path(bundle.path()), MUTOSCOPE_ERROR_BUNDLE,
                     "does not match its sha256");
        cases::write_file(bundle.path(name), data.substr(1));
        CHECK_FAILED(generate_path(bundle.path()), MUTOSCOPE_ERROR_BUNDLE, name);
        std::filesystem::remove(bundle.path(name));
        CHECK_FAILED(generate_path(bundle.path()), MUTOSCOPE_ERROR_BUNDLE, name);
    }
    const OwnBundle bundle(folder());
    bundle.replace("manifest.json", "\"dtype\": \"int64\",\n     \"shape\": []",
                   "\"dtype\": \"float32\",\n     \"shape\": []");
    CHECK_FAILED(generate_path(bundle.path()), MUTOSCOPE_ERROR_ENGINE, "export again");
}

TEST(a_token_id_that_no_graph_takes_is_an_error_of_the_engine) {
    const Pipeline pipeline = open_case("plain");
    Params params(folder(), cases::find_case(folder(), "no_guidance"));
    const int64_t ids[2] = {620, 99999}, shape[2] = {1, 2};
    const mutoscope_array input{"input_ids", ids, shape, 2, MUTOSCOPE_INT64};
    params.params.prompt = nullptr;
    params.params.prompt_inputs = &input;
    params.params.num_prompt_inputs = 1;
    CHECK_FAILED(generate(pipeline, params.params).status, MUTOSCOPE_ERROR_ENGINE, "failed");
}

TEST(structs_of_other_versions_follow_the_rules) {
    const Pipeline pipeline = open_case("plain");
    struct Newer {
        mutoscope_generate_params known;
        uint64_t unknown;
    } newer;
    CHECK_EQUAL(mutoscope_generate_params_init(&newer.known, sizeof newer), MUTOSCOPE_OK);
    newer.known.prompt = "a";
    CHECK_EQUAL(newer.unknown, 0);
    mutoscope_settings settings = make_settings();
    CHECK_EQUAL(mutoscope_resolve(&settings, pipeline.get(), &newer.known), MUTOSCOPE_OK);
    newer.unknown = 1;
    CHECK_FAILED(mutoscope_resolve(&settings, pipeline.get(), &newer.known),
                 MUTOSCOPE_ERROR_ARGUMENT, "does not know");
    // An older caller, without callbacks. The heap ends where its struct does, for sanitizers.
    const size_t older_size = offsetof(mutoscope_generate_params, progress_callback);
    const std::unique_ptr<uint64_t[]> memory(new uint64_t[older_size / sizeof(uint64_t)]);
    auto *older = reinterpret_cast<mutoscope_generate_params *>(memory.get());
    CHECK_EQUAL(mutoscope_generate_params_init(older, older_size), MUTOSCOPE_OK);
    older->prompt = "a";
    CHECK_EQUAL(mutoscope_resolve(&settings, pipeline.get(), older), MUTOSCOPE_OK);
    older->struct_size = 0;
    CHECK_FAILED(mutoscope_resolve(&settings, pipeline.get(), older), MUTOSCOPE_ERROR_ARGUMENT,
                 "struct_size 0");
}
