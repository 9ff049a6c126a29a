#include "schedule.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "error.h"
#include "json_reader.h"

namespace mutoscope {

namespace {

constexpr int kFormatVersion = 1;

// The fields of an object in a table; errors say where it stands.
class ScheduleReader {
public:
    ScheduleReader(JsonValue value, std::string where) : value_(value), where_(std::move(where)) {
        if (value.kind() != JsonKind::object) {
            throw ScheduleError(where_ + " is " + value.describe() + "; it must be an object");
        }
    }

    [[noreturn]] void fail(const std::string &problem) const {
        throw ScheduleError(where_ + ": " + problem);
    }
    [[noreturn]] void fail(const char *key, const JsonValue &value, const std::string &rule) const {
        fail(std::string(key) + " is " + value.describe() + "; it must be " + rule);
    }

    JsonValue get(const char *key) const {
        const auto value = value_.find(key);
        if (!value) fail(std::string(key) + " is missing");
        return *value;
    }

    JsonValue get_list(const char *key) const {
        const JsonValue value = get(key);
        if (value.kind() != JsonKind::list) fail(key, value, "a list");
        return value;
    }

    JsonValue get_whole(const char *key, int minimum) const {
        const JsonValue value = get(key);
        if (!value.is_whole() || value.number() < minimum) {
            fail(key, value, "a whole number >= " + std::to_string(minimum));
        }
        return value;
    }

    int read_whole(const char *key, int minimum, int maximum) const {
        const JsonValue value = get_whole(key, minimum);
        if (value.number() > maximum) {
            fail(std::string(key) + " is " + value.describe() + "; it must lie within " +
                 std::to_string(minimum) + " and " + std::to_string(maximum));
        }
        return static_cast<int>(value.whole());
    }

    double read_number(const char *key) const {
        const JsonValue value = get(key);
        if (!value.is_number()) fail(key, value, "a finite number");
        return value.number();
    }

    std::string read_text(const char *key) const {
        const JsonValue value = get(key);
        if (value.kind() != JsonKind::text) fail(key, value, "a string");
        return std::string(value.text());
    }

    std::optional<std::string> read_optional_text(const char *key) const {
        const auto value = value_.find(key);
        if (!value || value->kind() == JsonKind::null) return std::nullopt;
        return read_text(key);
    }

    bool read_flag(const char *key, bool default_value) const {
        const auto value = value_.find(key);
        if (!value) return default_value;
        if (value->kind() != JsonKind::boolean) fail(key, *value, "true or false");
        return value->boolean();
    }

    void check_optional_pair(const char *key) const {
        const auto value = value_.find(key);
        if (!value || value->kind() == JsonKind::null) return;
        const bool is_list = value->kind() == JsonKind::list;
        const auto numbers = is_list ? value->items() : std::vector<JsonValue>();
        if (numbers.size() != 2 || !numbers[0].is_number() || !numbers[1].is_number()) {
            fail(key, *value, "two finite numbers");
        }
    }

    // The objects in a list, each called `item` and its number.
    std::vector<ScheduleReader> read_objects(const char *key, const std::string &item) const {
        std::vector<ScheduleReader> readers;
        for (const JsonValue &value : get_list(key).items()) {
            readers.emplace_back(value,
                                 where_ + ": " + item + " " + std::to_string(readers.size()));
        }
        return readers;
    }

private:
    JsonValue value_;
    std::string where_;
};

// Reads one row, which `row` stands for in messages.
class RowReader {
public:
    RowReader(const ScheduleReader &row, int num_registers)
        : row_(row), num_registers_(num_registers) {}

    Row read() const {
        Row row;
        row.timestep = row_.read_number("timestep");
        row.input_scale = row_.read_number("input_scale");
        row.noise_draws = row_.read_whole("noise_draws", 0, kMaxNoiseDraws);
        for (const ScheduleReader &update : row_.read_objects("updates", "update")) {
            row.updates.push_back(read_update(update, row.noise_draws > 0));
        }
        row_.check_optional_pair("denoised");
        row.denoiser = row_.read_optional_text("denoiser").value_or("");
        row.guidance = row_.read_flag("guidance", true);
        return row;
    }

private:
    Update read_update(const ScheduleReader &reader, bool has_noise) const {
        Update update;
        update.into = find_register(reader.get_whole("into", 0), "writes");
        std::set<std::pair<SourceKind, int>> sources;
        for (const JsonValue &value : reader.get_list("terms").items()) {
            const Term term = read_term(reader, value);
            if (term.kind == SourceKind::noise && !has_noise) {
                row_.fail("an update reads noise, but noise_draws is 0");
            }
            if (!sources.emplace(term.kind, term.index).second) {
                row_.fail("the update of register " + std::to_string(update.into) +
                          " names a source twice");
            }
            update.terms.push_back(term);
        }
        return update;
    }

    Term read_term(const ScheduleReader &update, const JsonValue &value) const {
        const bool is_list = value.kind() == JsonKind::list;
        const auto pair = is_list ? value.items() : std::vector<JsonValue>();
        Term term;
        if (pair.size() == 2 && pair[1].is_number()) {
            term.coefficient = pair[1].number();
            if (pair[0].is_whole()) {
                term.index = find_register(pair[0], "reads");
                return term;
            }
            const bool is_text = pair[0].kind() == JsonKind::text;
            if (is_text && pair[0].text() == "model_output") {
                term.kind = SourceKind::model_output;
                return term;
            }
            if (is_text && pair[0].text() == "noise") {
                term.kind = SourceKind::noise;
                return term;
            }
        }
        update.fail("terms", value,
                    "pairs of a source (a register, model_output, noise) and a number");
    }

    int find_register(const JsonValue &index, const std::string &verb) const {
        if (index.number() < 0 || index.number() >= num_registers_) {
            row_.fail("an update " + verb + " register " + index.describe() + "; the table has " +
                      std::to_string(num_registers_));
        }
        return static_cast<int>(index.whole());
    }

    const ScheduleReader &row_;
    int num_registers_;
};

}  // namespace

bool ScheduleTable::draws_noise() const {
    return std::any_of(rows.begin(), rows.end(),
                       [](const Row &row) { return row.noise_draws > 0; });
}

bool ScheduleTable::takes_guidance() const {
    return std::any_of(rows.begin(), rows.end(), [](const Row &row) { return row.guidance; });
}

ScheduleTable parse_schedule(std::string_view json_text, const std::string &name) {
    std::string problem;
    const auto document = JsonDocument::parse(json_text, problem);
    if (!document) throw BundleError(name + " is no JSON file (" + problem + "): export again");
    const ScheduleReader reader(document->root(), name);
    const JsonValue version = reader.get_whole("format_version", 1);
    if (version.number() > kFormatVersion) {
        throw BundleError(name + " has format_version " + version.describe() +
                          "; this version reads up to " + std::to_string(kFormatVersion) +
                          ": upgrade mutoscope or export again");
    }
    ScheduleTable table;
    table.scheduler = reader.read_text("scheduler");
    table.num_inference_steps =
        reader.read_whole("num_inference_steps", 1, std::numeric_limits<int>::max());
    reader.read_text("prediction_type");
    table.init_noise_sigma = reader.read_number("init_noise_sigma");
    table.num_registers = reader.read_whole("num_registers", 1, kMaxRegisters);
    for (const ScheduleReader &row : reader.read_objects("rows", "row")) {
        table.rows.push_back(RowReader(row, table.num_registers).read());
    }
    table.denoiser = reader.read_optional_text("denoiser").value_or("");
    table.graph_sha256 = reader.read_optional_text("graph_sha256");
    if (table.rows.empty()) {
        reader.fail("the table has no rows; it needs one for each denoiser call");
    }
    return table;
}

}  // namespace mutoscope
