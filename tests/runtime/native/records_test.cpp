// Manifests: what is read, and what is refused with which words.
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bad_texts.h"
#include "check.h"
#include "json_reader.h"
#include "manifest.h"

using namespace mutoscope;

namespace {

constexpr const char *kManifest = R"({
 "format_version": 1, "name": "hand-made", "family": "none", "mood": "good",
 "components": {
  "text_encoder": {"variants": {"float32": "text_encoder/model.onnx"}, "default_variant": "float32",
   "inputs": {"input_ids": {"dtype": "int64", "shape": ["batch", 8], "source": "input_ids"}},
   "outputs": {"prompt_embeds": {"dtype": "float32", "shape": ["batch", 8, 4]}}},
  "unet": {"variants": {"float32": "unet/model.onnx", "int8": "unet/model_int8.onnx"},
   "cpu_graphs": {"int8": "unet/model_int8_cpu.onnx"}, "default_variant": "float32",
   "inputs": {"sample": {"dtype": "float32", "shape": ["batch", 4], "source": "latents"},
    "motion": {"dtype": "float32", "shape": [1], "source": "motion", "unconditional": "zeros"},
    "states": {"dtype": "float32", "shape": [1], "source": "prompt_embeds"}},
   "outputs": {"out_sample": {"dtype": "float32", "shape": ["batch", 4]},
    "deep_feature": {"dtype": "float32", "shape": ["batch_frames", 4]}}},
  "unet_reuse": {"variants": {"float32": "unet/model_reuse.onnx"}, "default_variant": "float32",
   "weights_of": "unet",
   "inputs": {"feature": {"dtype": "float32", "shape": [1, 4], "source": "deep_feature"}},
   "outputs": {"out_sample": {"dtype": "float32", "shape": ["batch", 4]}}},
  "vae_decoder": {"variants": {"float32": "vae_decoder/model.onnx"}, "default_variant": "float32",
   "inputs": {"latents": {"dtype": "float32", "shape": ["batch", 4], "source": "latents"}},
   "outputs": {"frames": {"dtype": "uint8", "shape": ["batch", 3]}},
   "parity": [{"shapes": {"latents": [1, 4]}, "psnr_db": 80, "max_abs_error": 1e-06,
    "cosine_similarity": 1.0, "output": "frames"}],
   "decoder": {"independent_frames": true, "bytes_per_pixel": 512, "bytes_per_latent_pair": 1.5,
    "weights_bytes": 9, "tiles": {"head": "vae_decoder/head.onnx", "stages": [
     {"graph": "vae_decoder/stage.onnx", "inputs": {"x": 1}, "outputs": {"y": 2}, "scale": 1,
      "halo": 3, "norm": {"value": "x", "groups": 8, "epsilon": 1e-06}}],
    "head_bytes_per_latent": 1, "bytes_per_pixel": 2, "weights_bytes": 3}}}},
 "tokenizers": {"input_ids": {"file": "tokenizer.json", "max_length": 8, "pad_token_id": 1}},
 "images": {"pixels": {"operations": [{"kind": "resize", "height": "height", "width": 32},
  {"kind": "normalize", "mean": [0.5, 0.5, 0.5], "std": [1, 2, 0.25]}]}},
 "conditions": {"motion": {"default": 127, "minimum": 0, "maximum": 255.5}},
 "latents": {"channels": 4, "vae_scale_factor_spatial": 8},
 "limits": {"height": {"minimum": 16, "multiple": 16}, "width": {"minimum": 16, "maximum": null},
  "num_frames": {"minimum": 1, "maximum": 81, "multiple": 4, "offset": 1}},
 "defaults": {"scheduler": "ddim", "num_inference_steps": 2, "guidance_scale": 2.5, "height": 64,
  "width": 48, "num_frames": 5, "frame_rate": 8, "guidance_passes": "batched"},
 "prompts": "prompts.safetensors",
 "schedules": {"ddim": {"2": "ddim_2.json"}},
 "files": {
  "text_encoder/model.onnx": {"size_bytes": 1, "sha256": "aa"},
  "unet/model.onnx": {"size_bytes": 4294967296, "sha256": "bb"},
  "unet/model_reuse.onnx": {"size_bytes": 1, "sha256": "ba"},
  "prompts.safetensors": {"size_bytes": 1, "sha256": "ab"},
  "unet/model_int8.onnx": {"size_bytes": 1, "sha256": "cc"},
  "unet/model_int8_cpu.onnx": {"size_bytes": 1, "sha256": "dd"},
  "vae_decoder/model.onnx": {"size_bytes": 1, "sha256": "ee"},
  "vae_decoder/head.onnx": {"size_bytes": 1, "sha256": "ee"},
  "vae_decoder/stage.onnx": {"size_bytes": 1, "sha256": "ee"},
  "tokenizer.json": {"size_bytes": 1, "sha256": "ff"},
  "ddim_2.json": {"size_bytes": 1, "sha256": "00"}}
})";

// Each change of the manifest is refused with its message.
void check_bad(const std::vector<BadText> &bad) {
    for (const BadText &text : bad) {
        CHECK_THROWS(parse_manifest(change(kManifest, text.part, text.replacement)), text.message);
    }
}

int64_t check_limit(const LimitRecord &limit, int64_t value) {
    limit.check("height", value);
    return value;
}

}  // namespace

TEST(a_manifest_is_read_whole) {
    const Manifest manifest = parse_manifest(kManifest);
    CHECK_EQUAL(manifest.name, "hand-made");
    CHECK_EQUAL(manifest.components.size(), 4);
    CHECK_EQUAL(manifest.components[1].first, "unet");
    const ComponentRecord &unet = manifest.components[1].second;
    CHECK_EQUAL(unet.choose_variant("int8"), "int8");
    CHECK_EQUAL(unet.choose_variant("float16"), "float32");
    CHECK_EQUAL(unet.find_cpu_graph("int8"), "unet/model_int8_cpu.onnx");
    CHECK_EQUAL(unet.find_cpu_graph("float32"), "unet/model.onnx");
    const TensorRecord *sample = find(unet.inputs, "sample");
    CHECK(sample != nullptr && sample->dtype == DType::float32 && sample->source == kLatents);
    CHECK_EQUAL(sample->shape[0].name, "batch");
    CHECK_EQUAL(sample->shape[0].length, -1);
    CHECK_EQUAL(sample->shape[1].length, 4);
    CHECK_EQUAL(find(unet.inputs, "motion")->unconditional, kZeros);
    const DecoderRecord &decoder = *manifest.components[3].second.decoder;
    CHECK(decoder.independent_frames);
    CHECK_EQUAL(decoder.bytes_per_pixel, 512.0);
    CHECK_EQUAL(decoder.tiles->stages[0].halo, 3);
    CHECK_EQUAL(decoder.tiles->stages[0].norm->groups, 8);
    CHECK_EQUAL(find(decoder.tiles->stages[0].outputs, "y")[0], 2);
    const ImageRecord &image = manifest.images[0].second;
    CHECK_EQUAL(image.operations[0].height->name, "height");
    CHECK_EQUAL(image.operations[0].width->length, 32);
    CHECK(!image.operations[1].width && image.operations[1].std->at(2) == 0.25);
    CHECK_EQUAL(manifest.latents.vae_scale_factor_temporal, 1);
    CHECK(!manifest.limits.width.maximum && manifest.limits.num_frames.maximum == 81);
    CHECK_EQUAL(manifest.defaults.frame_rate, 8.0);
    CHECK_EQUAL(manifest.files[1].second.size_bytes, 4294967296);
    CHECK(manifest.guidance && !manifest.force_zeros_for_empty_prompt);
    CHECK(!unet.weights_of && manifest.components[2].second.weights_of == "unet");
    CHECK_EQUAL(manifest.defaults.guidance_passes, "batched");
    CHECK_EQUAL(*manifest.prompts, "prompts.safetensors");
    CHECK(is_denoiser("unet_reuse") && is_denoiser("transformer") && !is_denoiser("vae_unet"));
}

TEST(of_a_key_that_comes_twice_the_last_counts) {
    const Manifest manifest = parse_manifest(
        change(kManifest, R"("latents": {"channels")", R"("latents": 5, "latents": {"channels")"));
    CHECK_EQUAL(manifest.latents.channels, 4);
    const Manifest second = parse_manifest(
        change(kManifest, R"("ddim_2.json": {)",
               R"("unet/model.onnx": {"size_bytes": 7, "sha256": ""}, "ddim_2.json": {)"));
    CHECK_EQUAL(second.files.size(), 11);
    CHECK_EQUAL(second.files[1].first, "unet/model.onnx");
    CHECK_EQUAL(second.files[1].second.size_bytes, 7);
}

TEST(a_manifest_with_a_field_of_a_wrong_kind_is_refused_with_its_name) {
    check_bad({
        {R"("format_version": 1)", R"("format_version": 2)",
         "manifest.json has format_version 2; this mutoscope reads up to 1: use a newer lib"},
        {R"("format_version": 1)", R"("format_version": 123456789012345678901)",
         "has format_version 123456789012345678901; this"},
        {R"("format_version": 1,)", "", "manifest.json has no format_version: export again"},
        {R"("format_version": 1)", R"("format_version": 1.0)", "has no format_version"},
        {R"("format_version": 1)", R"("format_version": true)", "has no format_version"},
        {R"("name": "hand-made",)", "", "manifest.json: name is missing"},
        {R"("family": "none")", R"("family": 3)", "manifest.json: family must be of type str"},
        {R"("sample": {"dtype": "float32", )", R"("sample": {)",
         "manifest.json: components: unet: inputs: sample: dtype is missing"},
        {R"("dtype": "uint8")", R"("dtype": "bfloat16")", "dtype 'bfloat16' is unknown"},
        {R"(["batch", 3])", "3", "outputs: frames: shape must be a list"},
        {R"(["batch", 3])", "[true]", "outputs: frames: shape[0] must be of type str"},
        {R"(["batch", 3])", "[1.0]", "outputs: frames: shape[0] must be of type str"},
        {R"(["batch", 3])", "[3, -1]", "frames: shape[1] must be within 0 and 9223372036854775807"},
        {R"("source": "motion")", R"("source": "moon")",
         "manifest.json: unet takes motion from 'moon', which this mutoscope does not know (known: "
         "latents, timestep, noise, num_frames, height, width, frame_rate, prompt_embeds, "
         "pooled_prompt_embeds, input_ids, pixels, motion, prompt_embeds): use a newer lib"},
        {R"("source": "motion")", R"("source": "out_sample")", "takes motion from 'out_sample'"},
        // What a denoiser returns is for those behind it.
        {R"("source": "motion")", R"("source": "deep_feature")", "motion from 'deep_feature'"},
        {R"("source": "deep_feature")", R"("source": "out_sample")",
         "manifest.json: unet_reuse takes feature from 'out_sample', which"},
        {R"("weights_of": "unet")", R"("weights_of": 3)", "unet_reuse: weights_of must be of"},
        {R"("guidance_passes": "batched")", R"("guidance_passes": null)",
         "manifest.json: defaults: guidance_passes must be of type str"},
        {R"("prompts": "prompts.safetensors")", R"("prompts": [])", "manifest.json: prompts must"},
        {R"("source": "motion", )", "", "unet takes motion from None, which"},
        {R"("unconditional": "zeros")", R"("unconditional": "ones")",
         "manifest.json: unet: motion: unconditional is 'ones', which this mutoscope does not "
         "know"},
    });
}

TEST(a_manifest_that_names_what_is_not_there_is_refused) {
    check_bad({
        {R"("default_variant": "float32")", R"("default_variant": "int8")",
         "manifest.json: components: text_encoder has no variant 'int8'"},
        {R"("cpu_graphs": {"int8")", R"("cpu_graphs": {"int4")",
         "components: unet has a CPU graph of 'int4', which is not among its variants"},
        {R"("unet/model_int8.onnx")", R"("unet/x.onnx")",
         "manifest.json names unet/x.onnx but does not list it under files"},
        {R"("head": "vae_decoder/head.onnx")", R"("head": "h.onnx")", "names h.onnx but does not"},
        {R"("weights_of": "unet")", R"("weights_of": "unet_2")",
         "manifest.json: components: unet_reuse has the weights of 'unet_2', which is no component "
         "with weights of its own"},
        {R"("weights_of": "unet")", R"("weights_of": "unet_reuse")",
         "of 'unet_reuse', which is no"},
        {R"("weights_of": "unet")", R"("weights_of": "vae_decoder", "variants": {
             "float32": "unet/model_reuse.onnx", "int8": "unet/model_reuse.onnx"})",
         "unet_reuse has a variant 'int8', which vae_decoder, whose weights it has, lacks"},
        {R"("prompts": "prompts.safetensors")", R"("prompts": "p.st")",
         "manifest.json names p.st but does not list it under files"},
        {R"("tokenizer.json", "max)", R"("../tokenizer.json", "max)",
         "manifest.json names '../tokenizer.json', which is not inside the bundle"},
        {R"("ddim_2.json": {)", R"("/etc/passwd": {)", "names '/etc/passwd', which is not inside"},
    });
}

TEST(a_manifest_with_a_number_out_of_range_is_refused_with_its_name) {
    check_bad({
        {R"("psnr_db": 80)", R"("psnr_db": "80")", "parity[0]: psnr_db must be a number"},
        {R"("latents": [1, 4])", R"("latents": [1, 4.5])",
         "parity[0]: shapes: latents[1] must be a whole number"},
        {R"("weights_bytes": 9)", R"("weights_bytes": -9)",
         "decoder: weights_bytes must be within 0 and 9223372036854775807"},
        {R"("bytes_per_pixel": 512)", R"("bytes_per_pixel": -512)",
         "decoder: bytes_per_pixel must be 0 or more"},
        {R"("halo": 3)", R"("halo": -3)", "tiles: stages[0]: halo must be within 0 and 2147483647"},
        {R"("x": 1})", R"("x": 0})", "stages[0]: inputs: x must be within 1 and 2147483647"},
        {R"("groups": 8)", R"("groups": 0)", "stages[0]: norm: groups must be within 1 and"},
        {R"("multiple": 16)", R"("multiple": 0)", "limits: height: multiple must be within 1 and"},
        {R"(_spatial": 8)", R"(_spatial": 0)", "vae_scale_factor_spatial must be within 1 and"},
        {R"("height": 64)", R"("height": "64")", "defaults: height must be a whole number"},
        {R"("height": 64)", R"("height": 64.0)", "defaults: height must be a whole number"},
        {R"("height": 64)", R"("height": true)", "defaults: height must be a whole number"},
        {R"("height": 64)", R"("height": 2147483648)",
         "defaults: height must be within -2147483648 and 2147483647"},
        {R"("frame_rate": 8)", R"("frame_rate": null)", "defaults: frame_rate must be a number"},
        {R"("frame_rate": 8)", R"("frame_rate": false)", "defaults: frame_rate must be a number"},
    });
}

TEST(a_manifest_that_contradicts_itself_is_refused) {
    check_bad({
        {R"("frame_rate": 8)", R"("frame_rate": 1e400)",
         "manifest.json is not valid JSON (damaged?): the number 1e400 is not finite: export "
         "again"},
        {R"("frame_rate": 8)", R"("frame_rate": NaN)",
         "manifest.json is not valid JSON (damaged?)"},
        {R"("scheduler": "ddim")", R"("scheduler": "Nobody")",
         "manifest.json: defaults: scheduler 'Nobody' has no schedules"},
        {R"({"2": "ddim)", R"({"x": "ddim)",
         "manifest.json: schedules: ddim: 'x' must be a number of steps"},
        {R"({"2": "ddim)", R"({"0": "ddim)", "'0' must be a number of steps"},
        {R"({"2": "ddim)", R"({"-2": "ddim)", "'-2' must be a number of steps"},
        {R"({"2": "ddim)", R"({"99999999999": "ddim)", "'99999999999' must be a number of steps"},
        {R"("size_bytes": 4294967296)", R"("size_bytes": 18446744073709551615)",
         "files: unet/model.onnx: size_bytes must be within 0 and 9223372036854775807"},
        {R"("mood": "good")", R"("guidance": 1)", "manifest.json: guidance must be of type bool"},
        {R"("mood": "good")", R"("provenance": [])", "manifest.json: provenance must be an object"},
    });
}

TEST(what_is_not_json_is_refused) {
    const std::string manifest = kManifest;
    for (const std::string &text :
         {std::string(), manifest.substr(0, 100), std::string("\xff\xfe\x00", 3), manifest + "x",
          manifest + std::string(1, '\0'), "\xEF\xBB\xBF" + manifest,
          change(kManifest, "hand-made", "hand\\ud800made"),
          change(kManifest, "hand-made", "hand\xED\xA0\x80made"), std::string(101, '[')}) {
        CHECK_THROWS(parse_manifest(text, "b/manifest.json"),
                     "b/manifest.json is not valid JSON (damaged?): ");
    }
    for (const char *text : {"[]", "\"text\"", "3", "null"}) {
        CHECK_THROWS(parse_manifest(text), "manifest.json has no format_version");
    }
}

TEST(deep_and_large_texts_are_refused_early) {
    std::string problem;
    const std::string deep = std::string(kMaxJsonDepth, '[') + std::string(kMaxJsonDepth, ']');
    CHECK(JsonDocument::parse(deep, problem).has_value());
    CHECK(!JsonDocument::parse("[" + deep + "]", problem));
    CHECK_EQUAL(problem, "more than 100 values inside each other");
    CHECK(!JsonDocument::parse(std::string(10000000, '['), problem));
    std::string many = "[0";
    for (size_t i = 0; i < kMaxJsonValues; ++i) many += ",0";
    CHECK(!JsonDocument::parse(many + "]", problem));
    CHECK_EQUAL(problem, "more than 1000000 values");
    CHECK(!JsonDocument::parse(std::string(kMaxJsonBytes + 1, ' '), problem));
    CHECK_EQUAL(problem, "more than 64 MiB");
}

TEST(values_are_shown_as_python_shows_them) {
    const std::vector<std::pair<const char *, const char *>> shown = {
        {"null", "None"},
        {"true", "True"},
        {"-0", "0"},
        {"-0.0", "-0.0"},
        {"1.0", "1.0"},
        {"1e5", "100000.0"},
        {"1e16", "1e+16"},
        {"123456789012345680", "123456789012345680"},
        {"1234567890123456.0", "1234567890123456.0"},
        {"1e-4", "0.0001"},
        {"1.5e-5", "1.5e-05"},
        {"0.1", "0.1"},
        {"1e300", "1e+300"},
        {"12345678901234567890", "12345678901234567890"},
        {"\"it's\"", "\"it's\""},
        {"[]", "[]"},
        {"{}", "{}"},
        {"[1, [2.5]]", "[1, [2.5]]"},
        {R"({"a": 1, "b": [null]})", "{'a': 1, 'b': [None]}"},
        {"[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15]", "a list"},
        {R"("0123456789012345678901234567890123456789")", "a str"},
        {R"({"a": {"b": {"c": {"d": {"e": {"f": {}}}}}}})", "a dict"},
        {"10000000000000000000000000000000000000000", "a int"}};
    for (const auto &[text, repr] : shown) {
        std::string problem;
        CHECK_EQUAL(JsonDocument::parse(text, problem)->root().describe(), repr);
    }
}

TEST(paths_that_lead_out_are_refused) {
    for (const std::string &path :
         {std::string(), std::string("."), std::string("./"), std::string(".."),
          std::string("../a"), std::string("a/../../b"), std::string("a/.."), std::string("/a"),
          std::string("//a"), std::string("C:/a"), std::string("c:a"), std::string("a\\b"),
          std::string("\\\\host\\a"), std::string("a\0b", 3)}) {
        CHECK_THROWS(check_relative_path(path), "which is not inside the bundle");
    }
    for (const char *path : {"a", "a/b.onnx", "a/./b", "..a", "a..", "1:a", ".hidden", "a//b"}) {
        check_relative_path(path);
    }
}

TEST(limits_name_values_that_work) {
    const LimitRecord sizes{16, 256, 16, 0}, frames{1, std::nullopt, 4, 1};
    CHECK_THROWS(check_limit(sizes, 40), "height is 40; this bundle needs 16k: use 32 or 48");
    CHECK_THROWS(check_limit(frames, 82), "height is 82; this bundle needs 4k + 1: use 81 or 85");
    CHECK_THROWS(check_limit(sizes, 0), "height is 0; this bundle needs at least 16: use 16");
    CHECK_THROWS(check_limit(sizes, 300), "height is 300; this bundle allows at most 256: use 256");
    CHECK_THROWS(check_limit({16, 250, 16, 0}, 249), "needs 16k: use 240");
    CHECK_THROWS(check_limit({2, std::nullopt, 4, -3}, 3), "needs 4k + -3: use 5");
    CHECK_THROWS(check_limit(frames, INT64_MAX), "needs 4k + 1: use 9223372036854775805");
    CHECK_THROWS(check_limit(frames, INT64_MIN), "needs at least 1");
    for (const int64_t value : {1, 5, 81}) check_limit(frames, value);
}

TEST(conditions_name_their_range) {
    const ConditionRecord condition{127, 0, 255.5, ""};
    condition.check("motion", 0);
    condition.check("motion", 255.5);
    const auto check = [&](double value) { return condition.check("motion", value), 0; };
    CHECK_THROWS(check(256), "motion is 256; this bundle takes 0 to 255.5: use 127");
    CHECK_THROWS(check(std::numeric_limits<double>::quiet_NaN()), "motion is nan; this bundle");
}
