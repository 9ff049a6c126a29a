#include "onnxruntime.h"

#include <onnxruntime_run_options_config_keys.h>
#include <onnxruntime_session_options_config_keys.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <new>
#include <string_view>

#include "error.h"
#include "text.h"

namespace mutoscope {
namespace {

// The oldest onnxruntime that has all that is called here: 1.20.
constexpr uint32_t kOrtApiVersion = 20;

// What people call the execution providers, and onnxruntime's names of them.
constexpr struct {
    const char *name;
    const char *full_name;
    const char *appended;  // what SessionOptionsAppendExecutionProvider calls it
} kProviders[] = {
    {"cpu", "CPUExecutionProvider", ""},
    {"cuda", "CUDAExecutionProvider", ""},
    {"tensorrt", "TensorrtExecutionProvider", ""},
    {"openvino", "OpenVINOExecutionProvider", "OpenVINO"},
    {"coreml", "CoreMLExecutionProvider", "CoreML"},
    {"qnn", "QNNExecutionProvider", "QNN"},
    {"webgpu", "WebGpuExecutionProvider", "WebGPU"},
    {"xnnpack", "XnnpackExecutionProvider", "XNNPACK"},
    {"directml", "DmlExecutionProvider", "DML"},
    {"azure", "AzureExecutionProvider", "AZURE"},
};
constexpr int32_t kProviderError = MUTOSCOPE_ERROR_EXECUTION_PROVIDER;

std::string shorten(const std::string &name) {
    for (const auto &provider : kProviders) {
        if (name == provider.full_name) return provider.name;
    }
    return name;
}

// The name to append an execution provider by, of one that was found.
std::string find_appended(const std::string &name) {
    constexpr std::string_view suffix = "ExecutionProvider";
    for (const auto &provider : kProviders) {
        if (name == provider.name) return provider.appended;
    }
    const size_t end = name.rfind(suffix);
    return end == name.npos ? name : name.substr(0, end);
}

// The library prints nothing; what went wrong is in the status.
void ORT_API_CALL log_nothing(void *, OrtLoggingLevel, const char *, const char *, const char *,
                              const char *) {}

// Environments share what onnxruntime has once in a process, and one cannot be made while the last
// is freed: "Only one instance of LoggingManager ... can exist at any point in time" (1.32).
std::mutex env_mutex;

}  // namespace

void Onnxruntime::EnvDeleter::operator()(OrtEnv *env) const {
    const std::lock_guard<std::mutex> lock(env_mutex);
    api->ReleaseEnv(env);
}

Onnxruntime::Onnxruntime() : api_(nullptr), env_(nullptr, EnvDeleter{nullptr}) {
    const OrtApiBase *base = OrtGetApiBase();
    // GetApi itself prints a line where the version is too old.
    const std::string version = base->GetVersionString();
    const bool is_known =
        std::strtoul(version.c_str(), nullptr, 10) > 1 ||
        std::strtoul(version.c_str() + version.find('.') + 1, nullptr, 10) >= kOrtApiVersion;
    if (is_known) api_ = base->GetApi(kOrtApiVersion);
    if (api_ == nullptr) {
        throw EngineError("onnxruntime is of version " + version + "; it must be at least 1." +
                          std::to_string(kOrtApiVersion));
    }
    OrtEnv *env = nullptr;
    const std::lock_guard<std::mutex> lock(env_mutex);
    check(api_->CreateEnvWithCustomLogger(log_nothing, nullptr, ORT_LOGGING_LEVEL_FATAL,
                                          "mutoscope", &env),
          "onnxruntime does not start");
    env_ = {env, EnvDeleter{api_}};
}

void Onnxruntime::check(OrtStatus *status, const std::string &what, int32_t code) const {
    if (status == nullptr) return;
    struct Release {
        const OrtApi *api;
        OrtStatus *status;
        ~Release() { api->ReleaseStatus(status); }
    } const release{api_, status};
    std::string text = api_->GetErrorMessage(status);
    // onnxruntime has no code of its own for it.
    for (const char *sign : {"bad_alloc", "Failed to allocate memory", "bad allocation"}) {
        if (text.find(sign) != text.npos) throw std::bad_alloc();
    }
    text.resize(std::min(text.size(), text.find('\n')));
    throw Error(code, what + ": " + text);
}

void Onnxruntime::find_execution_provider(EngineOptions &options) const {
    char **providers = nullptr;
    int count = 0;
    check(api_->GetAvailableProviders(&providers, &count), "onnxruntime lists no providers");
    const auto release = [&](char **list) {
        OrtStatus *status = api_->ReleaseAvailableProviders(list, count);
        if (status != nullptr) api_->ReleaseStatus(status);
    };
    const std::unique_ptr<char *, decltype(release)> list(providers, release);
    std::vector<std::string> available;
    for (int i = 0; i < count; ++i) available.push_back(shorten(providers[i]));
    const std::string name = shorten(options.execution_provider);
    if (std::find(available.begin(), available.end(), name) == available.end()) {
        throw Error(kProviderError,
                    "execution provider " + quote(name) +
                        " is not in this onnxruntime build (available: " + join(available) +
                        "): use one of these, or an onnxruntime that has it");
    }
    options.execution_provider = name;
    if (options.is_on_cpu() && !options.provider_options.empty()) {
        throw Error(kProviderError, "execution provider 'cpu' has no options, but " +
                                        options.provider_options.front().first +
                                        " was given: leave it out");
    }
}

namespace {

void add_cuda(const Onnxruntime &onnxruntime, OrtSessionOptions *options,
              const std::vector<const char *> &keys, const std::vector<const char *> &values) {
    const OrtApi &api = onnxruntime.api();
    OrtCUDAProviderOptionsV2 *cuda = nullptr;
    onnxruntime.check(api.CreateCUDAProviderOptions(&cuda), "CUDA has no options", kProviderError);
    const std::unique_ptr<OrtCUDAProviderOptionsV2,
                          Released<OrtCUDAProviderOptionsV2, &OrtApi::ReleaseCUDAProviderOptions>>
        release(cuda, {&api});
    onnxruntime.check(api.UpdateCUDAProviderOptions(cuda, keys.data(), values.data(), keys.size()),
                      "CUDA does not take these options", kProviderError);
    onnxruntime.check(api.SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda),
                      "execution provider 'cuda' does not start on this machine", kProviderError);
}

void add_tensorrt(const Onnxruntime &onnxruntime, OrtSessionOptions *options,
                  const std::vector<const char *> &keys, const std::vector<const char *> &values) {
    const OrtApi &api = onnxruntime.api();
    OrtTensorRTProviderOptionsV2 *tensorrt = nullptr;
    onnxruntime.check(api.CreateTensorRTProviderOptions(&tensorrt), "TensorRT has no options",
                      kProviderError);
    const std::unique_ptr<
        OrtTensorRTProviderOptionsV2,
        Released<OrtTensorRTProviderOptionsV2, &OrtApi::ReleaseTensorRTProviderOptions>>
        release(tensorrt, {&api});
    onnxruntime.check(
        api.UpdateTensorRTProviderOptions(tensorrt, keys.data(), values.data(), keys.size()),
        "TensorRT does not take these options", kProviderError);
    onnxruntime.check(api.SessionOptionsAppendExecutionProvider_TensorRT_V2(options, tensorrt),
                      "execution provider 'tensorrt' does not start on this machine",
                      kProviderError);
}

void add_provider(const Onnxruntime &onnxruntime, OrtSessionOptions *options,
                  const EngineOptions &engine) {
    std::vector<const char *> keys, values;
    for (const auto &[key, value] : engine.provider_options) {
        keys.push_back(key.c_str());
        values.push_back(value.c_str());
    }
    const std::string &name = engine.execution_provider;
    if (name == "cuda") return add_cuda(onnxruntime, options, keys, values);
    if (name == "tensorrt") {
        // CUDA stands behind it, for nodes that TensorRT does not take.
        add_tensorrt(onnxruntime, options, keys, values);
        return add_cuda(onnxruntime, options, {}, {});
    }
    const std::string type = find_appended(name);
    onnxruntime.check(onnxruntime.api().SessionOptionsAppendExecutionProvider(
                          options, type.c_str(), keys.data(), values.data(), keys.size()),
                      "execution provider " + quote(name) + " does not start on this machine",
                      kProviderError);
}

}  // namespace

// engines/onnxruntime_engine.py has the reasons.
SessionOptions make_session_options(const Onnxruntime &onnxruntime, const EngineOptions &engine) {
    const OrtApi &api = onnxruntime.api();
    OrtSessionOptions *created = nullptr;
    onnxruntime.check(api.CreateSessionOptions(&created), "onnxruntime has no options");
    SessionOptions options(created, {&api});
    const auto check = [&](OrtStatus *status) {
        onnxruntime.check(status, "onnxruntime does not take an option");
    };
    const auto set = [&](const char *key, const char *value) {
        check(api.AddSessionConfigEntry(created, key, value));
    };
    check(api.SetSessionLogSeverityLevel(created, ORT_LOGGING_LEVEL_FATAL));
    check(api.DisableMemPattern(created));
    // Or the threads of one graph wait for work in a loop while the next graph runs.
    set(kOrtSessionOptionsConfigForceSpinningStop, "1");
    if (engine.num_threads > 0) check(api.SetIntraOpNumThreads(created, engine.num_threads));
    if (engine.low_memory) {
        set(kOrtSessionOptionsConfigDisablePrepacking, "1");
        set(kOrtSessionOptionsDisableSpecifiedOptimizers, "ConstantFolding");
        check(api.SetSessionGraphOptimizationLevel(created, ORT_ENABLE_EXTENDED));
    }
    if (!engine.is_on_cpu()) {
        if (!engine.allow_cpu_nodes) set(kOrtSessionOptionsDisableCPUEPFallback, "1");
        add_provider(onnxruntime, created, engine);
    }
    return options;
}

RunControl::RunControl(const Onnxruntime &onnxruntime, const EngineOptions &options)
    : onnxruntime_(onnxruntime), options_(nullptr, {&onnxruntime.api()}) {
    OrtRunOptions *created = nullptr;
    onnxruntime.check(onnxruntime.api().CreateRunOptions(&created), "onnxruntime has no options");
    options_.reset(created);
    if (options.low_memory && options.is_on_cpu()) {
        onnxruntime.check(onnxruntime.api().AddRunConfigEntry(
                              created, kOrtRunOptionsConfigEnableMemoryArenaShrinkage, "cpu:0"),
                          "onnxruntime does not take an option");
    }
}

void RunControl::stop() {
    onnxruntime_.check(onnxruntime_.api().RunOptionsSetTerminate(options_.get()),
                       "onnxruntime does not stop");
}

}  // namespace mutoscope
