// Which component runs each row of a schedule table, and what rows hand on to later ones.
//
// What a denoiser returns beside its first output, the model output, is carried: a later row whose
// denoiser has an input of that source takes it. So features of one row are reused in the next
// ones. runtime/row_plan.py is the same.
#ifndef MUTOSCOPE_ROW_PLAN_H
#define MUTOSCOPE_ROW_PLAN_H

#include <map>
#include <set>
#include <string>
#include <vector>

#include "manifest.h"
#include "schedule.h"

namespace mutoscope {

// The denoisers of a table.
struct RowPlan {
    std::string default_denoiser;  // of the rows that name none
    // Those that run, in the order in which rows first run them.
    std::vector<std::string> denoisers;
    // Those of them that some row runs with guidance.
    std::set<std::string> guided;
    // By denoiser, which of its outputs beside the first later rows take.
    std::map<std::string, std::set<std::string>> returns;

    const std::string &find_denoiser(const Row &row) const {
        return row.denoiser.empty() ? default_denoiser : row.denoiser;
    }
    // Whether rows take this source from earlier ones.
    bool carries(const std::string &source) const;
};

// The denoiser that runs where nothing names one; raises ParameterError.
const std::string &find_first_denoiser(const Manifest &manifest);

// What denoisers return beside the model output.
std::set<std::string> find_carried(const Manifest &manifest);

// The plan of a table, which messages call `name`.
//
// ParameterError: the bundle has no denoiser.
// ScheduleError: a row names what is no denoiser of the bundle, or takes what no earlier row made
//     for all of its passes; or the table was made for another graph.
RowPlan plan_rows(const Manifest &manifest, const ScheduleTable &table, const std::string &name);

}  // namespace mutoscope

#endif
