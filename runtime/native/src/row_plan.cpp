#include "row_plan.h"

#include <algorithm>

#include "error.h"
#include "text.h"

namespace mutoscope {
namespace {

// The variant whose graph a table was made for, where the denoiser has it.
constexpr const char *kPlainVariant = "float32";

// Digests are hexadecimal.
std::string lower(std::string digest) {
    for (char &c : digest) {
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    }
    return digest;
}

const ComponentRecord &find_denoiser(const Manifest &manifest, const std::string &denoiser,
                                     const std::string &where) {
    std::vector<std::string> known;
    for (const auto &[name, component] : manifest.components) {
        if (!is_denoiser(name)) continue;
        if (name == denoiser) return component;
        known.push_back(name);
    }
    throw ScheduleError(where + ": denoiser is " + quote(denoiser) +
                        "; it must be one of this bundle's, " + join(known) + ": export again");
}

void check_graph(const Manifest &manifest, const ScheduleTable &table, const std::string &denoiser,
                 const std::string &name) {
    const ComponentRecord &record = find_denoiser(manifest, denoiser, name);
    const std::string &graph = *find(record.variants, record.choose_variant(kPlainVariant));
    const FileRecord *file = find(manifest.files, graph);
    if (!table.graph_sha256 || lower(*table.graph_sha256) == lower(file->sha256)) return;
    throw ScheduleError(name + ": the plan was made for another graph of " + denoiser + " than " +
                        graph + ": tune again");
}

const std::string &find_maker(const Manifest &manifest, const std::string &output) {
    return std::find_if(manifest.components.begin(), manifest.components.end(),
                        [&](const auto &component) {
                            const auto &outputs = component.second.outputs;
                            return is_denoiser(component.first) && !outputs.empty() &&
                                   outputs.front().first != output &&
                                   find(outputs, output) != nullptr;
                        })
        ->first;
}

// What was made of an output last.
struct Maker {
    std::string denoiser;
    bool has_guidance = true;
};

}  // namespace

bool RowPlan::carries(const std::string &source) const {
    return std::any_of(returns.begin(), returns.end(),
                       [&](const auto &outputs) { return outputs.second.count(source) > 0; });
}

const std::string &find_first_denoiser(const Manifest &manifest) {
    for (const auto &[name, component] : manifest.components) {
        if (is_denoiser(name)) return name;
    }
    throw ParameterError("this bundle has no denoiser: it needs unet or transformer");
}

std::set<std::string> find_carried(const Manifest &manifest) {
    std::set<std::string> carried;
    for (const auto &[name, component] : manifest.components) {
        if (!is_denoiser(name)) continue;
        for (size_t i = 1; i < component.outputs.size(); ++i) {
            carried.insert(component.outputs[i].first);
        }
    }
    return carried;
}

RowPlan plan_rows(const Manifest &manifest, const ScheduleTable &table, const std::string &name) {
    RowPlan plan;
    plan.default_denoiser = table.denoiser.empty() ? find_first_denoiser(manifest) : table.denoiser;
    check_graph(manifest, table, plan.default_denoiser, name);
    const std::set<std::string> carried = find_carried(manifest);
    std::map<std::string, Maker> makers;
    for (size_t index = 0; index < table.rows.size(); ++index) {
        const Row &row = table.rows[index];
        const std::string where = name + ": row " + std::to_string(index);
        const std::string &denoiser = plan.find_denoiser(row);
        const ComponentRecord &record = find_denoiser(manifest, denoiser, where);
        for (const auto &[input, tensor] : record.inputs) {
            if (carried.count(tensor.source) == 0) continue;
            const std::string problem =
                where + ": " + denoiser + " takes " + tensor.source + ", which no earlier row made";
            const auto maker = makers.find(tensor.source);
            if (maker == makers.end()) {
                throw ScheduleError(problem + ": put a row of " +
                                    find_maker(manifest, tensor.source) + " first");
            }
            if (row.guidance && !maker->second.has_guidance) {
                throw ScheduleError(problem + " with guidance: let guidance work in the row of " +
                                    maker->second.denoiser + " before it");
            }
            plan.returns[maker->second.denoiser].insert(tensor.source);
        }
        for (size_t i = 1; i < record.outputs.size(); ++i) {
            makers[record.outputs[i].first] = {denoiser, row.guidance};
        }
        if (row.guidance) plan.guided.insert(denoiser);
        auto &known = plan.denoisers;
        if (std::find(known.begin(), known.end(), denoiser) == known.end()) {
            known.push_back(denoiser);
        }
    }
    return plan;
}

}  // namespace mutoscope
