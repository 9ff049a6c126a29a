// What the text encoders of a bundle made of some prompts when it was exported, for devices without
// them. runtime/baked_prompts.py is the same.
#ifndef MUTOSCOPE_BAKED_PROMPTS_H
#define MUTOSCOPE_BAKED_PROMPTS_H

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "bundle.h"
#include "safetensors_file.h"

namespace mutoscope {

// The texts in the metadata of such a file, each once; messages call it `name`. Raises BundleError.
std::vector<std::string> read_baked_texts(const std::string *format, const std::string *texts,
                                          const std::string &name);

class BakedPrompts {
public:
    // Read which texts there are.
    //
    // name: the file, as the manifest names it.
    // BundleError: the file is damaged, or is not for the bundle's denoisers.
    BakedPrompts(const Bundle &bundle, const std::string &name);

    const std::vector<std::string> &texts() const { return texts_; }
    // Whether a text is there, to the letter.
    bool has(const std::string &text) const { return places_.count(text) > 0; }
    bool has_output(const std::string &output) const {
        return find(file_.tensors(), output) != nullptr;
    }
    // The outputs of the text encoders for a text that is there, float32 [1, ...].
    NamedArrays read(const std::string &text) const;
    // Raises ParameterError with some texts that are there, if this one is not.
    void check(const std::string &text) const;

private:
    void check_input(const TensorRecord &tensor) const;

    std::string name_;
    SafetensorsFile file_;
    std::vector<std::string> texts_;
    std::unordered_map<std::string, size_t> places_;
};

}  // namespace mutoscope

#endif
