// From a prompt or an image to a video, with the components of a bundle.
#ifndef MUTOSCOPE_PIPELINE_H
#define MUTOSCOPE_PIPELINE_H

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "bundle.h"
#include "components.h"
#include "conditioning.h"
#include "decode_plan.h"
#include "onnxruntime.h"
#include "request.h"
#include "settings.h"
#include "timings.h"

namespace mutoscope {

// What a generation tells while it runs; each returns whether to go on.
struct Callbacks {
    // stage: MUTOSCOPE_STAGE_ENCODING and so on; latents: those of the row just done, or null.
    std::function<bool(int stage, int num_done, int num_in_all, const Array *latents)> on_progress;
    // pixels: uint8 [height, width, 3].
    std::function<bool(int frame_index, const uint8_t *pixels)> on_frame;
};

// A request, checked against the bundle: what generate() would do.
struct Generation {
    Settings settings;
    uint64_t seed = 0;
    bool is_batched = false;
    // What is known of the prompt and, with guidance, of the negative prompt.
    std::vector<Values> passes;
    // What else is known before any component runs: sizes, conditions, the picture as graphs take
    // it.
    Values values;
    std::optional<Array> latents;
    DecodePlan decode_plan;
};

// A bundle that is ready to generate. All but cancel() is for one thread at a time.
class Pipeline {
public:
    // Raises BundleError, ParameterError or EngineError.
    Pipeline(const std::string &bundle_path, const PipelineOptions &options);

    const Bundle &bundle() const { return bundle_; }
    const Components &components() const { return components_; }
    const ConditionEncoder &conditions() const { return conditions_; }

    // Load all that a generation with the defaults runs; with low memory, nothing.
    void load();
    void unload() { components_.unload_all(); }
    // tokenizer: its source; null: the first.
    std::vector<Token> tokenize(const char *tokenizer, std::string_view text);

    // Check a request; nothing but the tokenizers is loaded. Raises ParameterError.
    Generation prepare(const Request &request, Timings &timings);
    // Raises BundleError, EngineError, ScheduleError, or Error with MUTOSCOPE_ERROR_CANCELLED.
    void generate(Generation generation, const Callbacks &callbacks, Timings &timings);
    // Stop the call that holds the pipeline, if it generates; may be called from any thread.
    void cancel();

    // Holds the pipeline for one call; raises Error with MUTOSCOPE_ERROR_BUSY.
    class Use {
    public:
        explicit Use(Pipeline &pipeline);
        ~Use();
        Use(const Use &) = delete;
        Use &operator=(const Use &) = delete;

    private:
        Pipeline &pipeline_;
    };

private:
    void set_control(RunControl *control);
    void run_components(Generation &generation, const Callbacks &callbacks,
                        const RunContext &context);
    std::vector<Values> read_prompts(const Request &request, const Settings &settings,
                                     Timings &timings);
    void check_cancelled(bool goes_on, const std::string &where) const;
    Array run_denoisers(const Generation &generation, NoiseGenerator &generator,
                        const Callbacks &callbacks, const RunContext &context);
    Array make_latents(const Generation &generation, NoiseGenerator &generator) const;

    Onnxruntime onnxruntime_;
    PipelineOptions options_;
    Bundle bundle_;
    Components components_;
    ConditionEncoder conditions_;

    std::atomic<bool> is_cancelled_{false};
    std::mutex mutex_;  // of what follows
    bool is_busy_ = false;
    RunControl *control_ = nullptr;  // of the generation that runs graphs
};

}  // namespace mutoscope

#endif
