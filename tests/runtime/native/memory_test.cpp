// Memory that runs out: the Nth allocation of the library fails, for every N over opening, loading,
// generating and asking. Each call returns MUTOSCOPE_ERROR_OUT_OF_MEMORY or works, all that it took
// is given back, and the pipeline works afterwards. argv: the folder of record_cases.py.
//
// Allocations inside onnxruntime do not fail: of those that do, some end the process inside of it.
#include <cpu_provider_factory.h>
#include <dlfcn.h>
#include <onnxruntime_c_api.h>

#include <cstddef>
#include <cstdlib>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "cases.h"
#include "check.h"

namespace {

// Of this thread: whether allocations count, and how many are left until one fails (0: none does).
thread_local bool is_counting = false;
thread_local long num_left = 0;
thread_local bool has_failed = false;
// Blocks that were taken while counting and not given back.
thread_local long num_blocks = 0;

void *allocate(size_t size, size_t alignment = alignof(std::max_align_t)) {
    if (is_counting && num_left > 0 && --num_left == 0) {
        has_failed = true;
        return nullptr;
    }
    const size_t rounded = (size + alignment - 1) / alignment * alignment;
    void *block = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded);
    if (block != nullptr && is_counting) ++num_blocks;
    return block;
}

void *allocate_or_throw(size_t size, size_t alignment = alignof(std::max_align_t)) {
    void *block = allocate(size, alignment);
    if (block == nullptr) throw std::bad_alloc();
    return block;
}

void release(void *block) {
    if (block != nullptr && is_counting) --num_blocks;
    std::free(block);
}

}  // namespace

void *operator new(size_t size) { return allocate_or_throw(size); }
void *operator new[](size_t size) { return allocate_or_throw(size); }
void *operator new(size_t size, const std::nothrow_t &) noexcept { return allocate(size); }
void *operator new[](size_t size, const std::nothrow_t &) noexcept { return allocate(size); }
void *operator new(size_t size, std::align_val_t alignment) {
    return allocate_or_throw(size, static_cast<size_t>(alignment));
}
void *operator new[](size_t size, std::align_val_t alignment) {
    return allocate_or_throw(size, static_cast<size_t>(alignment));
}
void *operator new(size_t size, std::align_val_t alignment, const std::nothrow_t &) noexcept {
    return allocate(size, static_cast<size_t>(alignment));
}
void *operator new[](size_t size, std::align_val_t alignment, const std::nothrow_t &) noexcept {
    return allocate(size, static_cast<size_t>(alignment));
}
void operator delete(void *block) noexcept { release(block); }
void operator delete[](void *block) noexcept { release(block); }
void operator delete(void *block, size_t) noexcept { release(block); }
void operator delete[](void *block, size_t) noexcept { release(block); }
void operator delete(void *block, std::align_val_t) noexcept { release(block); }
void operator delete[](void *block, std::align_val_t) noexcept { release(block); }
void operator delete(void *block, size_t, std::align_val_t) noexcept { release(block); }
void operator delete[](void *block, size_t, std::align_val_t) noexcept { release(block); }

// ---- onnxruntime's functions, with the counting turned off

namespace {

const OrtApi *real_api = nullptr;
OrtApi paused_api;

class Pause {
public:
    Pause() : was_counting_(is_counting) { is_counting = false; }
    ~Pause() { is_counting = was_counting_; }
    Pause(const Pause &) = delete;
    Pause &operator=(const Pause &) = delete;

private:
    bool was_counting_;
};

template <auto Member, typename R, typename... A>
R run_paused(A... arguments) noexcept {
    const Pause pause;
    return (real_api->*Member)(arguments...);
}

template <auto Member, typename R, typename... A, bool is_noexcept>
void pause_one(R (*OrtApi::*)(A...) noexcept(is_noexcept)) {
    paused_api.*Member = &run_paused<Member, R, A...>;
}

template <auto... Members>
void pause_all() {
    (pause_one<Members>(Members), ...);
}

const OrtApi *get_paused_api(uint32_t version) noexcept;
OrtApiBase paused_base{};

// What the program takes from onnxruntime itself, so that the linker does not leave it out.
[[gnu::used]] const auto keeps_library = &OrtSessionOptionsAppendExecutionProvider_CPU;

const OrtApiBase *find_real_base() {
    using Get = const OrtApiBase *(*)();
    const auto get = reinterpret_cast<Get>(dlsym(RTLD_NEXT, "OrtGetApiBase"));
    if (get == nullptr) std::abort();
    return get();
}

// The one function that is called without the OrtApi.
void (*real_free)(OrtAllocator *, void *) = nullptr;

void ORT_API_CALL free_paused(OrtAllocator *allocator, void *block) {
    const Pause pause;
    real_free(allocator, block);
}

void pause_allocator() {
    OrtAllocator *allocator = nullptr;
    OrtStatus *status = real_api->GetAllocatorWithDefaultOptions(&allocator);
    if (status != nullptr) std::abort();
    if (allocator->Free == free_paused) return;
    real_free = allocator->Free;
    allocator->Free = free_paused;
}

const OrtApi *get_paused_api(uint32_t version) noexcept {
    const Pause pause;
    real_api = find_real_base()->GetApi(version);
    if (real_api == nullptr) return nullptr;
    pause_allocator();
    paused_api = *real_api;
    // All that the library calls on a CPU.
    pause_all<&OrtApi::AddRunConfigEntry, &OrtApi::AddSessionConfigEntry,
              &OrtApi::CastTypeInfoToTensorInfo, &OrtApi::CreateCpuMemoryInfo,
              &OrtApi::CreateEnvWithCustomLogger, &OrtApi::CreateRunOptions, &OrtApi::CreateSession,
              &OrtApi::CreateSessionOptions, &OrtApi::CreateTensorWithDataAsOrtValue,
              &OrtApi::DisableMemPattern, &OrtApi::GetAllocatorWithDefaultOptions,
              &OrtApi::GetAvailableProviders, &OrtApi::GetDimensions, &OrtApi::GetDimensionsCount,
              &OrtApi::GetTensorElementType, &OrtApi::GetTensorMutableData,
              &OrtApi::GetTensorTypeAndShape, &OrtApi::ReleaseAvailableProviders,
              &OrtApi::ReleaseEnv, &OrtApi::ReleaseMemoryInfo, &OrtApi::ReleaseRunOptions,
              &OrtApi::ReleaseSession, &OrtApi::ReleaseSessionOptions, &OrtApi::ReleaseStatus,
              &OrtApi::ReleaseTensorTypeAndShapeInfo, &OrtApi::ReleaseTypeInfo,
              &OrtApi::ReleaseValue, &OrtApi::Run, &OrtApi::RunOptionsSetTerminate,
              &OrtApi::SessionGetInputCount, &OrtApi::SessionGetInputName,
              &OrtApi::SessionGetInputTypeInfo, &OrtApi::SessionGetOutputCount,
              &OrtApi::SessionGetOutputName, &OrtApi::SessionGetOutputTypeInfo,
              &OrtApi::SetIntraOpNumThreads, &OrtApi::SetSessionGraphOptimizationLevel,
              &OrtApi::SetSessionLogSeverityLevel>();
    return &paused_api;
}

}  // namespace

// In place of onnxruntime's, which is found behind it.
extern "C" const OrtApiBase *OrtGetApiBase() noexcept {
    paused_base = *find_real_base();
    paused_base.GetApi = get_paused_api;
    return &paused_base;
}

// ---- the tests

namespace {

constexpr size_t kFramesBytes = size_t{6} * 32 * 48 * 3;
// In static memory, so that the test itself allocates nothing while it counts.
uint8_t frames[kFramesBytes];

std::string folder() { return test_arguments().at(0); }

// Run a call with its Nth allocation failing, for every N until it needs no more.
template <typename Call>
void fail_each(const char *name, const Call &call) {
    long n = 0;
    do {
        has_failed = false;
        num_left = ++n;
        const int32_t status = call();
        num_left = 0;
        if (has_failed ? status == MUTOSCOPE_ERROR_OUT_OF_MEMORY || status == MUTOSCOPE_OK
                       : status == MUTOSCOPE_OK) {
            continue;
        }
        check::fail(name, static_cast<int>(n),
                    std::string(mutoscope_status_name(status)) + ": " + mutoscope_last_error());
    } while (has_failed);
    std::printf("       %s: %ld allocations\n", name, n - 1);
    CHECK(n > 1);
}

int32_t open_and_close(const std::string &path) {
    mutoscope_pipeline *pipeline = nullptr;
    const int32_t status = mutoscope_pipeline_open(&pipeline, path.c_str(), nullptr);
    mutoscope_pipeline_close(pipeline);
    return status;
}

int32_t generate(const cases::Pipeline &pipeline, const cases::Params &params) {
    mutoscope_result result;
    mutoscope_result_init(&result, sizeof result);
    return mutoscope_generate(&result, frames, sizeof frames, pipeline.get(), &params.params);
}

// Everything that a generation of this case does, and its pipeline; nothing of it may be left.
void fail_generation(const char *name) {
    const cases::Case given = cases::find_case(folder(), name);
    const cases::Params params(folder(), given);
    const std::string expected = cases::read_file(folder() + "/" + name + ".frames");
    num_blocks = 0;
    is_counting = true;
    {
        const cases::Pipeline pipeline = cases::open(folder(), given);
        fail_each("load", [&] {
            // So that each attempt starts from nothing.
            const long left = std::exchange(num_left, 0);
            mutoscope_pipeline_unload(pipeline.get());
            num_left = left;
            return mutoscope_pipeline_load(pipeline.get());
        });
        fail_each("generate", [&] { return generate(pipeline, params); });
        CHECK_EQUAL(generate(pipeline, params), MUTOSCOPE_OK);
    }
    is_counting = false;
    CHECK_EQUAL(num_blocks, 0);
    CHECK(cases::are_frames({frames, frames + expected.size()}, expected));
}

}  // namespace

TEST(opening_survives_every_allocation_that_fails) {
    const std::string path = folder() + "/text";
    // Onnxruntime's environment is there as long as one pipeline is; making it takes most of the
    // time.
    const cases::Pipeline other = cases::open(folder(), cases::find_case(folder(), "plain"));
    CHECK_EQUAL(open_and_close(path), MUTOSCOPE_OK);
    num_blocks = 0;
    is_counting = true;
    fail_each("open", [&] { return open_and_close(path); });
    is_counting = false;
    CHECK_EQUAL(num_blocks, 0);
}

TEST(a_generation_of_a_text_survives_every_allocation_that_fails) { fail_generation("noisy"); }

TEST(a_generation_of_several_denoisers_survives_every_allocation_that_fails) {
    fail_generation("reuse_batched");
}

TEST(a_generation_in_chunks_survives_every_allocation_that_fails) { fail_generation("chunks"); }

TEST(a_generation_of_an_image_survives_every_allocation_that_fails) { fail_generation("image"); }

TEST(questions_survive_every_allocation_that_fails) {
    const cases::Pipeline pipeline = cases::open(folder(), cases::find_case(folder(), "plain"));
    const cases::Params params(folder(), cases::find_case(folder(), "plain"));
    CHECK_EQUAL(mutoscope_pipeline_load(pipeline.get()), MUTOSCOPE_OK);
    mutoscope_settings settings;
    mutoscope_settings_init(&settings, sizeof settings);
    is_counting = true;
    fail_each("resolve",
              [&] { return mutoscope_resolve(&settings, pipeline.get(), &params.params); });
    int64_t ids[64];
    size_t count = 0;
    const char text[] =
        "a r\xc3\xa9"
        "d circle and 3 stars, slowly";
    fail_each("tokenize", [&] {
        return mutoscope_tokenize(ids, 64, &count, pipeline.get(), nullptr, text, sizeof text - 1);
    });
    const int32_t *steps = nullptr;
    fail_each("steps", [&] {
        return mutoscope_pipeline_steps(&steps, &count, pipeline.get(),
                                        "EulerAncestralDiscreteScheduler");
    });
    // A message needs memory as well.
    fail_each("a refusal", [&] {
        const int32_t status = mutoscope_pipeline_steps(&steps, &count, pipeline.get(), "unipc");
        return status == MUTOSCOPE_ERROR_PARAMETER ? MUTOSCOPE_OK : status;
    });
    is_counting = false;
}
