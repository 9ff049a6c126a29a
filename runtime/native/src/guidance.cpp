#include "guidance.h"

#include <cstring>

#include "error.h"
#include "text.h"

namespace mutoscope {
namespace {

constexpr const char *kWayOut = "use guidance_passes='separate'";
constexpr const char *kBatched = "guidance_passes is 'batched', but ";

// The name of the axis that clips are stacked along.
const std::string &find_batch_axis(const ComponentRecord &record) {
    for (const auto &[name, tensor] : record.inputs) {
        if (tensor.source != kLatents || tensor.shape.empty()) continue;
        const Axis &axis = tensor.shape.front();
        if (axis.length < 0) return axis.name;
        throw ParameterError(kBatched + ("this bundle's denoiser takes " + name) +
                             " with a first axis of " + std::to_string(axis.length) +
                             ", not of any length: " + kWayOut);
    }
    throw EngineError("the denoiser takes no latents: export again");
}

bool is_equal(const Array &first, const Array &second) {
    return first.dtype() == second.dtype() && first.shape() == second.shape() &&
           std::memcmp(first.data(), second.data(), first.bytes()) == 0;
}

Array concatenate(const Array &first, const Array &second) {
    Shape shape = first.shape();
    shape[0] += second.shape()[0];
    const Array both = Array::make(first.dtype(), std::move(shape));
    std::memcpy(both.data(), first.data(), first.bytes());
    std::memcpy(both.as<std::byte>() + first.bytes(), second.data(), second.bytes());
    return both;
}

// The feeds of two passes as those of one.
NamedArrays make_batch(const ComponentRecord &record, const NamedArrays &first,
                       const NamedArrays &second) {
    const std::string &batch_axis = find_batch_axis(record);
    NamedArrays feeds;
    for (size_t i = 0; i < first.size(); ++i) {
        const auto &[name, array] = first[i];
        const Array &other = second[i].second;
        const std::vector<Axis> &axes = record.inputs[i].second.shape;
        const bool has_batch_axis =
            !axes.empty() && axes.front().length < 0 && axes.front().name == batch_axis;
        if (!has_batch_axis && !is_equal(array, other)) {
            throw ParameterError(kBatched + name +
                                 " has no batch axis and differs between the passes: " + kWayOut);
        }
        if (has_batch_axis && array.rank() != axes.size()) {
            throw EngineError(name + " is " + format_shape(array.shape()) +
                              " where the manifest has " + std::to_string(axes.size()) +
                              " axes: export again");
        }
        if (has_batch_axis && array.shape() != other.shape()) {
            throw ParameterError(kBatched + name + " is " + format_shape(array.shape()) + " and " +
                                 format_shape(other.shape()) +
                                 " in the two passes; one batch needs equal shapes: " + kWayOut);
        }
        feeds.emplace_back(name, has_batch_axis ? concatenate(array, other) : array);
    }
    return feeds;
}

// An array of its own for each input that changes from step to step.
NamedArrays own_arrays(const ComponentRecord &record, NamedArrays feeds) {
    for (size_t i = 0; i < feeds.size(); ++i) {
        const std::string &source = record.inputs[i].second.source;
        if (source != kLatents && source != kTimestep) continue;
        Array &array = feeds[i].second;
        array = Array::copy_from(array.dtype(), array.shape(), array.data());
    }
    return feeds;
}

}  // namespace

GuidedDenoiser::GuidedDenoiser(const Bundle &bundle, Components &components,
                               const std::vector<Values> &passes, const Shape &latents_shape,
                               std::vector<float> frame_guidance, bool is_batched,
                               const RunContext &context)
    : record_(bundle.find_component(components.denoiser())),
      components_(components),
      context_(context),
      frame_guidance_(std::move(frame_guidance)),
      model_output_(Array::make(DType::float32, latents_shape)) {
    std::vector<NamedArrays> feeds;
    for (Values values : passes) {
        values[kLatents] = Array::make_zeros(DType::float32, latents_shape);
        values[kTimestep] = Array::make_number(0);
        feeds.push_back(own_arrays(record_, components.make_feeds(components.denoiser(), values)));
    }
    if (is_batched && feeds.size() == 2) feeds = {make_batch(record_, feeds[0], feeds[1])};
    Shape output_shape = latents_shape;
    output_shape[0] = static_cast<int64_t>(passes.size() / feeds.size());
    for (NamedArrays &feed : feeds) {
        runs_.push_back(
            {std::move(feed), Array::make(record_.outputs.front().second.dtype, output_shape)});
    }
}

void GuidedDenoiser::feed(Run &run, const Array &sample, double timestep) const {
    for (size_t i = 0; i < run.feeds.size(); ++i) {
        const std::string &source = record_.inputs[i].second.source;
        const Array &array = run.feeds[i].second;
        if (source == kLatents) {
            const Array converted = sample.convert(array.dtype());
            for (size_t done = 0; done < array.bytes(); done += converted.bytes()) {
                std::memcpy(array.as<std::byte>() + done, converted.data(), converted.bytes());
            }
        } else if (source == kTimestep) {
            const Array number = Array::make_number(timestep).convert(array.dtype());
            for (size_t done = 0; done < array.bytes(); done += number.bytes()) {
                std::memcpy(array.as<std::byte>() + done, number.data(), number.bytes());
            }
        }
    }
}

Array GuidedDenoiser::operator()(const Array &sample, double timestep) {
    const std::string &name = record_.outputs.front().first;
    std::vector<Array> outputs;
    for (Run &run : runs_) {
        feed(run, sample, timestep);
        components_.run_feeds(components_.denoiser(), run.feeds, {{name, run.output}}, context_);
        outputs.push_back(run.output.convert(DType::float32));
    }
    const Array &output = outputs.front();
    const bool is_batch = output.size() > model_output_.size();
    if (outputs.size() == 1 && !is_batch) return output;
    const float *conditional = output.as<float>();
    combine(conditional,
            is_batch ? conditional + model_output_.size() : outputs.back().as<float>());
    return model_output_;
}

// model_output = (conditional - unconditional) * guidance + unconditional
void GuidedDenoiser::combine(const float *conditional, const float *unconditional) const {
    const size_t frames = frame_guidance_.size();
    const size_t plane = model_output_.shape()[3] * model_output_.shape()[4];
    float *model_output = model_output_.as<float>();
    for (size_t start = 0, row = 0; start < model_output_.size(); start += plane, ++row) {
        const float guidance = frame_guidance_[row % frames];
        for (size_t i = start; i < start + plane; ++i) {
            model_output[i] = (conditional[i] - unconditional[i]) * guidance + unconditional[i];
        }
    }
}

void check_batched(const ComponentRecord &record) { find_batch_axis(record); }

}  // namespace mutoscope
