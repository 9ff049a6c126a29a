#include "session.h"

#include <algorithm>
#include <filesystem>

#include "error.h"
#include "text.h"

namespace mutoscope {
namespace {

constexpr std::pair<ONNXTensorElementDataType, DType> kElementTypes[] = {
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, DType::float32},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, DType::float64},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, DType::float16},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, DType::int64},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, DType::int32},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, DType::uint8},
    {ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, DType::boolean},
};

ONNXTensorElementDataType find_element_type(DType dtype) {
    for (const auto &[element, known] : kElementTypes) {
        if (known == dtype) return element;
    }
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

DType find_dtype(ONNXTensorElementDataType type, const std::string &what) {
    for (const auto &[element, dtype] : kElementTypes) {
        if (element == type) return dtype;
    }
    throw EngineError(what + " is of a type that no bundle has: export again");
}

}  // namespace

std::string TensorSpec::describe() const { return get_dtype_name(dtype) + format_shape(shape); }

Session::Session(const Onnxruntime &onnxruntime, const std::string &path,
                 const EngineOptions &options)
    : onnxruntime_(onnxruntime), session_(nullptr, {&onnxruntime.api()}) {
    const std::filesystem::path file(path);
    name_ = (file.parent_path().filename() / file.filename()).string();
    const SessionOptions made = make_session_options(onnxruntime, options);
    OrtSession *created = nullptr;
    onnxruntime.check(
        onnxruntime.api().CreateSession(onnxruntime.env(), path.c_str(), made.get(), &created),
        path + " cannot be loaded");
    session_.reset(created);
    read_specs();
}

namespace {

// The declaration of one input or output, from onnxruntime.
TensorSpec read_spec(const Onnxruntime &onnxruntime, std::string name, const OrtTypeInfo *type) {
    const OrtApi &api = onnxruntime.api();
    const OrtTensorTypeAndShapeInfo *tensor = nullptr;
    onnxruntime.check(api.CastTypeInfoToTensorInfo(type, &tensor), name + " is no tensor");
    if (tensor == nullptr) throw EngineError(name + " is no tensor: export again");
    ONNXTensorElementDataType element{};
    size_t rank = 0;
    onnxruntime.check(api.GetTensorElementType(tensor, &element), name + " has no type");
    onnxruntime.check(api.GetDimensionsCount(tensor, &rank), name + " has no shape");
    TensorSpec spec{std::move(name), DType::float32, Shape(rank)};
    onnxruntime.check(api.GetDimensions(tensor, spec.shape.data(), rank), "a graph has no shape");
    spec.dtype = find_dtype(element, spec.name);
    return spec;
}

}  // namespace

void Session::read_specs() {
    const OrtApi &api = onnxruntime_.api();
    OrtAllocator *allocator = nullptr;
    onnxruntime_.check(api.GetAllocatorWithDefaultOptions(&allocator), "there is no allocator");
    const auto read = [&](auto get_count, auto get_name, auto get_type) {
        size_t count = 0;
        onnxruntime_.check((api.*get_count)(session_.get(), &count), name_ + " has no inputs");
        std::vector<TensorSpec> specs;
        for (size_t i = 0; i < count; ++i) {
            char *raw = nullptr;
            onnxruntime_.check((api.*get_name)(session_.get(), i, allocator, &raw), name_);
            const auto free_name = [&](char *text) { allocator->Free(allocator, text); };
            const std::unique_ptr<char, decltype(free_name)> name(raw, free_name);
            OrtTypeInfo *type = nullptr;
            onnxruntime_.check((api.*get_type)(session_.get(), i, &type), name_);
            const std::unique_ptr<OrtTypeInfo, Released<OrtTypeInfo, &OrtApi::ReleaseTypeInfo>>
                release(type, {&api});
            specs.push_back(read_spec(onnxruntime_, name.get(), type));
        }
        return specs;
    };
    inputs_ = read(&OrtApi::SessionGetInputCount, &OrtApi::SessionGetInputName,
                   &OrtApi::SessionGetInputTypeInfo);
    outputs_ = read(&OrtApi::SessionGetOutputCount, &OrtApi::SessionGetOutputName,
                    &OrtApi::SessionGetOutputTypeInfo);
}

void Session::check_feeds(const NamedArrays &feeds) const {
    for (const TensorSpec &spec : inputs_) {
        const auto is_it = [&](const auto &feed) { return feed.first == spec.name; };
        const auto feed = std::find_if(feeds.begin(), feeds.end(), is_it);
        if (feed == feeds.end()) {
            throw EngineError(name_ + " needs an input " + quote(spec.name) + ": export again");
        }
        const Array &array = feed->second;
        bool fits = array.dtype() == spec.dtype && array.rank() == spec.shape.size();
        for (size_t i = 0; fits && i < array.rank(); ++i) {
            fits = spec.shape[i] < 0 || spec.shape[i] == array.shape()[i];
        }
        if (!fits) {
            throw EngineError(name_ + ": " + spec.name + " is " + get_dtype_name(array.dtype()) +
                              format_shape(array.shape()) + "; the graph takes " + spec.describe());
        }
    }
}

Session::Value Session::make_value(const Array &array) const {
    const OrtApi &api = onnxruntime_.api();
    OrtMemoryInfo *info = nullptr;
    onnxruntime_.check(api.CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeCPU, &info),
                       "onnxruntime does not know the memory of the CPU");
    const std::unique_ptr<OrtMemoryInfo, Released<OrtMemoryInfo, &OrtApi::ReleaseMemoryInfo>>
        release(info, {&api});
    OrtValue *value = nullptr;
    onnxruntime_.check(
        api.CreateTensorWithDataAsOrtValue(info, array.data(), array.bytes(), array.shape().data(),
                                           array.rank(), find_element_type(array.dtype()), &value),
        name_ + " does not take an array");
    return Value(value, {&api});
}

Array Session::take_array(Value value) const {
    const OrtApi &api = onnxruntime_.api();
    OrtTensorTypeAndShapeInfo *info = nullptr;
    onnxruntime_.check(api.GetTensorTypeAndShape(value.get(), &info),
                       name_ + " returned no tensor");
    const std::unique_ptr<
        OrtTensorTypeAndShapeInfo,
        Released<OrtTensorTypeAndShapeInfo, &OrtApi::ReleaseTensorTypeAndShapeInfo>>
        release(info, {&api});
    ONNXTensorElementDataType element{};
    size_t rank = 0;
    onnxruntime_.check(api.GetTensorElementType(info, &element), name_ + " returned no type");
    onnxruntime_.check(api.GetDimensionsCount(info, &rank), name_ + " returned no shape");
    Shape shape(rank);
    onnxruntime_.check(api.GetDimensions(info, shape.data(), rank), name_ + " returned no shape");
    void *data = nullptr;
    onnxruntime_.check(api.GetTensorMutableData(value.get(), &data), name_ + " returned no data");
    // The array keeps onnxruntime's value, whose memory it shows.
    auto owner = std::make_shared<Value>(std::move(value));
    std::shared_ptr<std::byte[]> memory(owner, static_cast<std::byte *>(data));
    return Array::adopt(find_dtype(element, name_), std::move(shape), std::move(memory));
}

NamedArrays Session::run(const NamedArrays &feeds, const NamedArrays &given,
                         const RunControl &control, const IsWanted &is_wanted) {
    check_feeds(feeds);
    std::vector<const char *> input_names, output_names;
    std::vector<Value> values;
    for (const auto &[name, array] : feeds) {
        input_names.push_back(name.c_str());
        values.push_back(make_value(array));
    }
    std::vector<OrtValue *> inputs, outputs;
    for (const Value &value : values) inputs.push_back(value.get());
    std::vector<Value> targets;
    std::vector<const Array *> arrays;
    for (const TensorSpec &spec : outputs_) {
        if (is_wanted && !is_wanted(spec.name)) continue;
        output_names.push_back(spec.name.c_str());
        const auto is_it = [&](const auto &pair) { return pair.first == spec.name; };
        const auto found = std::find_if(given.begin(), given.end(), is_it);
        arrays.push_back(found == given.end() ? nullptr : &found->second);
        targets.push_back(arrays.back() == nullptr ? Value(nullptr, {&onnxruntime_.api()})
                                                   : make_value(*arrays.back()));
        outputs.push_back(targets.back().get());
    }
    OrtStatus *status = onnxruntime_.api().Run(
        session_.get(), control.options(), input_names.data(), inputs.data(), inputs.size(),
        output_names.data(), output_names.size(), outputs.data());
    for (size_t i = 0; i < targets.size(); ++i) {
        if (arrays[i] == nullptr) targets[i].reset(outputs[i]);
    }
    onnxruntime_.check(status, name_ + " failed");
    NamedArrays results;
    for (size_t i = 0; i < targets.size(); ++i) {
        results.emplace_back(output_names[i],
                             arrays[i] != nullptr ? *arrays[i] : take_array(std::move(targets[i])));
    }
    return results;
}

}  // namespace mutoscope
