#include "guidance.h"

#include <cstring>

#include "error.h"
#include "text.h"

namespace mutoscope {
namespace {

constexpr const char *kWayOut = "use guidance_passes='separate'";
constexpr const char *kBatched =
    "guidance_passes is 'batched' (asked for, or this bundle's default), but ";

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

// Fill an array with a value, again and again.
void repeat(const Array &value, const Array &array) {
    const Array converted = value.convert(array.dtype());
    for (size_t done = 0; done < array.bytes(); done += converted.bytes()) {
        std::memcpy(array.as<std::byte>() + done, converted.data(), converted.bytes());
    }
}

// The part of an array that belongs to one of the passes which ran as a batch.
Array slice_pass(const std::string &name, const Array &array, size_t pass, size_t num_passes) {
    const int64_t length = array.rank() == 0 ? 1 : array.shape()[0];
    if (length % static_cast<int64_t>(num_passes) != 0) {
        throw EngineError(name + " is " + format_shape(array.shape()) +
                          " of a batch of two: export again");
    }
    if (num_passes == 1) return array;
    const int64_t part = length / static_cast<int64_t>(num_passes);
    return array.slice(static_cast<int64_t>(pass) * part, static_cast<int64_t>(pass + 1) * part);
}

}  // namespace

GuidedDenoiser::GuidedDenoiser(const Bundle &bundle, Components &components, const RowPlan &plan,
                               const std::vector<Values> &passes, const Shape &latents_shape,
                               bool is_batched, const RunContext &context)
    : bundle_(bundle),
      components_(components),
      plan_(plan),
      context_(context),
      num_passes_(passes.size()),
      is_batched_(is_batched && passes.size() == 2),
      model_output_(Array::make(DType::float32, latents_shape)) {
    for (const std::string &name : plan.denoisers) {
        denoisers_[name] = make_denoiser(name, passes, latents_shape);
    }
}

GuidedDenoiser::Denoiser GuidedDenoiser::make_denoiser(const std::string &name,
                                                       const std::vector<Values> &passes,
                                                       const Shape &latents_shape) const {
    Denoiser denoiser;
    denoiser.record = &bundle_.find_component(name);
    const DType dtype = denoiser.record->outputs.front().second.dtype;
    const size_t num_passes = plan_.guided.count(name) > 0 ? num_passes_ : 1;
    std::vector<NamedArrays> feeds;
    for (size_t pass = 0; pass < num_passes; ++pass) {
        Values values = passes[pass];
        values[kLatents] = Array::make_zeros(DType::float32, latents_shape);
        values[kTimestep] = Array::make_number(0);
        for (const auto &[input, tensor] : denoiser.record->inputs) {
            if (!plan_.carries(tensor.source)) continue;
            // A row brings it.
            values[tensor.source] =
                Array::make_zeros(DType::float32, Shape(tensor.shape.size(), 0));
        }
        feeds.push_back(own_arrays(*denoiser.record, components_.make_feeds(name, values)));
    }
    if (is_batched_ && num_passes == 2) {
        Shape both = latents_shape;
        both[0] = 2;
        denoiser.batch =
            Run{make_batch(*denoiser.record, feeds[0], feeds[1]), Array::make(dtype, both)};
    }
    for (NamedArrays &feed : feeds) {
        denoiser.passes.push_back({std::move(feed), Array::make(dtype, latents_shape)});
    }
    return denoiser;
}

void GuidedDenoiser::feed(const Row &row, Run &run, const Array &sample, Carried::iterator carried,
                          size_t num_passes) const {
    const ComponentRecord &record = bundle_.find_component(plan_.find_denoiser(row));
    for (size_t i = 0; i < run.feeds.size(); ++i) {
        const std::string &source = record.inputs[i].second.source;
        Array &array = run.feeds[i].second;
        if (source == kLatents) {
            repeat(sample, array);
        } else if (source == kTimestep) {
            repeat(Array::make_number(row.timestep), array);
        } else if (plan_.carries(source)) {
            const Array &first = carried->at(source);
            array = num_passes == 1 ? first : concatenate(first, (carried + 1)->at(source));
            array = array.convert(record.inputs[i].second.dtype);
        }
    }
}

Array GuidedDenoiser::run_graph(const Row &row, Run &run, const Array &sample,
                                Carried::iterator carried, size_t num_passes) {
    const std::string &name = plan_.find_denoiser(row);
    const auto wanted = plan_.returns.find(name);
    const auto is_carried = [&](const std::string &output) {
        return wanted != plan_.returns.end() && wanted->second.count(output) > 0;
    };
    const std::string &model_output = bundle_.find_component(name).outputs.front().first;
    feed(row, run, sample, carried, num_passes);
    const NamedArrays outputs = components_.run_feeds(
        name, run.feeds, {{model_output, run.output}}, context_,
        [&](const std::string &output) { return output == model_output || is_carried(output); });
    for (const auto &[output, array] : outputs) {
        if (!is_carried(output)) continue;
        for (size_t pass = 0; pass < num_passes; ++pass) {
            (*(carried + pass))[output] = slice_pass(output, array, pass, num_passes);
        }
    }
    return run.output.convert(DType::float32);
}

Array GuidedDenoiser::run(const Array &sample, const Row &row, const float *frame_guidance,
                          Carried &carried) {
    Denoiser &denoiser = denoisers_.at(plan_.find_denoiser(row));
    const size_t num_passes = row.guidance ? denoiser.passes.size() : 1;
    carried.resize(num_passes_);
    if (num_passes == 2 && is_batched_) {
        const Array both = run_graph(row, *denoiser.batch, sample, carried.begin(), 2);
        combine(both.as<float>(), both.as<float>() + model_output_.size(), frame_guidance);
        return model_output_;
    }
    std::vector<Array> outputs;
    for (size_t pass = 0; pass < num_passes; ++pass) {
        outputs.push_back(run_graph(row, denoiser.passes[pass], sample, carried.begin() + pass, 1));
    }
    if (num_passes == 1) return outputs.front();
    combine(outputs[0].as<float>(), outputs[1].as<float>(), frame_guidance);
    return model_output_;
}

// model_output = (conditional - unconditional) * guidance + unconditional
void GuidedDenoiser::combine(const float *conditional, const float *unconditional,
                             const float *frame_guidance) const {
    const size_t frames = model_output_.shape()[2];
    const size_t plane = model_output_.shape()[3] * model_output_.shape()[4];
    float *model_output = model_output_.as<float>();
    for (size_t start = 0, row = 0; start < model_output_.size(); start += plane, ++row) {
        const float guidance = frame_guidance[row % frames];
        for (size_t i = start; i < start + plane; ++i) {
            model_output[i] = (conditional[i] - unconditional[i]) * guidance + unconditional[i];
        }
    }
}

bool read_guidance_passes(const ComponentRecord &record, const std::string &guidance_passes) {
    if (guidance_passes == "separate") return false;
    if (guidance_passes != "batched") {
        throw ParameterError("guidance_passes is " + quote(guidance_passes) +
                             "; it must be one of separate, batched: use separate");
    }
    find_batch_axis(record);
    return true;
}

}  // namespace mutoscope
