// onnxruntime as a pipeline uses it: its options, its execution providers, its errors.
#ifndef MUTOSCOPE_ONNXRUNTIME_H
#define MUTOSCOPE_ONNXRUNTIME_H

#include <onnxruntime_c_api.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "mutoscope.h"

namespace mutoscope {

// Frees what onnxruntime made, for std::unique_ptr.
template <typename T, void (*OrtApi::*release)(T *)>
struct Released {
    const OrtApi *api = nullptr;
    void operator()(T *value) const { (api->*release)(value); }
};
using SessionOptions =
    std::unique_ptr<OrtSessionOptions, Released<OrtSessionOptions, &OrtApi::ReleaseSessionOptions>>;

struct EngineOptions {
    std::string execution_provider = "cpu";
    int num_threads = 0;  // 0: one for each core
    bool low_memory = false;
    bool allow_cpu_nodes = false;
    std::vector<std::pair<std::string, std::string>> provider_options;

    bool is_on_cpu() const { return execution_provider == "cpu"; }
};

// onnxruntime itself, as one pipeline uses it.
class Onnxruntime {
public:
    // Raises EngineError where the library that was loaded is too old.
    Onnxruntime();

    const OrtApi &api() const { return *api_; }
    OrtEnv *env() const { return env_.get(); }
    // Give the execution provider its short name: "cpu" for "CPUExecutionProvider". Raises Error
    // with MUTOSCOPE_ERROR_EXECUTION_PROVIDER for one that is not there.
    void find_execution_provider(EngineOptions &options) const;
    // Raises Error with this code, or bad_alloc where memory was short; frees the status.
    void check(OrtStatus *status, const std::string &what,
               int32_t code = MUTOSCOPE_ERROR_ENGINE) const;

private:
    struct EnvDeleter {
        const OrtApi *api;
        void operator()(OrtEnv *env) const;
    };

    const OrtApi *api_;
    std::unique_ptr<OrtEnv, EnvDeleter> env_;
};

// The options of a session; the same choices as in Python.
SessionOptions make_session_options(const Onnxruntime &onnxruntime, const EngineOptions &options);

// What stops a run from another thread, and what runs are told beside their inputs.
class RunControl {
public:
    RunControl(const Onnxruntime &onnxruntime, const EngineOptions &options);

    // May be called from any thread, at any time.
    void stop();
    OrtRunOptions *options() const { return options_.get(); }

private:
    const Onnxruntime &onnxruntime_;
    std::unique_ptr<OrtRunOptions, Released<OrtRunOptions, &OrtApi::ReleaseRunOptions>> options_;
};

}  // namespace mutoscope

#endif
