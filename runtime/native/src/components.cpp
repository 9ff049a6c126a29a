#include "components.h"

#include "error.h"
#include "row_plan.h"
#include "text.h"

namespace mutoscope {
namespace {

// Where the time of running a component is added.
double &find_part(Timings &timings, const std::string &name) {
    if (is_denoiser(name)) return timings.seconds_denoiser;
    if (name == "text_encoder") return timings.seconds_text_encoder;
    if (name == "image_encoder") return timings.seconds_image_encoder;
    if (name == "vae_encoder") return timings.seconds_vae_encoder;
    if (name == kVaeDecoder) return timings.seconds_vae_decoder;
    return timings.seconds_other;
}

std::string join_names(const std::vector<TensorSpec> &specs) {
    std::vector<std::string> names;
    for (const TensorSpec &spec : specs) names.push_back(spec.name);
    return join(names);
}

std::string describe(const TensorRecord &record) {
    std::vector<std::string> lengths;
    for (const Axis &axis : record.shape) {
        lengths.push_back(axis.length < 0 ? axis.name : std::to_string(axis.length));
    }
    return get_dtype_name(record.dtype) + ("[" + join(lengths) + "]");
}

bool is_same(const TensorRecord &record, const TensorSpec &spec) {
    if (record.dtype != spec.dtype || record.shape.size() != spec.shape.size()) return false;
    for (size_t i = 0; i < spec.shape.size(); ++i) {
        // What one of them calls variable, the other may know the length of.
        const int64_t listed = record.shape[i].length, actual = spec.shape[i];
        if (listed >= 0 && actual >= 0 && listed != actual) return false;
    }
    return true;
}

// Raises EngineError unless a graph takes and returns what the manifest says of it.
void check_declaration(const std::string &name, const std::string &kind,
                       const Ordered<TensorRecord> &records, const std::vector<TensorSpec> &specs) {
    const auto fail = [&] {
        throw EngineError(name + ": the manifest lists the " + kind + "s " + join_names(records) +
                          "; the graph has " + join_names(specs) + ": export again");
    };
    if (records.size() != specs.size()) fail();
    for (const TensorSpec &spec : specs) {
        const TensorRecord *record = find(records, spec.name);
        if (record == nullptr) fail();
        if (!is_same(*record, spec)) {
            throw EngineError(name + ": the manifest lists " + kind + " " + spec.name + " as " +
                              describe(*record) + "; the graph has " + spec.describe() +
                              ": export again");
        }
    }
}

// The value of a source; raises EngineError where there is none.
const Array &find_value(const Values &values, const std::string &source, const std::string &name,
                        const std::string &input) {
    const auto value = values.find(source);
    if (value == values.end()) {
        throw EngineError(name + " takes " + input + " from " + source +
                          ", which it is not given here: export the bundle again");
    }
    return value->second;
}

// Raises BundleError for components that nothing could run.
void check_components(const Manifest &manifest) {
    const std::string where = std::string(kManifestName) + ": components: ";
    for (const auto &[name, component] : manifest.components) {
        if (component.outputs.empty()) {
            throw BundleError(where + name + " has no outputs: export again");
        }
        const auto &decoder = component.decoder;
        const bool cuts_clips = decoder && (decoder->independent_frames || decoder->tiles);
        if (cuts_clips && manifest.latents.vae_scale_factor_temporal > 1) {
            throw BundleError(where + name +
                              " decodes its frames apart, but one of the latents is " +
                              std::to_string(manifest.latents.vae_scale_factor_temporal) +
                              " frames: export again");
        }
    }
}

}  // namespace

Components::Components(const Bundle &bundle, const Onnxruntime &onnxruntime, EngineOptions options,
                       std::string variant)
    : bundle_(bundle),
      onnxruntime_(onnxruntime),
      options_(std::move(options)),
      variant_(std::move(variant)),
      denoiser_(find_first_denoiser(bundle.manifest())) {
    check_components(bundle.manifest());
    if (!variant_.empty()) bundle.check_variant(variant_);
    onnxruntime.find_execution_provider(options_);
}

const std::string &Components::find_variant(const std::string &name) const {
    return bundle_.find_component(name).choose_variant(variant_);
}

Session &Components::load(const std::string &name, Timings &timings) {
    const auto loaded = sessions_.find(name);
    if (loaded != sessions_.end()) return *loaded->second;
    const Stopwatch stopwatch(timings.seconds_load);
    const ComponentRecord &component = bundle_.find_component(name);
    const std::string path = bundle_.load_graph(name, find_variant(name), options_.is_on_cpu());
    auto session = std::make_unique<Session>(onnxruntime_, path, options_);
    check_declaration(name, "input", component.inputs, session->inputs());
    check_declaration(name, "output", component.outputs, session->outputs());
    return *(sessions_[name] = std::move(session));
}

void Components::release(const std::string &name) {
    if (options_.low_memory) unload(name);
}

NamedArrays Components::run(const std::string &name, const Values &values,
                            const RunContext &context) {
    return run_feeds(name, make_feeds(name, values), {}, context);
}

NamedArrays Components::run_feeds(const std::string &name, const NamedArrays &feeds,
                                  const NamedArrays &given, const RunContext &context,
                                  const IsWanted &is_wanted) {
    Session &session = load(name, context.timings);
    const Stopwatch stopwatch(find_part(context.timings, name));
    return session.run(feeds, given, context.control, is_wanted);
}

NamedArrays Components::make_feeds(const std::string &name, const Values &values) const {
    NamedArrays feeds;
    for (const auto &[input, record] : bundle_.find_component(name).inputs) {
        const Array value = find_value(values, record.source, name, input).convert(record.dtype);
        const bool wants_axis = value.rank() == 0 && record.shape.size() == 1;
        feeds.emplace_back(input, wants_axis ? value.reshape({1}) : value);
    }
    return feeds;
}

std::unique_ptr<Session> Components::open_tile_graph(const std::string &path_in_bundle) const {
    return std::make_unique<Session>(onnxruntime_, bundle_.load_file(path_in_bundle), options_);
}

}  // namespace mutoscope
