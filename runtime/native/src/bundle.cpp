#include "bundle.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <tuple>
#include <utility>

#include "error.h"
#include "file_reader.h"
#include "json_reader.h"
#include "sha256.h"
#include "text.h"

namespace fs = std::filesystem;

namespace mutoscope {

namespace {

// Files up to this size are compared with their sha256 whenever they are loaded; larger ones only
// by `mutoscope verify`, since reading them twice would double the start.
constexpr uint64_t kCheckOnLoadBytes = uint64_t{64} << 20;
constexpr const char *kExportAgain = "copy or export it again";

// As pathlib shows it: without doubled slashes, "." and a slash at the end.
std::string normalize_path(std::string_view path) {
    std::string result;
    for (size_t begin = 0; begin < path.size();) {
        const size_t end = std::min(path.find('/', begin), path.size());
        const std::string_view part = path.substr(begin, end - begin);
        if (!part.empty() && part != ".") {
            if (!result.empty()) result += '/';
            result += part;
        }
        begin = end + 1;
    }
    if (!path.empty() && path[0] == '/') return "/" + result;
    return result.empty() ? "." : result;
}

Manifest load_manifest(const std::string &folder) {
    const std::string path = normalize_path(folder + "/" + kManifestName);
    std::string text;
    const std::error_code error = read_whole_file(path, kMaxJsonBytes, text);
    if (error == std::errc::no_such_file_or_directory) {
        throw BundleError(folder + " has no " + kManifestName +
                          ", so it is not a bundle: make one with mutoscope export CHECKPOINT -o "
                          "BUNDLE");
    }
    if (error) throw BundleError(path + " cannot be read: " + error.message());
    return parse_manifest(text, path);
}

bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

bool starts_with(std::string_view text, std::string_view start) {
    return text.substr(0, start.size()) == start;
}

std::string_view get_folder(std::string_view path) {
    const size_t slash = path.rfind('/');
    return slash == std::string_view::npos ? std::string_view() : path.substr(0, slash);
}

// Names of schedulers are ASCII, other letters are left as they are.
std::string fold_case(std::string_view name) {
    std::string folded(name);
    for (char &c : folded) {
        if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    }
    return folded;
}

// What the short name of a scheduler and the class name in diffusers have in common.
std::string shorten_name(std::string_view name) {
    const std::string folded = fold_case(name);
    std::string shortened;
    for (std::string_view rest = folded; !rest.empty();) {
        size_t length = 1;
        for (const std::string_view word : {"scheduler", "discrete", "multistep"}) {
            if (starts_with(rest, word)) length = word.size();
        }
        const char c = rest[0];
        const bool is_kept = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '+';
        if (length == 1 && is_kept) shortened += c;
        rest.remove_prefix(length);
    }
    return shortened;
}

// Of a manifest that was checked.
int read_count(const std::string &digits) {
    int count = 0;
    std::from_chars(digits.data(), digits.data() + digits.size(), count);
    return count;
}

void compare_digest(const std::string &name, const std::string &digest, const FileRecord &record) {
    if (digest == fold_case(record.sha256)) return;
    throw BundleError(name + " does not match its sha256 in " + kManifestName +
                      " (the file changed after export): " + kExportAgain);
}

}  // namespace

Bundle::Bundle(std::string path, std::string root, Manifest manifest)
    : path_(std::move(path)), root_(std::move(root)), manifest_(std::move(manifest)) {}

Bundle Bundle::open(const std::string &path) {
    const std::string folder = normalize_path(path);
    std::error_code error;
    const fs::file_status status = fs::status(folder, error);
    if (!fs::status_known(status)) {
        throw BundleError(folder + " cannot be read: " + error.message());
    }
    if (!fs::exists(status)) {
        throw BundleError(
            folder +
            " does not exist: give the folder of a bundle, or make one with mutoscope "
            "export CHECKPOINT -o BUNDLE");
    }
    if (!fs::is_directory(status)) {
        throw BundleError(folder + " is a file; a bundle is a folder with " + kManifestName);
    }
    Manifest manifest = load_manifest(folder);
    const fs::path root = fs::canonical(folder, error);
    if (error) throw BundleError(folder + " cannot be read: " + error.message());
    Bundle bundle(folder, root.string(), std::move(manifest));
    for (const auto &[name, record] : bundle.manifest_.files) bundle.check_size(name, record);
    return bundle;
}

const FileRecord &Bundle::find_record(const std::string &name) const {
    const FileRecord *record = find(manifest_.files, name);
    if (record == nullptr) {
        throw BundleError(std::string(kManifestName) + " names " + name +
                          " but does not list it under files");
    }
    return *record;
}

std::string Bundle::find_file(const std::string &name) const {
    std::error_code error;
    const fs::path found = fs::canonical(normalize_path(root_ + "/" + name), error);
    if (error) {
        throw BundleError(path_ + " has no " + name + ", which " + kManifestName +
                          " lists: " + kExportAgain);
    }
    const std::string inside = root_ == "/" ? root_ : root_ + "/";
    if (!starts_with(found.native(), inside)) {
        throw BundleError(name + " in " + path_ + " is a link that leads outside the bundle");
    }
    return found.string();
}

void Bundle::check_size(const std::string &name, const FileRecord &record) const {
    std::error_code error;
    const uintmax_t size = fs::file_size(find_file(name), error);
    if (error) {
        throw BundleError(name + " in " + path_ + " cannot be read: " + error.message());
    }
    if (size != record.size_bytes) {
        throw BundleError(name + " has " + std::to_string(size) + " bytes; " + kManifestName +
                          " lists " + std::to_string(record.size_bytes) +
                          " (the file was cut short or changed after export): " + kExportAgain);
    }
}

void Bundle::check_digest(const std::string &name) const {
    const FileRecord &record = find_record(name);
    check_size(name, record);
    Sha256 digest;
    const std::error_code error = read_blocks(
        find_file(name), record.size_bytes,
        [&digest](std::string_view block) { digest.update(block.data(), block.size()); });
    if (error) {
        throw BundleError(name + " in " + path_ + " cannot be read: " + error.message());
    }
    compare_digest(name, digest.finish(), record);
}

std::string Bundle::load_file(const std::string &name) const {
    if (find_record(name).size_bytes <= kCheckOnLoadBytes) check_digest(name);
    return find_file(name);
}

std::string Bundle::read_file(const std::string &name) const {
    const FileRecord &record = find_record(name);
    check_size(name, record);
    std::string text;
    const std::error_code error =
        read_whole_file(find_file(name), std::min(record.size_bytes, kCheckOnLoadBytes), text);
    if (error) {
        throw BundleError(name + " in " + path_ + " cannot be read: " + error.message());
    }
    Sha256 digest;
    digest.update(text.data(), text.size());
    compare_digest(name, digest.finish(), record);
    return text;
}

std::string Bundle::load_graph(const std::string &component_name, const std::string &variant,
                               bool for_cpu) const {
    const ComponentRecord &component = find_component(component_name);
    const std::string &chosen = variant.empty() ? component.default_variant : variant;
    const std::string *graph = find(component.variants, chosen);
    if (graph == nullptr) {
        throw ParameterError(component_name + " has no variant " + quote(chosen) + ": use " +
                             join_names(component.variants));
    }
    if (for_cpu) graph = &component.find_cpu_graph(chosen);
    for (const std::string &name : find_external_data(manifest_, component, *graph)) {
        load_file(name);
    }
    return load_file(*graph);
}

void Bundle::check_variant(const std::string &variant) const {
    std::vector<std::string> known;
    for (const auto &[component_name, component] : manifest_.components) {
        for (const auto &[name, path] : component.variants) {
            if (name == variant) return;
            if (std::find(known.begin(), known.end(), name) == known.end()) known.push_back(name);
        }
    }
    throw ParameterError("variant " + quote(variant) + " is not in this bundle: use " +
                         join(known));
}

const ComponentRecord &Bundle::find_component(const std::string &name) const {
    const ComponentRecord *component = find(manifest_.components, name);
    if (component == nullptr) {
        throw ParameterError("this bundle has no " + name + "; it has " +
                             join_names(manifest_.components));
    }
    return *component;
}

std::string Bundle::find_scheduler(const std::string &name) const {
    for (const auto normalize : {fold_case, shorten_name}) {
        const std::string asked = normalize(name);
        std::vector<std::string> found;
        for (const auto &[known, tables] : manifest_.schedules) {
            if (normalize(known) == asked) found.push_back(known);
        }
        if (found.size() == 1) return found[0];
    }
    throw ParameterError("scheduler " + quote(name) + " is not in this bundle: use " +
                         join_names(manifest_.schedules));
}

std::vector<int> list_steps(const Ordered<std::string> &tables) {
    std::vector<int> steps;
    for (const auto &[count, path] : tables) steps.push_back(read_count(count));
    std::sort(steps.begin(), steps.end());
    return steps;
}

std::string Bundle::find_schedule(const std::string &scheduler, int num_inference_steps) const {
    const std::string name = find_scheduler(scheduler);
    const std::string asked = std::to_string(num_inference_steps);
    const std::string *path = find(*find(manifest_.schedules, name), asked);
    if (path != nullptr) return *path;
    const std::vector<int> steps = list_steps(*find(manifest_.schedules, name));
    if (steps.empty()) {
        throw ParameterError("scheduler " + quote(name) +
                             " has no tables in this bundle: use another one");
    }
    const auto order = [num_inference_steps](int count) {
        return std::make_tuple(std::abs(int64_t{count} - num_inference_steps), count);
    };
    const int nearest = *std::min_element(steps.begin(), steps.end(),
                                          [&order](int a, int b) { return order(a) < order(b); });
    throw ParameterError("num_inference_steps is " + asked + "; this bundle has tables of " + name +
                         " for " + describe_counts(steps) + " steps: use " +
                         std::to_string(nearest));
}

ScheduleTable Bundle::load_schedule(const std::string &scheduler, int num_inference_steps) const {
    const std::string name = find_schedule(scheduler, num_inference_steps);
    ScheduleTable table = parse_schedule(read_file(name), find_file(name));
    if (table.num_inference_steps != num_inference_steps) {
        throw ScheduleError(name + " has " + std::to_string(table.num_inference_steps) +
                            " steps where " + kManifestName + " lists it for " +
                            std::to_string(num_inference_steps) + ": export again");
    }
    return table;
}

namespace {

// The component that a component was cut out of, and its graph that a graph was cut out of.
std::pair<const ComponentRecord *, const std::string *> find_whole(const Manifest &manifest,
                                                                   const ComponentRecord &component,
                                                                   const std::string &graph) {
    const ComponentRecord *whole = find(manifest.components, *component.weights_of);
    for (const auto kind : {&ComponentRecord::variants, &ComponentRecord::cpu_graphs}) {
        if (whole == nullptr) break;
        for (const auto &[variant, path] : component.*kind) {
            const std::string *source = find(whole->*kind, variant);
            if (path == graph && source != nullptr) return {whole, source};
        }
    }
    throw BundleError(std::string(kManifestName) + ": " + graph + " has the weights of " +
                      *component.weights_of + ", which has no such graph: export again");
}

}  // namespace

std::vector<std::string> find_external_data(const Manifest &manifest, const ComponentRecord &part,
                                            const std::string &graph_of_part) {
    const bool is_cut_out = part.weights_of.has_value();
    const auto [whole, found] = is_cut_out ? find_whole(manifest, part, graph_of_part)
                                           : std::make_pair(&part, &graph_of_part);
    const ComponentRecord &component = *whole;
    const std::string &graph = *found;
    const std::string_view folder = get_folder(graph);
    std::vector<std::string_view> graphs, names;
    for (const auto &[name, record] : manifest.files) {
        if (get_folder(name) != folder) continue;
        if (ends_with(name, ".onnx")) {
            graphs.push_back(name);
        } else if (!ends_with(name, ".json")) {
            names.push_back(name);
        }
    }
    const auto find_owner = [&graphs](std::string_view name) {
        const auto owner =
            std::find_if(graphs.begin(), graphs.end(),
                         [name](std::string_view path) { return starts_with(name, path); });
        return owner == graphs.end() ? std::string_view() : *owner;
    };
    std::string_view reader = graph;
    const bool has_data = std::any_of(names.begin(), names.end(), [&](std::string_view name) {
        return find_owner(name) == reader;
    });
    if (!has_data) {
        for (const auto &[variant, path] : component.cpu_graphs) {
            if (path != graph) continue;
            reader = *find(component.variants, variant);
            break;
        }
    }
    std::vector<std::string> files;
    for (const std::string_view name : names) {
        const std::string_view owner = find_owner(name);
        if (owner.empty() || owner == reader) files.emplace_back(name);
    }
    return files;
}

}  // namespace mutoscope
