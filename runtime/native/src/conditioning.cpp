#include "conditioning.h"

#include <algorithm>
#include <cmath>

#include "error.h"
#include "images.h"
#include "text.h"

namespace mutoscope {
namespace {

// Whether arrays have these names, each once.
template <typename T>
bool has_names(const NamedArrays &arrays, const Ordered<T> &names) {
    std::set<std::string> given, wanted;
    for (const auto &[name, array] : arrays) given.insert(name);
    for (const auto &[name, value] : names) wanted.insert(name);
    return given == wanted && given.size() == arrays.size();
}

Array make_zeros_like(const Array &array) {
    return Array::make_zeros(array.dtype(), array.shape());
}

// Noise for an encoder that takes some; its shape follows from the other inputs.
void draw_noise(const std::string &name, const ComponentRecord &record, Values &values,
                NoiseGenerator &generator) {
    const TensorRecord *wanted = nullptr;
    std::map<std::string, int64_t> lengths;
    for (const auto &[input, tensor] : record.inputs) {
        if (tensor.source == kNoise) wanted = &tensor;
        const auto value = values.find(tensor.source);
        // Numbers have no axes yet.
        if (value == values.end() || value->second.rank() != tensor.shape.size()) continue;
        for (size_t i = 0; i < tensor.shape.size(); ++i) {
            lengths[tensor.shape[i].name] = value->second.shape()[i];
        }
    }
    if (wanted == nullptr) return;
    Shape shape;
    for (const Axis &axis : wanted->shape) {
        const auto length = lengths.find(axis.name);
        if (axis.length < 0 && length == lengths.end()) {
            throw EngineError(name + " takes noise whose length " + quote(axis.name) +
                              " follows from no other input: export again");
        }
        shape.push_back(axis.length < 0 ? length->second : axis.length);
    }
    values[kNoise] = generator.draw(std::move(shape));
}

void check_picture(const Manifest &manifest, const std::optional<Picture> &picture) {
    if (picture && manifest.images.empty()) {
        throw ParameterError(
            "image is given, but this bundle makes a video of a prompt alone: leave it out");
    }
    if (!picture && !manifest.images.empty()) {
        throw ParameterError("image is missing: this bundle makes a video of an image, give one");
    }
}

}  // namespace

ConditionEncoder::ConditionEncoder(const Bundle &bundle, Components &components)
    : bundle_(bundle), components_(components) {
    const Manifest &manifest = bundle.manifest();
    for (const auto &[source, record] : manifest.tokenizers) prompt_sources_.insert(source);
    for (const auto &[name, record] : manifest.components) {
        if (is_denoiser(name) || is_decoder(name)) continue;
        encoders_.emplace_back(name, &record);
        const bool is_of_prompt = depends_on_prompt(record);
        for (const auto &[output, tensor] : record.outputs) {
            encoded_sources_.insert(output);
            if (is_of_prompt) prompt_sources_.insert(output);
        }
    }
    for (const auto &[input, tensor] : bundle.find_component(components.denoiser()).inputs) {
        const bool is_embeds = tensor.source == kPromptEmbeds ||
                               tensor.source == kPooledPromptEmbeds ||
                               prompt_sources_.count(tensor.source) > 0;
        if (!is_embeds || tensor.shape.empty()) continue;
        prompt_embeds_.emplace_back(tensor.source, tensor.shape.back().length);
    }
}

bool ConditionEncoder::depends_on_prompt(const ComponentRecord &record) const {
    return std::any_of(record.inputs.begin(), record.inputs.end(), [&](const auto &input) {
        return prompt_sources_.count(input.second.source) > 0;
    });
}

Values ConditionEncoder::read_prompt(const std::string &name, const PromptInput &prompt,
                                     Timings &timings) {
    if (prompt.text && !prompt.arrays.empty()) {
        throw ParameterError(name + " and " + name + "_inputs are both given: leave one out");
    }
    if (!prompt.text && prompt.arrays.empty()) return {};
    if (!takes_prompt()) {
        throw ParameterError(name +
                             " is given, but this bundle makes a video of an image alone: leave it "
                             "out");
    }
    const bool is_ids = !prompt.arrays.empty() &&
                        find(bundle_.manifest().tokenizers, prompt.arrays.front().first) != nullptr;
    if (!prompt.text && !is_ids) return read_embeds(name + "_embeds", prompt.arrays);
    const BakedPrompts *baked = is_ids ? nullptr : load_baked(timings);
    if (!has_text_encoder()) {
        if (baked == nullptr) {
            throw ParameterError(name + " is a text, but this bundle has no text encoder: give " +
                                 name + "_embeds");
        }
        baked->check(*prompt.text);
    }
    return is_ids ? read_ids(name, prompt.arrays) : read_text(name, *prompt.text, timings);
}

bool ConditionEncoder::has_text_encoder() const {
    return std::all_of(prompt_embeds_.begin(), prompt_embeds_.end(), [&](const auto &embeds) {
        return encoded_sources_.count(embeds.first) > 0;
    });
}

const BakedPrompts *ConditionEncoder::load_baked(Timings &timings) {
    const Manifest &manifest = bundle_.manifest();
    if (!manifest.prompts) return nullptr;
    if (baked_) return &*baked_;
    const Stopwatch stopwatch(timings.seconds_load);
    BakedPrompts baked(bundle_, *manifest.prompts);
    for (const auto &[name, record] : encoders_) {
        if (!depends_on_prompt(*record)) continue;
        for (const auto &[output, tensor] : record->outputs) {
            if (baked.has_output(output)) continue;
            throw BundleError(*manifest.prompts + " has no " + output +
                              ", which a text encoder of this bundle makes: export again");
        }
    }
    return &baked_.emplace(std::move(baked));
}

// What is baked of a text, or its token ids.
Values ConditionEncoder::read_text(const std::string &name, const std::string &text,
                                   Timings &timings) {
    Values known;
    const BakedPrompts *baked = load_baked(timings);
    if (baked != nullptr && baked->has(text)) {
        const Stopwatch stopwatch(timings.seconds_load);
        for (const auto &[output, array] : baked->read(text)) known[output] = array;
        return known;
    }
    for (const auto &[source, record] : bundle_.manifest().tokenizers) {
        const auto ids = encode_prompt(load_tokenizer(source, timings), record, name, text);
        known[source] =
            Array::copy_from(DType::int64, {1, static_cast<int64_t>(ids.size())}, ids.data());
    }
    return known;
}

Values ConditionEncoder::read_embeds(const std::string &name, const NamedArrays &arrays) const {
    if (!has_names(arrays, prompt_embeds_)) {
        throw ParameterError(name + " has " + join_names(arrays) +
                             "; this bundle's denoiser takes " + join_names(prompt_embeds_) +
                             ": give all of them");
    }
    Values known;
    for (const auto &[output, array] : arrays) {
        const int64_t features = *find(prompt_embeds_, output);
        const bool is_main = output == kPromptEmbeds;
        check_array(is_main ? name : name + "[" + quote(output) + "]", array,
                    is_main ? Shape{1, -1, features} : Shape{1, features}, is_main ? "BSD" : "BD");
        known[output] = array;
    }
    return known;
}

Values ConditionEncoder::read_ids(const std::string &name, const NamedArrays &arrays) const {
    const auto &tokenizers = bundle_.manifest().tokenizers;
    if (!has_names(arrays, tokenizers)) {
        throw ParameterError(name + "_inputs has " + join_names(arrays) +
                             "; this bundle's tokenizers are " + join_names(tokenizers) +
                             ": give the ids of all of them");
    }
    Values known;
    for (const auto &[source, array] : arrays) {
        const TokenizerRecord &record = *find(tokenizers, source);
        const bool fits = array.dtype() == DType::int64 && array.rank() == 2 &&
                          array.shape()[0] == 1 && array.shape()[1] >= 1 &&
                          array.shape()[1] <= record.max_length;
        if (!fits) {
            throw ParameterError(name + "_inputs[" + quote(source) + "] is " +
                                 get_dtype_name(array.dtype()) + format_shape(array.shape()) +
                                 "; it must be int64 [1, S] with S of at most " +
                                 std::to_string(record.max_length));
        }
        for (size_t i = 0; i < array.size(); ++i) {
            const int64_t id = array.as<int64_t>()[i];
            if (id >= 0) continue;
            // A graph would take it for one that is counted from the end.
            throw ParameterError(name + "_inputs[" + quote(source) + "] has the id " +
                                 std::to_string(id) + "; ids are 0 and above");
        }
        const Array padded = Array::make(DType::int64, {1, record.max_length});
        int64_t *ids = padded.as<int64_t>();
        std::fill(ids, ids + padded.size(), record.pad_token_id);
        std::copy_n(array.as<int64_t>(), array.size(), ids);
        known[source] = padded;
    }
    return known;
}

const Tokenizer &ConditionEncoder::load_tokenizer(const std::string &source, Timings &timings) {
    const auto loaded = tokenizers_.find(source);
    if (loaded != tokenizers_.end()) return loaded->second;
    const Stopwatch stopwatch(timings.seconds_load);
    const TokenizerRecord *record = find(bundle_.manifest().tokenizers, source);
    if (record == nullptr) {
        throw ParameterError("tokenizer " + quote(source) + " is not in this bundle: use " +
                             join_names(bundle_.manifest().tokenizers));
    }
    Tokenizer tokenizer = Tokenizer::parse(bundle_.read_file(record->file), record->file);
    return tokenizers_.emplace(source, std::move(tokenizer)).first->second;
}

void ConditionEncoder::encode(std::vector<Values> &passes, Values values, NoiseGenerator &generator,
                              const RunContext &context,
                              const std::function<void(int, int)> &on_encoded) {
    for (Values &known : passes) known.insert(values.begin(), values.end());
    int num_done = 0;
    for (const Encoder &encoder : encoders_) {
        const auto &[name, record] = encoder;
        if (depends_on_prompt(*record)) {
            encode_prompts(encoder, passes, context);
        } else {
            draw_noise(name, *record, values, generator);
            for (const auto &[output, array] : components_.run(name, values, context)) {
                values[output] = array;
                for (Values &known : passes) known[output] = array;
            }
            values.erase(kNoise);
        }
        components_.release(name);
        on_encoded(++num_done, static_cast<int>(encoders_.size()));
    }
    for (size_t i = 1; i < passes.size(); ++i) {
        zero_missing(passes.front(), passes[i]);
        zero_unconditional(passes[i]);
    }
}

// A prompt without a text is zeros. What was not given of the first prompt either is not there;
// whatever takes it says so.
void ConditionEncoder::zero_missing(const Values &prompt, Values &unconditional) const {
    for (const auto &[source, features] : prompt_embeds_) {
        const auto of_prompt = prompt.find(source);
        if (of_prompt == prompt.end() || unconditional.count(source) > 0) continue;
        unconditional[source] = make_zeros_like(of_prompt->second);
    }
}

// Run a text encoder for each pass that has not its outputs already.
void ConditionEncoder::encode_prompts(const Encoder &encoder, std::vector<Values> &passes,
                                      const RunContext &context) {
    const auto &[name, record] = encoder;
    for (Values &known : passes) {
        const bool has_all =
            std::all_of(record->outputs.begin(), record->outputs.end(),
                        [&](const auto &output) { return known.count(output.first) > 0; });
        const bool has_text = known.count(bundle_.manifest().tokenizers.front().first) > 0;
        if (has_text && !has_all) run_text_encoder(name, known, context);
    }
}

// Add what a text encoder makes of a prompt, or made of it before.
void ConditionEncoder::run_text_encoder(const std::string &name, Values &known,
                                        const RunContext &context) {
    const NamedArrays feeds = components_.make_feeds(name, known);
    const std::string key = make_prompt_key(name, feeds);
    const NamedArrays *outputs = cache_.find(key);
    if (outputs == nullptr) {
        cache_.add(key, components_.run_feeds(name, feeds, {}, context));
        outputs = cache_.find(key);
    }
    for (const auto &[output, array] : *outputs) known[output] = array;
}

void ConditionEncoder::zero_unconditional(Values &values) const {
    for (const auto &[input, tensor] : bundle_.find_component(components_.denoiser()).inputs) {
        const auto value = values.find(tensor.source);
        if (tensor.unconditional == kZeros && value != values.end()) {
            value->second = make_zeros_like(value->second);
        }
    }
}

void check_array(const std::string &name, const Array &array, const Shape &shape,
                 const std::string &letters) {
    bool fits = array.dtype() == DType::float32 && array.rank() == shape.size();
    for (size_t i = 0; fits && i < shape.size(); ++i) {
        fits = shape[i] < 0 || shape[i] == array.shape()[i];
    }
    if (!fits) {
        std::vector<std::string> rule;
        for (size_t i = 0; i < shape.size(); ++i) {
            rule.push_back(shape[i] < 0 ? letters.substr(i, 1) : std::to_string(shape[i]));
        }
        throw ParameterError(name + " is " + get_dtype_name(array.dtype()) +
                             format_shape(array.shape()) + "; it must be float32 [" + join(rule) +
                             "]");
    }
    const float *values = array.as<float>();
    const auto is_finite = [](float value) { return std::isfinite(value); };
    if (!std::all_of(values, values + array.size(), is_finite)) {
        throw ParameterError(name + " has values that are not finite");
    }
}

Values make_values(const Manifest &manifest, const Settings &settings,
                   const std::optional<Picture> &picture) {
    check_picture(manifest, picture);
    Values values{
        {kNumFrames, Array::make_number(settings.num_frames)},
        {kHeight, Array::make_number(settings.height)},
        {kWidth, Array::make_number(settings.width)},
        {kFrameRate, Array::make_number(settings.frame_rate)},
    };
    for (const auto &[name, value] : settings.conditions) values[name] = Array::make_number(value);
    if (!picture) return values;
    for (const auto &[source, record] : manifest.images) {
        values[source] = prepare_image(picture->pixels, picture->height, picture->width, record,
                                       settings.height, settings.width);
    }
    return values;
}

}  // namespace mutoscope
