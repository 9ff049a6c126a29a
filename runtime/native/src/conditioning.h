// What a denoiser is told beside the latents: prompts, images and numbers, encoded.
//
// The manifest says which components encode what; they run in its order, and each finds the outputs
// of the ones before it by their names. runtime/conditioning.py is the same.
#ifndef MUTOSCOPE_CONDITIONING_H
#define MUTOSCOPE_CONDITIONING_H

#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "baked_prompts.h"
#include "components.h"
#include "noise.h"
#include "prompt_cache.h"
#include "settings.h"
#include "tokenizer.h"

namespace mutoscope {

// One side of guidance: a text, or what the tokenizers or the text encoder would make of it.
struct PromptInput {
    std::optional<std::string> text;
    NamedArrays arrays;
};

// A picture: uint8 [height, width, 3], RGB.
struct Picture {
    const uint8_t *pixels = nullptr;
    int64_t height = 0;
    int64_t width = 0;
};

// Runs the components of a bundle that encode conditions. What text encoders made of a prompt is
// kept, whether they stay in memory or not.
class ConditionEncoder {
public:
    ConditionEncoder(const Bundle &bundle, Components &components);

    // Whether the bundle makes videos of a text.
    bool takes_prompt() const { return !prompt_embeds_.empty(); }
    // What the denoiser takes of a prompt, with its feature length (-1: any).
    const Ordered<int64_t> &prompt_embeds() const { return prompt_embeds_; }

    // What is known of a prompt before any component runs: its token ids or embeddings, by source,
    // or nothing. Raises ParameterError.
    //
    // name: "prompt" or "negative_prompt", as messages call it.
    Values read_prompt(const std::string &name, const PromptInput &prompt, Timings &timings);
    // The token ids of a text. tokenizer: its source, a key of the manifest's tokenizers.
    const Tokenizer &load_tokenizer(const std::string &source, Timings &timings);

    // All that the denoiser may take, by source, for each pass of guidance.
    //
    // passes: what is known of the prompt and, with guidance, of the negative prompt.
    // values: what is known already: images, conditions, sizes.
    // generator: the noise of the encoders is drawn from it, in their order.
    // on_encoded: called after each encoder with the number that are done, and that there are.
    void encode(std::vector<Values> &passes, Values values, NoiseGenerator &generator,
                const RunContext &context, const std::function<void(int, int)> &on_encoded);

private:
    using Encoder = std::pair<std::string, const ComponentRecord *>;

    bool depends_on_prompt(const ComponentRecord &record) const;
    // The bundle's baked prompts, or null if it has none; raises BundleError.
    const BakedPrompts *load_baked(Timings &timings);
    bool has_text_encoder() const;
    Values read_text(const std::string &name, const std::string &text, Timings &timings);
    void encode_prompts(const Encoder &encoder, std::vector<Values> &passes,
                        const RunContext &context);
    void run_text_encoder(const std::string &name, Values &known, const RunContext &context);
    void zero_missing(const Values &prompt, Values &unconditional) const;
    void zero_unconditional(Values &values) const;
    Values read_embeds(const std::string &name, const NamedArrays &arrays) const;
    Values read_ids(const std::string &name, const NamedArrays &arrays) const;

    const Bundle &bundle_;
    Components &components_;
    std::vector<Encoder> encoders_;
    std::set<std::string> prompt_sources_;
    std::set<std::string> encoded_sources_;
    Ordered<int64_t> prompt_embeds_;
    std::map<std::string, Tokenizer> tokenizers_;
    std::optional<BakedPrompts> baked_;  // once they were wanted
    PromptCache cache_;
};

// Raises ParameterError unless an array is float32, finite and of this shape; -1 is any length,
// which `letters` names.
void check_array(const std::string &name, const Array &array, const Shape &shape,
                 const std::string &letters);

// What is known before any component runs, by source: sizes, conditions, the picture prepared.
// Raises ParameterError where there is a picture and none is taken, or none where one is.
Values make_values(const Manifest &manifest, const Settings &settings,
                   const std::optional<Picture> &picture);

}  // namespace mutoscope

#endif
