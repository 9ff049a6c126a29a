// One ONNX graph in an onnxruntime session, on the execution provider that was asked for.
#ifndef MUTOSCOPE_SESSION_H
#define MUTOSCOPE_SESSION_H

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "array.h"
#include "onnxruntime.h"

namespace mutoscope {

// One input or output of a graph.
struct TensorSpec {
    std::string name;
    DType dtype;
    Shape shape;  // -1: may vary

    std::string describe() const;  // float32[1, 77, -1]
};

// Whether an output is to be returned; the graph need not compute the others.
using IsWanted = std::function<bool(const std::string &output)>;

class Session {
public:
    // Load the graph at a path; raises EngineError.
    Session(const Onnxruntime &onnxruntime, const std::string &path, const EngineOptions &options);

    const std::vector<TensorSpec> &inputs() const { return inputs_; }
    const std::vector<TensorSpec> &outputs() const { return outputs_; }

    // The outputs for these inputs, in the order of the graph.
    //
    // feeds: an array for each input, of the type that the graph declares.
    // given: arrays that results are written to, by the name of the output; the others are new.
    // is_wanted: whether to return the output of a name; empty: all of them.
    // Raises EngineError; after RunControl::stop too.
    NamedArrays run(const NamedArrays &feeds, const NamedArrays &given, const RunControl &control,
                    const IsWanted &is_wanted = {});

private:
    using Value = std::unique_ptr<OrtValue, Released<OrtValue, &OrtApi::ReleaseValue>>;

    void read_specs();
    void check_feeds(const NamedArrays &feeds) const;
    Value make_value(const Array &array) const;
    Array take_array(Value value) const;

    const Onnxruntime &onnxruntime_;
    std::string name_;
    std::unique_ptr<OrtSession, Released<OrtSession, &OrtApi::ReleaseSession>> session_;
    std::vector<TensorSpec> inputs_, outputs_;
};

}  // namespace mutoscope

#endif
