#include "sampler.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "error.h"

namespace mutoscope {
namespace {

// 128 KiB of float32: the blocks that a row touches stay in the second-level cache.
constexpr size_t kBlockElements = 32768;

struct Operand {
    const float *values;
    float coefficient;
};

// One update with its arrays: target = sum of coefficient * values.
struct BoundUpdate {
    float *target;
    std::vector<Operand> operands;
};

// The target comes first where it is a source, since the first product overwrites it.
BoundUpdate bind_update(const Update &update, const std::vector<Array> &registers,
                        const Array &model_output, const Array &noise) {
    BoundUpdate bound{registers[update.into].as<float>(), {}};
    for (const Term &term : update.terms) {
        const bool is_register = term.kind == SourceKind::reg;
        const Array &source = is_register                             ? registers[term.index]
                              : term.kind == SourceKind::model_output ? model_output
                                                                      : noise;
        const Operand operand{source.as<float>(), static_cast<float>(term.coefficient)};
        const bool is_target = is_register && term.index == update.into;
        bound.operands.insert(is_target ? bound.operands.begin() : bound.operands.end(), operand);
    }
    return bound;
}

void run_update(const BoundUpdate &update, size_t start, size_t end) {
    float *target = update.target;
    if (update.operands.empty()) {
        std::fill(target + start, target + end, 0.0F);
        return;
    }
    const Operand first = update.operands.front();
    for (size_t i = start; i < end; ++i) target[i] = first.values[i] * first.coefficient;
    for (size_t operand = 1; operand < update.operands.size(); ++operand) {
        const auto [values, coefficient] = update.operands[operand];
        for (size_t i = start; i < end; ++i) target[i] += values[i] * coefficient;
    }
}

void scale(const Array &from, double factor, const Array &to) {
    const auto scale32 = static_cast<float>(factor);
    const float *values = from.as<float>();
    float *result = to.as<float>();
    for (size_t i = 0; i < from.size(); ++i) result[i] = values[i] * scale32;
}

}  // namespace

Array denoise(const Array &latents, const ScheduleTable &table, const Predict &predict,
              const DrawNoise &draw_noise, const OnStep &on_step) {
    scale(latents, table.init_noise_sigma, latents);
    std::vector<Array> registers{latents};
    while (registers.size() < static_cast<size_t>(table.num_registers)) {
        registers.push_back(Array::make_zeros(DType::float32, latents.shape()));
    }
    const Array sample = Array::make(DType::float32, latents.shape());
    const Array noise =
        table.draws_noise() ? Array::make_zeros(DType::float32, latents.shape()) : Array();
    for (size_t step_index = 0; step_index < table.rows.size(); ++step_index) {
        const Row &row = table.rows[step_index];
        scale(registers[0], row.input_scale, sample);
        const Array model_output = predict(sample, row);
        for (int draw = 0; draw < row.noise_draws; ++draw) draw_noise(noise);
        std::vector<BoundUpdate> updates;
        for (const Update &update : row.updates) {
            updates.push_back(bind_update(update, registers, model_output, noise));
        }
        for (size_t start = 0; start < latents.size(); start += kBlockElements) {
            const size_t end = std::min(start + kBlockElements, latents.size());
            for (const BoundUpdate &update : updates) run_update(update, start, end);
        }
        on_step(step_index, registers[0]);
    }
    return registers[0];
}

}  // namespace mutoscope
