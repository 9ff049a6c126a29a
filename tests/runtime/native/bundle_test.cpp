// Bundles in folders: which files are found, which damage is seen, which table is which.
#include "bundle.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "check.h"
#include "sha256.h"

using namespace mutoscope;
namespace fs = std::filesystem;

namespace {

constexpr const char *kGraph = "unet/model.onnx";
constexpr const char *kRow =
    R"({"timestep": 9, "input_scale": 1, "noise_draws": 0, "updates": []})";

std::string make_table(int num_inference_steps) {
    return R"({"format_version": 1, "scheduler": "A", "num_inference_steps": )" +
           std::to_string(num_inference_steps) +
           R"(, "prediction_type": "epsilon", "init_noise_sigma": 1, "num_registers": 1, "rows": [)" +
           kRow + "]}";
}

// A bundle in a folder of its own, which is removed in the end.
class HandMadeBundle {
public:
    HandMadeBundle() {
        std::string name = (fs::temp_directory_path() / "mutoscope_bundle_XXXXXX").string();
        if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
        folder_ = name;
        for (const char *path :
             {kGraph, "unet/model_cpu.onnx", "unet/model_fp16.onnx", "vae_decoder/model.onnx"}) {
            write(path, std::string("graph ") + path);
        }
        write("unet/model.onnx.data", "weights");
        write("unet/model_fp16.onnx.data", "half the weights");
        write("unet/common.bin", "of all");
        for (const int steps : {1, 2, 3, 4, 8}) write(find_table("ddim", steps), make_table(steps));
        write(find_table("euler-ancestral", 2), make_table(2));
        write_manifest();
    }
    ~HandMadeBundle() {
        std::error_code error;
        fs::remove_all(folder_, error);
    }
    HandMadeBundle(const HandMadeBundle &) = delete;
    HandMadeBundle &operator=(const HandMadeBundle &) = delete;

    fs::path path() const { return folder_ / "bundle"; }
    fs::path operator/(const std::string &name) const { return path() / name; }
    Bundle open() const { return Bundle::open(path().string()); }

    void write(const std::string &name, const std::string &content) const {
        fs::create_directories((*this / name).parent_path());
        std::ofstream(*this / name, std::ios::binary) << content;
    }

    static std::string find_table(const std::string &scheduler, int steps) {
        return "schedules/" + scheduler + "_" + std::to_string(steps) + ".json";
    }

    // With the sizes and digests that the files have now.
    void write_manifest() const {
        std::string files;
        for (const auto &entry : fs::recursive_directory_iterator(path())) {
            if (!entry.is_regular_file() || entry.path().filename() == kManifestName) continue;
            std::ifstream file(entry.path(), std::ios::binary);
            const std::string content(std::istreambuf_iterator<char>(file), {});
            Sha256 digest;
            digest.update(content.data(), content.size());
            files += (files.empty() ? "\"" : ", \"") +
                     entry.path().lexically_relative(path()).string() + R"(": {"size_bytes": )" +
                     std::to_string(content.size()) + R"(, "sha256": ")" + digest.finish() + "\"}";
        }
        const std::string graphs = R"("default_variant": "float32", "inputs": {}, "outputs": {})";
        write(kManifestName,
              R"({"format_version": 1, "name": "hand-made", "family": "none", "components": {
"unet": {"variants": {"float32": "unet/model.onnx", "float16": "unet/model_fp16.onnx"},
 "cpu_graphs": {"float32": "unet/model_cpu.onnx"}, )" +
                  graphs + R"(},
"vae_decoder": {"variants": {"float32": "vae_decoder/model.onnx"}, )" +
                  graphs + R"(}},
"tokenizers": {}, "latents": {"channels": 4, "vae_scale_factor_spatial": 8},
"limits": {"height": {"minimum": 16}, "width": {"minimum": 16}, "num_frames": {"minimum": 1}},
"defaults": {"scheduler": "ddim", "num_inference_steps": 2, "guidance_scale": 1, "height": 64,
 "width": 64, "num_frames": 1, "frame_rate": 8}, "schedules": {"ddim": {)" +
                  list_tables("ddim", {8, 1, 2, 3, 4}) + R"(}, "euler-ancestral": {)" +
                  list_tables("euler-ancestral", {2}) + R"(}, "dpm++2m": {}}, "files": {)" + files +
                  "}}");
    }

private:
    static std::string list_tables(const std::string &scheduler, const std::vector<int> &steps) {
        std::string tables;
        for (const int count : steps) {
            tables += (tables.empty() ? "\"" : ", \"") + std::to_string(count) + "\": \"" +
                      find_table(scheduler, count) + "\"";
        }
        return tables;
    }

    fs::path folder_;
};

}  // namespace

TEST(a_whole_bundle_opens) {
    const HandMadeBundle made;
    const Bundle bundle = made.open();
    CHECK_EQUAL(bundle.manifest().name, "hand-made");
    CHECK_EQUAL(bundle.path(), made.path().string());
    CHECK_EQUAL(Bundle::open(made.path().string() + "//./").path(), made.path().string());
    CHECK_EQUAL(bundle.load_graph("unet", "", false), fs::canonical(made / kGraph).string());
    CHECK_EQUAL(bundle.load_graph("unet", "float32", true),
                fs::canonical(made / "unet/model_cpu.onnx").string());
    CHECK_EQUAL(bundle.read_file("unet/common.bin"), "of all");
}

TEST(what_is_no_bundle_is_refused) {
    const HandMadeBundle made;
    const std::string path = made.path().string();
    CHECK_THROWS(Bundle::open(path + "/nothing"),
                 path + "/nothing does not exist: give the folder of a bundle, or make one with");
    CHECK_THROWS(Bundle::open(path + "/manifest.json"),
                 "manifest.json is a file; a bundle is a folder with manifest.json");
    CHECK_THROWS(Bundle::open(path + "/manifest.json/x"), "does not exist");
    CHECK_THROWS(Bundle::open(path + "/unet"),
                 path + "/unet has no manifest.json, so it is not a bundle: make one with");
    CHECK_THROWS(Bundle::open(std::string(5000, 'a')), "cannot be read: File name too long");
    fs::remove(made / "manifest.json");
    fs::create_directory(made / "manifest.json");
    CHECK_THROWS(made.open(), path + "/manifest.json cannot be read: Is a directory");
}

TEST(a_damaged_manifest_is_refused) {
    const HandMadeBundle made;
    made.write(kManifestName, "{\"format");
    CHECK_THROWS(made.open(), "/manifest.json is not valid JSON (damaged?): ");
    made.write(kManifestName, std::string(size_t{65} << 20, ' '));
    CHECK_THROWS(made.open(), "/manifest.json cannot be read: File too large");
}

TEST(a_file_of_another_size_or_none_is_refused) {
    const HandMadeBundle made;
    made.write(kGraph, "short");
    CHECK_THROWS(made.open(),
                 "unet/model.onnx has 5 bytes; manifest.json lists 21 (the file was cut short or "
                 "changed after export): copy or export it again");
    fs::remove(made / kGraph);
    CHECK_THROWS(made.open(), "bundle has no unet/model.onnx, which manifest.json lists: copy or");
    fs::create_symlink("model.onnx", made / kGraph);
    CHECK_THROWS(made.open(), "bundle has no unet/model.onnx, which manifest.json lists: copy or");
    fs::remove(made / kGraph);
    fs::create_directory(made / kGraph);
    CHECK_THROWS(made.open(), "unet/model.onnx in ");
}

TEST(links_may_not_lead_outside) {
    const HandMadeBundle made;
    const fs::path outside = made.path().parent_path() / "bundle-outside";
    fs::rename(made / "unet", outside);
    fs::create_symlink(outside, made / "unet");
    CHECK_THROWS(made.open(), "is a link that leads outside the bundle");
    fs::remove(made / "unet");
    fs::create_directory(made / "unet");
    for (const auto &entry : fs::directory_iterator(outside)) {
        fs::create_symlink(entry.path(), made / ("unet/" + entry.path().filename().string()));
    }
    CHECK_THROWS(made.open(), "is a link that leads outside the bundle");
}

TEST(links_within_a_bundle_and_to_it_are_followed) {
    const HandMadeBundle made;
    fs::rename(made / kGraph, made / "unet/blob");
    fs::create_symlink("blob", made / kGraph);
    const fs::path link = made.path().parent_path() / "link";
    fs::create_directory_symlink(made.path(), link);
    const Bundle bundle = Bundle::open(link.string());
    CHECK_EQUAL(bundle.path(), link.string());
    CHECK_EQUAL(bundle.load_graph("unet", "", false),
                (fs::canonical(made.path()) / "unet/blob").string());
}

TEST(an_edited_file_is_found_when_it_is_loaded) {
    const HandMadeBundle made;
    const Bundle bundle = made.open();
    bundle.load_graph("unet", "float16", false);
    made.write("unet/model.onnx.data", "weighty");
    for (const bool for_cpu : {false, true}) {
        CHECK_THROWS(bundle.load_graph("unet", "", for_cpu),
                     "unet/model.onnx.data does not match its sha256 in manifest.json (the file "
                     "changed after export): copy or export it again");
    }
    CHECK_THROWS(bundle.read_file("unet/model.onnx.data"), "does not match its sha256");
    bundle.load_graph("unet", "float16", false);
    bundle.load_graph("vae_decoder", "", true);
    made.write("unet/common.bin", "OF ALL");
    CHECK_THROWS(bundle.load_graph("unet", "float16", false), "unet/common.bin does not match");
    made.write("unet/common.bin", "of all and more");
    CHECK_THROWS(bundle.read_file("unet/common.bin"),
                 "unet/common.bin has 15 bytes; manifest.json");
}

TEST(a_graph_reads_its_own_data_and_what_belongs_to_none) {
    const HandMadeBundle made;
    const Bundle bundle = made.open();
    const auto list = [&](const std::string &graph) {
        auto names = find_external_data(bundle.manifest(), bundle.find_component("unet"), graph);
        std::sort(names.begin(), names.end());
        return names;
    };
    const std::vector<std::string> plain = {"unet/common.bin", "unet/model.onnx.data"};
    const std::vector<std::string> half = {"unet/common.bin", "unet/model_fp16.onnx.data"};
    CHECK(list(kGraph) == plain);
    CHECK(list("unet/model_cpu.onnx") == plain);
    CHECK(list("unet/model_fp16.onnx") == half);
}

TEST(what_was_cut_out_of_a_component_reads_the_data_of_its_graph) {
    const HandMadeBundle made;
    const Bundle bundle = made.open();
    ComponentRecord part;
    part.variants = {{"float32", "unet/a.onnx"}, {"float16", "unet/b.onnx"}, {"int8", "c.onnx"}};
    part.cpu_graphs = {{"float32", "unet/a_cpu.onnx"}, {"float16", "unet/b_cpu.onnx"}};
    part.weights_of = "unet";
    const auto list = [&](const std::string &graph) {
        auto names = find_external_data(bundle.manifest(), part, graph);
        std::sort(names.begin(), names.end());
        return names;
    };
    const std::vector<std::string> plain = {"unet/common.bin", "unet/model.onnx.data"};
    const std::vector<std::string> half = {"unet/common.bin", "unet/model_fp16.onnx.data"};
    CHECK(list("unet/a.onnx") == plain);
    CHECK(list("unet/a_cpu.onnx") == plain);
    CHECK(list("unet/b.onnx") == half);
    CHECK_THROWS(list("c.onnx"),
                 "manifest.json: c.onnx has the weights of unet, which has no such graph: export");
    CHECK_THROWS(list("unet/b_cpu.onnx"), "which has no such graph: export again");
    part.weights_of = "transformer";
    CHECK_THROWS(list("unet/a.onnx"),
                 "manifest.json: unet/a.onnx has the weights of transformer, which has no such");
}

TEST(unknown_components_and_variants_are_refused_with_those_there_are) {
    const HandMadeBundle made;
    const Bundle bundle = made.open();
    CHECK_THROWS(bundle.find_component("image_encoder"),
                 "this bundle has no image_encoder; it has unet, vae_decoder");
    CHECK_THROWS(bundle.load_graph("unet", "int8", false),
                 "unet has no variant 'int8': use float32, float16");
    CHECK_THROWS((bundle.check_variant("int8"), 0),
                 "variant 'int8' is not in this bundle: use float32, float16");
    bundle.check_variant("float16");
    CHECK_THROWS(bundle.load_file("unet/other"),
                 "manifest.json names unet/other but does not list");
}

TEST(a_scheduler_is_found_by_its_name_or_that_of_diffusers) {
    const HandMadeBundle made;
    const Bundle bundle = made.open();
    const std::vector<std::pair<const char *, const char *>> names = {
        {"DDIMScheduler", "ddim"},
        {"ddim", "ddim"},
        {"DDIM", "ddim"},
        {"Euler_Ancestral", "euler-ancestral"},
        {"eulerancestraldiscretescheduler", "euler-ancestral"},
        {"DPM++ Multistep 2M", "dpm++2m"}};
    for (const auto &[name, found] : names) CHECK_EQUAL(bundle.find_scheduler(name), found);
    for (const std::string name : {"euler", "", "DDIM Parallel"}) {
        CHECK_THROWS(bundle.find_scheduler(name), "scheduler '" + name +
                                                      "' is not in this bundle: use ddim, "
                                                      "euler-ancestral, dpm++2m");
    }
}

TEST(a_step_count_without_a_table_is_refused_with_the_nearest) {
    const HandMadeBundle made;
    const Bundle bundle = made.open();
    CHECK(list_steps(bundle.manifest().schedules.front().second) ==
          std::vector<int>({1, 2, 3, 4, 8}));
    CHECK_EQUAL(bundle.load_schedule("ddim", 8).num_inference_steps, 8);
    const std::vector<std::pair<int, int>> nearest = {
        {5, 4}, {6, 4}, {7, 8}, {100, 8}, {0, 1}, {-3, 1}, {INT32_MAX, 8}, {INT32_MIN, 1}};
    for (const auto &[asked, near] : nearest) {
        CHECK_THROWS(bundle.find_schedule("ddim", asked),
                     "num_inference_steps is " + std::to_string(asked) +
                         "; this bundle has tables of ddim for 1-4, 8 steps: use " +
                         std::to_string(near));
    }
    CHECK_THROWS(bundle.find_schedule("dpm++2m", 1), "scheduler 'dpm++2m' has no tables in this");
}

TEST(a_damaged_table_is_refused) {
    const HandMadeBundle made;
    made.write("schedules/ddim_2.json", make_table(3));
    made.write("schedules/ddim_3.json", "{");
    made.write_manifest();
    const Bundle bundle = made.open();
    CHECK_THROWS(bundle.load_schedule("ddim", 2),
                 "schedules/ddim_2.json has 3 steps where manifest.json lists it for 2: export");
    CHECK_THROWS(bundle.load_schedule("ddim", 3), "/schedules/ddim_3.json is no JSON file (");
    made.write("schedules/ddim_4.json", make_table(8));
    CHECK_THROWS(bundle.load_schedule("ddim", 4),
                 "schedules/ddim_4.json does not match its sha256");
}
