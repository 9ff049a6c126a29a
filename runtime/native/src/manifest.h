// The manifest of a bundle: what its components are, what they take, and what they allow.
//
// The same records and the same rules as in runtime/manifest.py.
#ifndef MUTOSCOPE_MANIFEST_H
#define MUTOSCOPE_MANIFEST_H

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "decoding_records.h"
#include "records.h"

namespace mutoscope {

constexpr const char *kManifestName = "manifest.json";

// Where the value of a graph input comes from, beside the tokenizers, images and conditions of the
// manifest and the outputs of earlier components.
constexpr const char *kLatents = "latents";
constexpr const char *kTimestep = "timestep";
constexpr const char *kNoise = "noise";
constexpr const char *kNumFrames = "num_frames";
constexpr const char *kHeight = "height";
constexpr const char *kWidth = "width";
constexpr const char *kFrameRate = "frame_rate";
// What a text encoder makes of a prompt; the caller may give it in its place.
constexpr const char *kPromptEmbeds = "prompt_embeds";
constexpr const char *kPooledPromptEmbeds = "pooled_prompt_embeds";

constexpr const char *kVaeDecoder = "vae_decoder";
constexpr const char *kPreviewDecoder = "preview_decoder";

// What TensorRecord.unconditional may be.
constexpr const char *kZeros = "zeros";

// What denoisers are called, with anything after it: a bundle has at least one, and the first is
// the one that runs where a schedule table names none.
constexpr std::string_view kDenoisers[] = {"unet", "transformer"};

// Whether a component of this name makes model outputs for the sampler.
bool is_denoiser(std::string_view name);
bool is_decoder(std::string_view name);

// One exported component.
struct ComponentRecord {
    // By the name of the variant ("float32", "float16", "int8"), the path of its graph.
    Ordered<std::string> variants;
    std::string default_variant;
    Ordered<TensorRecord> inputs, outputs;
    std::optional<DecoderRecord> decoder;
    // For the variants that have one, the path of the graph for processors.
    Ordered<std::string> cpu_graphs;
    // The component that this one was cut out of, and whose data files its graphs read.
    std::optional<std::string> weights_of;

    // The variant to run: the one that was asked for if there is one, or the default.
    const std::string &choose_variant(const std::string &variant) const;
    // The path of what processors run of a variant that there is: rewritten for them, or plain.
    const std::string &find_cpu_graph(const std::string &variant) const;
};

// All that a bundle says of itself.
struct Manifest {
    int format_version = 1;
    std::string name, family;
    // In the order in which they run: what encodes the conditions, the denoiser, the decoders.
    Ordered<ComponentRecord> components;
    // By the source that their ids are; none if the bundle takes no prompt.
    Ordered<TokenizerRecord> tokenizers;
    LatentsRecord latents;
    LimitsRecord limits;
    DefaultsRecord defaults;
    // For each scheduler, by the short name that people type, the path of the table for each number
    // of steps.
    Ordered<Ordered<std::string>> schedules;
    Ordered<FileRecord> files;
    // Whether the denoiser follows classifier-free guidance.
    bool guidance = true;
    // How the user's image is prepared, by the source that it becomes.
    Ordered<ImageRecord> images;
    // The numbers that the user may set, by name.
    Ordered<ConditionRecord> conditions;
    // Without a negative prompt, the unconditional pass gets zeros in place of its encoding.
    bool force_zeros_for_empty_prompt = false;
    // The path of what the text encoders made of some prompts.
    std::optional<std::string> prompts;
};

// The manifest in a JSON text, checked; sizes and counts that a runtime computes with fit in an
// int.
//
// name: what messages call the text where it is no JSON.
// BundleError: it is not JSON, from a later format, or inconsistent.
Manifest parse_manifest(std::string_view json_text, const std::string &name = kManifestName);

// Raises BundleError unless path is a plain relative POSIX path inside the bundle.
void check_relative_path(const std::string &path);

}  // namespace mutoscope

#endif
