// libFuzzer target: a schedule table is either read, with every index in range and every number
// finite, or refused with one of our errors.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "error.h"
#include "schedule.h"

namespace {

void check(bool condition) {
    if (!condition) std::abort();
}

void check_row(const mutoscope::Row &row, int num_registers) {
    check(std::isfinite(row.timestep) && std::isfinite(row.input_scale));
    check(row.noise_draws >= 0 && row.noise_draws <= mutoscope::kMaxNoiseDraws);
    for (const mutoscope::Update &update : row.updates) {
        check(update.into >= 0 && update.into < num_registers);
        for (const mutoscope::Term &term : update.terms) {
            check(term.index >= 0 && term.index < num_registers);
            check(std::isfinite(term.coefficient));
            check(term.kind != mutoscope::SourceKind::noise || row.noise_draws > 0);
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    try {
        const mutoscope::ScheduleTable table = mutoscope::parse_schedule(
            std::string_view(reinterpret_cast<const char *>(data), size), "table.json");
        check(!table.rows.empty() && table.num_inference_steps >= 1);
        check(table.num_registers >= 1 && table.num_registers <= mutoscope::kMaxRegisters);
        for (const mutoscope::Row &row : table.rows) check_row(row, table.num_registers);
    } catch (const mutoscope::Error &) {
    }
    return 0;
}
