#include "baked_prompts.h"

#include <algorithm>
#include <unordered_set>

#include "error.h"
#include "json_reader.h"
#include "text.h"

namespace mutoscope {
namespace {

constexpr const char *kTexts = "texts";
constexpr const char *kFormat = "format";
constexpr const char *kFormatName = "mutoscope-prompts-1";
constexpr size_t kNamedTexts = 3;

SafetensorsFile open_file(const Bundle &bundle, const std::string &name) {
    const std::string path = bundle.load_file(name);
    return {path, find(bundle.manifest().files, name)->size_bytes, name};
}

// The lengths behind the first, as messages show them.
std::string format_row(const Shape &shape) {
    return format_shape({shape.begin() + std::min<std::ptrdiff_t>(1, shape.size()), shape.end()});
}

}  // namespace

std::vector<std::string> read_baked_texts(const std::string *format, const std::string *texts,
                                          const std::string &name) {
    if (format == nullptr || *format != kFormatName) {
        throw BundleError(
            name + " is of the format " + (format == nullptr ? "None" : quote(*format)) +
            "; this mutoscope reads " + quote(kFormatName) + ": use a newer libmutoscope");
    }
    std::string problem;
    const auto document = JsonDocument::parse(texts == nullptr ? "" : *texts, problem);
    std::vector<std::string> found;
    std::unordered_set<std::string_view> known;
    bool is_right = document && document->root().kind() == JsonKind::list;
    const auto items = is_right ? document->root().items() : std::vector<JsonValue>();
    for (const JsonValue &item : items) {
        is_right = is_right && item.kind() == JsonKind::text && known.insert(item.text()).second;
        if (is_right) found.emplace_back(item.text());
    }
    if (!is_right || found.empty()) {
        throw BundleError(
            name + " does not list its texts, each once (damaged?): copy or export it again");
    }
    return found;
}

BakedPrompts::BakedPrompts(const Bundle &bundle, const std::string &name)
    : name_(name),
      file_(open_file(bundle, name)),
      texts_(read_baked_texts(file_.find_text(kFormat), file_.find_text(kTexts), name)) {
    for (size_t i = 0; i < texts_.size(); ++i) places_[texts_[i]] = i;
    for (const auto &[output, tensor] : file_.tensors()) {
        if (tensor.shape.size() >= 2 && static_cast<uint64_t>(tensor.shape[0]) == texts_.size()) {
            continue;
        }
        throw BundleError(name + ": " + quote(output) + " is float32" + format_shape(tensor.shape) +
                          "; it must have a row for each of " + std::to_string(texts_.size()) +
                          " texts: export again");
    }
    for (const auto &[component, record] : bundle.manifest().components) {
        if (!is_denoiser(component)) continue;
        for (const auto &[input, tensor] : record.inputs) {
            if (tensor.source == kPromptEmbeds || tensor.source == kPooledPromptEmbeds) {
                check_input(tensor);
            }
        }
    }
}

// Raises BundleError unless the file has what an input of a denoiser takes.
void BakedPrompts::check_input(const TensorRecord &tensor) const {
    const SafetensorsHeader::Tensor *found = find(file_.tensors(), tensor.source);
    const Shape shape = found == nullptr ? Shape() : found->shape;
    bool fits = !tensor.shape.empty() && shape.size() == tensor.shape.size();
    std::vector<std::string> rule;
    for (size_t i = 1; i < tensor.shape.size(); ++i) {
        const Axis &axis = tensor.shape[i];
        rule.push_back(axis.length < 0 ? axis.name : std::to_string(axis.length));
        if (fits && axis.length >= 0 && axis.length != shape[i]) fits = false;
    }
    if (fits) return;
    throw BundleError(
        name_ + " has " + (shape.size() > 1 ? "rows of " + format_row(shape) : "none") + " for " +
        tensor.source + "; this bundle's denoiser takes [" + join(rule) + "]: export again");
}

NamedArrays BakedPrompts::read(const std::string &text) const {
    NamedArrays outputs;
    for (const auto &[output, tensor] : file_.tensors()) {
        outputs.emplace_back(output, file_.read_row(output, places_.at(text)));
    }
    return outputs;
}

void BakedPrompts::check(const std::string &text) const {
    if (has(text)) return;
    const bool has_several = texts_.size() > 1;
    std::vector<std::string> known;
    for (size_t i = 0; i < std::min(kNamedTexts, texts_.size()); ++i) {
        known.push_back(quote(texts_[i]));
    }
    throw ParameterError("this bundle has no text encoder, and its " +
                         std::to_string(texts_.size()) + " baked prompt" +
                         (has_several ? "s do" : " does") + " not have " + quote(text) + ": use " +
                         (has_several ? "one of " : "") + join(known));
}

}  // namespace mutoscope
