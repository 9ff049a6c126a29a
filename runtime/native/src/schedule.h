// Schedule tables: a scheduler and a step count as data (docs/schedule-tables.md).
#ifndef MUTOSCOPE_SCHEDULE_H
#define MUTOSCOPE_SCHEDULE_H

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace mutoscope {

// Far above what any scheduler needs; they keep a damaged file from asking for much memory.
constexpr int kMaxRegisters = 64;
constexpr int kMaxNoiseDraws = 16;

enum class SourceKind { reg, model_output, noise };

// A product in the sum that an update writes.
struct Term {
    SourceKind kind = SourceKind::reg;
    int index = 0;  // the register, from 0 to num_registers - 1; 0 of other sources
    double coefficient = 0;
};

// Register `into` becomes the sum of coefficient times source; no source is named twice.
struct Update {
    int into = 0;
    std::vector<Term> terms;
};

// One denoiser call and the updates after it, in the order in which they run.
struct Row {
    double timestep = 0;
    double input_scale = 1;
    int noise_draws = 0;  // updates see the last one
    std::vector<Update> updates;
    // The component that makes the model output; "": the table's.
    std::string denoiser;
    bool guidance = true;  // false: the prompt's pass is all
};

// All that a sampler needs of a scheduler at one step count.
struct ScheduleTable {
    std::string scheduler;  // class name, for people
    int num_inference_steps = 1;
    double init_noise_sigma = 1;
    int num_registers = 1;
    std::vector<Row> rows;  // at least one
    // The component that runs the rows which name none; "": the bundle's first denoiser.
    std::string denoiser;
    // The denoiser's plain graph that the rows were chosen for; absent: they fit any.
    std::optional<std::string> graph_sha256;

    // Whether any row needs random numbers besides the start noise.
    bool draws_noise() const;
    // Whether guidance works in any row.
    bool takes_guidance() const;
};

// The table in a JSON text, checked so that no sampler has to: every index is in range, every
// number finite. What only people read, and the estimates for previews, are checked and left out.
//
// name: what messages call it, for example the path of the file.
// BundleError: it is no JSON, or of a later format.
// ScheduleError: a field is absent, has the wrong type or is out of range.
ScheduleTable parse_schedule(std::string_view json_text, const std::string &name);

}  // namespace mutoscope

#endif
