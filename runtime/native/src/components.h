// The graphs of a bundle, loaded when they are first used.
#ifndef MUTOSCOPE_COMPONENTS_H
#define MUTOSCOPE_COMPONENTS_H

#include <map>
#include <memory>
#include <string>

#include "array.h"
#include "bundle.h"
#include "onnxruntime.h"
#include "session.h"
#include "timings.h"

namespace mutoscope {

// Arrays by where they come from: the sources that the manifest names.
using Values = std::map<std::string, Array>;

// What one generation runs components with.
struct RunContext {
    const RunControl &control;
    Timings &timings;
};

// The sessions of one bundle. Graph inputs are fed by where the manifest says that their value
// comes from, in the type that the graph declares.
class Components {
public:
    // variant: "" for the default of each. Raises ParameterError if no component has it.
    Components(const Bundle &bundle, const Onnxruntime &onnxruntime, EngineOptions options,
               std::string variant);

    // The name of the first component that denoises.
    const std::string &denoiser() const { return denoiser_; }
    // The variant that a component runs; raises ParameterError.
    const std::string &find_variant(const std::string &name) const;

    // Load a component if need be; raises BundleError or EngineError.
    Session &load(const std::string &name, Timings &timings);
    void unload(const std::string &name) { sessions_.erase(name); }
    void unload_all() { sessions_.clear(); }
    // Say that a component is not needed for a while: with low memory, it is freed.
    void release(const std::string &name);

    // Run a component and return its outputs, as the graph made them.
    NamedArrays run(const std::string &name, const Values &values, const RunContext &context);
    // The same on what make_feeds returned, into the arrays that are given for outputs; only what
    // is wanted is returned (Session::run).
    NamedArrays run_feeds(const std::string &name, const NamedArrays &feeds,
                          const NamedArrays &given, const RunContext &context,
                          const IsWanted &is_wanted = {});
    // An array for each input, of the type that its graph declares; raises EngineError.
    NamedArrays make_feeds(const std::string &name, const Values &values) const;

    // Open a graph of a decoder's tiles, which are float32 whichever variant runs.
    std::unique_ptr<Session> open_tile_graph(const std::string &path_in_bundle) const;

private:
    const Bundle &bundle_;
    const Onnxruntime &onnxruntime_;
    EngineOptions options_;
    std::string variant_;
    std::string denoiser_;
    std::map<std::string, std::unique_ptr<Session>> sessions_;
};

}  // namespace mutoscope

#endif
