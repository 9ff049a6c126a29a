// What record_cases.py wrote, and handles for the public header; for the test programs.
#ifndef MUTOSCOPE_TESTS_CASES_H
#define MUTOSCOPE_TESTS_CASES_H

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "mutoscope.h"

namespace cases {

inline std::string read_file(const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + path);
    return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_file(const std::string &path, const std::string &data) {
    std::ofstream file(path, std::ios::binary);
    file << data;
    if (!file) throw std::runtime_error("cannot write " + path);
}

// The parameters of one generation by name.
using Case = std::map<std::string, std::string>;

inline std::vector<Case> read_cases(const std::string &folder) {
    std::vector<Case> cases(1);
    std::string word;
    for (const char letter : read_file(folder + "/cases.txt")) {
        if (letter != '\t' && letter != '\n') {
            word += letter;
            continue;
        }
        const size_t end = word.find('=');
        cases.back()[word.substr(0, end)] = word.substr(end + 1);
        word.clear();
        if (letter == '\n') cases.emplace_back();
    }
    cases.pop_back();
    return cases;
}

inline Case find_case(const std::string &folder, const std::string &name) {
    for (const Case &known : read_cases(folder)) {
        if (known.at("name") == name) return known;
    }
    throw std::runtime_error("there is no case " + name);
}

struct Close {
    void operator()(mutoscope_pipeline *pipeline) const { mutoscope_pipeline_close(pipeline); }
};
using Pipeline = std::unique_ptr<mutoscope_pipeline, Close>;

// A pipeline of a case in one thread; null if that fails, with the reason in `status`.
inline Pipeline open(const std::string &folder, const Case &given, int32_t *status = nullptr) {
    mutoscope_pipeline_params params;
    mutoscope_pipeline_params_init(&params, sizeof params);
    params.num_threads = 1;
    if (given.count("memory") > 0) params.memory = MUTOSCOPE_MEMORY_LOW;
    if (given.count("memory_limit_bytes") > 0) {
        params.memory_limit_bytes = std::stoull(given.at("memory_limit_bytes"));
    }
    mutoscope_pipeline *pipeline = nullptr;
    const int32_t found =
        mutoscope_pipeline_open(&pipeline, (folder + "/" + given.at("bundle")).c_str(), &params);
    if (status != nullptr) *status = found;
    return Pipeline(pipeline);
}

// The params of a case, with all that they point to; it must not be moved.
class Params {
public:
    Params(const std::string &folder, Case given) : given_(std::move(given)) {
        mutoscope_generate_params_init(&params, sizeof params);
        read_numbers();
        params.prompt = find("prompt");
        params.negative_prompt = find("negative_prompt");
        params.scheduler = find("scheduler");
        if (find("strength") != nullptr) {
            condition_ = {"strength", std::stod(find("strength"))};
            params.conditions = &condition_;
            params.num_conditions = 1;
        }
        if (given_.at("bundle") == "image") {
            pixels_ = read_file(folder + "/picture.rgb");
            image_ = {"image", pixels_.data(), shape_, 3, MUTOSCOPE_UINT8};
            params.image = &image_;
        }
    }
    Params(const Params &) = delete;
    Params &operator=(const Params &) = delete;

    mutoscope_generate_params params;

private:
    const char *find(const std::string &name) const {
        const auto found = given_.find(name);
        return found == given_.end() ? nullptr : found->second.c_str();
    }

    void read_numbers() {
        const auto read = [&](const char *name, auto &field) {
            if (find(name) != nullptr) {
                field = static_cast<std::decay_t<decltype(field)>>(std::stod(find(name)));
            }
        };
        read("num_frames", params.num_frames);
        read("height", params.height);
        read("width", params.width);
        read("num_inference_steps", params.num_inference_steps);
        read("guidance_scale", params.guidance_scale);
        read("min_guidance_scale", params.min_guidance_scale);
        read("frame_rate", params.frame_rate);
        read("context_length", params.context_length);
        read("context_stride", params.context_stride);
        if (find("seed") != nullptr) params.seed = std::stoull(find("seed"));
        if (find("guidance_passes") != nullptr) params.guidance_passes = MUTOSCOPE_GUIDANCE_BATCHED;
    }

    Case given_;
    std::string pixels_;
    const int64_t shape_[3] = {20, 30, 3};
    mutoscope_array image_{};
    mutoscope_number condition_{};
};

// A copy of the bundle of texts that a test may damage.
class OwnBundle {
public:
    explicit OwnBundle(const std::string &folder) {
        path_ = std::filesystem::temp_directory_path() /
                ("mutoscope-test-" + std::to_string(reinterpret_cast<uintptr_t>(this)));
        std::filesystem::remove_all(path_);
        std::filesystem::copy(folder + "/text", path_, std::filesystem::copy_options::recursive);
    }
    ~OwnBundle() { std::filesystem::remove_all(path_); }
    OwnBundle(const OwnBundle &) = delete;
    OwnBundle &operator=(const OwnBundle &) = delete;

    std::string path(const std::string &name = "") const { return (path_ / name).string(); }

    void replace(const std::string &name, const std::string &old, const std::string &now) const {
        std::string text = read_file(path(name));
        const size_t place = text.find(old);
        if (place == std::string::npos) throw std::runtime_error(name + " has no " + old);
        write_file(path(name), text.replace(place, old.size(), now));
    }

private:
    std::filesystem::path path_;
};

// Whether frames are those of Python, within 1 of 255.
inline bool are_frames(const std::vector<uint8_t> &found, const std::string &expected) {
    bool is_close = found.size() == expected.size();
    for (size_t i = 0; is_close && i < found.size(); ++i) {
        is_close = std::abs(found[i] - static_cast<uint8_t>(expected[i])) <= 1;
    }
    return is_close;
}

}  // namespace cases

#endif
