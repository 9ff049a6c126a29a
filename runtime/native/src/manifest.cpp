#include "manifest.h"

#include <algorithm>
#include <charconv>
#include <iterator>
#include <unordered_set>

#include "error.h"
#include "json_reader.h"
#include "record_readers.h"
#include "text.h"

namespace mutoscope {

namespace {

constexpr int kFormatVersion = 1;
constexpr const char *kUpgrade = "use a newer libmutoscope";
constexpr std::string_view kSources[] = {kLatents,   kTimestep,     kNoise,
                                         kNumFrames, kHeight,       kWidth,
                                         kFrameRate, kPromptEmbeds, kPooledPromptEmbeds};

std::string read_text(const JsonField &field) { return field.read_text(); }

// Only people read how close an export came; it must still be what the format says.
int check_parity(const JsonField &field) {
    field.get("shapes").read_map([](const JsonField &shape) {
        return shape.read_list([](const JsonField &length) {
            if (!length.value().is_whole()) length.fail("a whole number");
            return 0;
        });
    });
    for (const char *key : {"psnr_db", "max_abs_error", "cosine_similarity"}) {
        field.get(key).read_number();
    }
    if (const auto output = field.find("output")) output->read_text();
    return 0;
}

ComponentRecord read_component(const JsonField &field) {
    ComponentRecord record;
    record.variants = field.get("variants").read_map(read_text);
    record.default_variant = field.get("default_variant").read_text();
    record.inputs = field.get("inputs").read_map(read_tensor);
    record.outputs = field.get("outputs").read_map(read_tensor);
    if (const auto parity = field.find("parity")) parity->read_list(check_parity);
    if (const auto decoder = field.find_value("decoder")) record.decoder = read_decoder(*decoder);
    if (const auto graphs = field.find("cpu_graphs")) {
        record.cpu_graphs = graphs->read_map(read_text);
    }
    if (const auto owner = field.find_value("weights_of")) record.weights_of = owner->read_text();
    return record;
}

Ordered<std::string> read_tables(const JsonField &field) { return field.read_map(read_text); }

int read_version(const JsonValue &value) {
    const auto version =
        value.kind() == JsonKind::object ? value.find("format_version") : std::nullopt;
    if (!version || !version->is_whole()) {
        throw BundleError(std::string(kManifestName) + " has no format_version: export again");
    }
    if (version->number() > kFormatVersion) {
        throw BundleError(std::string(kManifestName) + " has format_version " +
                          version->describe() + "; this mutoscope reads up to " +
                          std::to_string(kFormatVersion) + ": " + kUpgrade);
    }
    // Of versions before the first nothing is known; Python takes them for this one too.
    return kFormatVersion;
}

Manifest read_manifest(const JsonValue &value) {
    Manifest manifest;
    manifest.format_version = read_version(value);
    const JsonField field(value, kManifestName);
    manifest.name = field.get("name").read_text();
    manifest.family = field.get("family").read_text();
    manifest.components = field.get("components").read_map(read_component);
    manifest.tokenizers = field.get("tokenizers").read_map(read_tokenizer);
    manifest.latents = read_latents(field.get("latents"));
    manifest.limits = read_limits(field.get("limits"));
    manifest.defaults = read_defaults(field.get("defaults"));
    manifest.schedules = field.get("schedules").read_map(read_tables);
    manifest.files = field.get("files").read_map(read_file_record);
    if (const auto guidance = field.find("guidance")) manifest.guidance = guidance->read_bool();
    if (const auto images = field.find("images")) manifest.images = images->read_map(read_image);
    if (const auto conditions = field.find("conditions")) {
        manifest.conditions = conditions->read_map(read_condition);
    }
    if (const auto zeros = field.find("force_zeros_for_empty_prompt")) {
        manifest.force_zeros_for_empty_prompt = zeros->read_bool();
    }
    if (const auto prompts = field.find_value("prompts")) manifest.prompts = prompts->read_text();
    if (const auto provenance = field.find("provenance")) provenance->check_object();
    return manifest;
}

std::vector<std::string> list_referenced_paths(const Manifest &manifest) {
    std::vector<std::string> paths;
    const auto add_all = [&paths](const Ordered<std::string> &named) {
        for (const auto &[name, path] : named) paths.push_back(path);
    };
    for (const auto &[source, tokenizer] : manifest.tokenizers) paths.push_back(tokenizer.file);
    for (const auto &[name, component] : manifest.components) {
        add_all(component.variants);
        add_all(component.cpu_graphs);
        if (component.decoder && component.decoder->tiles) {
            paths.push_back(component.decoder->tiles->head);
            for (const StageRecord &stage : component.decoder->tiles->stages) {
                paths.push_back(stage.graph);
            }
        }
    }
    for (const auto &[scheduler, tables] : manifest.schedules) add_all(tables);
    if (manifest.prompts) paths.push_back(*manifest.prompts);
    return paths;
}

void check_paths(const Manifest &manifest) {
    std::unordered_set<std::string_view> files;
    for (const auto &[path, file] : manifest.files) {
        check_relative_path(path);
        files.insert(path);
    }
    for (const std::string &path : list_referenced_paths(manifest)) {
        check_relative_path(path);
        if (files.count(path) == 0) {
            throw BundleError(std::string(kManifestName) + " names " + path +
                              " but does not list it under files");
        }
    }
}

// What has its weights in another component's files needs a graph there for each of its own.
void check_weights(const Manifest &manifest, const std::string &name,
                   const ComponentRecord &component) {
    if (!component.weights_of) return;
    const std::string start = std::string(kManifestName) + ": components: " + name + " has ";
    const ComponentRecord *owner = find(manifest.components, *component.weights_of);
    if (owner == nullptr || owner->weights_of) {
        throw BundleError(start + "the weights of " + quote(*component.weights_of) +
                          ", which is no component with weights of its own");
    }
    for (const auto *graphs : {&component.variants, &component.cpu_graphs}) {
        for (const auto &[variant, path] : *graphs) {
            if (find(owner->variants, variant) != nullptr) continue;
            throw BundleError(start + "a variant " + quote(variant) + ", which " +
                              *component.weights_of + ", whose weights it has, lacks");
        }
    }
}

void check_variants(const Manifest &manifest) {
    for (const auto &[name, component] : manifest.components) {
        const std::string start = std::string(kManifestName) + ": components: " + name + " has ";
        if (find(component.variants, component.default_variant) == nullptr) {
            throw BundleError(start + "no variant " + quote(component.default_variant));
        }
        std::unordered_set<std::string_view> variants;
        for (const auto &[variant, path] : component.variants) variants.insert(variant);
        for (const auto &[variant, path] : component.cpu_graphs) {
            if (variants.count(variant) == 0) {
                throw BundleError(start + "a CPU graph of " + quote(variant) +
                                  ", which is not among its variants");
            }
        }
        check_weights(manifest, name, component);
    }
}

// The sources that an input may have, in the order in which messages list them.
class KnownSources {
public:
    explicit KnownSources(const Manifest &manifest) {
        for (const std::string_view source : kSources) add(source);
        add_keys(manifest.tokenizers);
        add_keys(manifest.images);
        add_keys(manifest.conditions);
    }

    // Without the first `skipped` of them.
    template <typename T>
    void add_keys(const Ordered<T> &values, size_t skipped = 0) {
        for (size_t i = skipped; i < values.size(); ++i) add(values[i].first);
    }

    void check(const std::string &component, const std::string &input,
               const TensorRecord &tensor) const {
        const std::string &source = tensor.source;
        if (source.empty() || known_.count(source) == 0) {
            throw BundleError(std::string(kManifestName) + ": " + component + " takes " + input +
                              " from " + (source.empty() ? "None" : quote(source)) +
                              ", which this mutoscope does not know (known: " + join(names_) +
                              "): " + kUpgrade);
        }
        if (!tensor.unconditional.empty() && tensor.unconditional != kZeros) {
            throw BundleError(std::string(kManifestName) + ": " + component + ": " + input +
                              ": unconditional is " + quote(tensor.unconditional) +
                              ", which this mutoscope does not know (known: " + kZeros +
                              "): " + kUpgrade);
        }
    }

private:
    void add(std::string_view name) {
        names_.emplace_back(name);
        known_.insert(name);
    }

    std::vector<std::string> names_;
    std::unordered_set<std::string_view> known_;  // of the manifest's own memory
};

// Every input has a source that is known when its component runs.
void check_sources(const Manifest &manifest) {
    KnownSources known(manifest);
    for (const auto &[name, component] : manifest.components) {
        for (const auto &[input, tensor] : component.inputs) known.check(name, input, tensor);
        if (is_decoder(name)) continue;
        // What a denoiser returns beside the model output is for other denoisers.
        known.add_keys(component.outputs, is_denoiser(name) ? 1 : 0);
    }
}

void check_schedules(const Manifest &manifest) {
    for (const auto &[scheduler, tables] : manifest.schedules) {
        for (const auto &[count, path] : tables) {
            const char *end = count.data() + count.size();
            int steps = 0;
            const auto parsed = std::from_chars(count.data(), end, steps);
            if (parsed.ec != std::errc() || parsed.ptr != end || steps <= 0) {
                throw BundleError(std::string(kManifestName) + ": schedules: " + scheduler + ": " +
                                  quote(count) + " must be a number of steps");
            }
        }
    }
    if (find(manifest.schedules, manifest.defaults.scheduler) == nullptr) {
        throw BundleError(std::string(kManifestName) + ": defaults: scheduler " +
                          quote(manifest.defaults.scheduler) + " has no schedules");
    }
}

}  // namespace

bool is_denoiser(std::string_view name) {
    return std::any_of(
        std::begin(kDenoisers), std::end(kDenoisers),
        [name](std::string_view start) { return name.substr(0, start.size()) == start; });
}

bool is_decoder(std::string_view name) { return name == kVaeDecoder || name == kPreviewDecoder; }

const std::string &ComponentRecord::choose_variant(const std::string &variant) const {
    for (const auto &[name, path] : variants) {
        if (name == variant) return name;
    }
    return default_variant;
}

const std::string &ComponentRecord::find_cpu_graph(const std::string &variant) const {
    const std::string *graph = find(cpu_graphs, variant);
    return graph != nullptr ? *graph : *find(variants, variant);
}

Manifest parse_manifest(std::string_view json_text, const std::string &name) {
    std::string problem;
    const auto document = JsonDocument::parse(json_text, problem);
    if (!document) {
        throw BundleError(name + " is not valid JSON (damaged?): " + problem + ": export again");
    }
    Manifest manifest = read_manifest(document->root());
    check_paths(manifest);
    check_variants(manifest);
    check_sources(manifest);
    check_schedules(manifest);
    return manifest;
}

void check_relative_path(const std::string &path) {
    bool inside = path.find_first_of(std::string_view("\\\0", 2)) == std::string::npos;
    if (path.empty() || path[0] == '/') inside = false;
    const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
    if (path.size() >= 2 && path[1] == ':' && is_letter(path[0])) inside = false;  // a drive
    bool has_name = false;
    for (size_t begin = 0; begin <= path.size();) {
        const size_t end = std::min(path.find('/', begin), path.size());
        const std::string_view part = std::string_view(path).substr(begin, end - begin);
        if (part == "..") inside = false;
        if (!part.empty() && part != ".") has_name = true;
        begin = end + 1;
    }
    if (!inside || !has_name) {
        throw BundleError(std::string(kManifestName) + " names " + quote(path) +
                          ", which is not inside the bundle");
    }
}

}  // namespace mutoscope
