// A pipeline that closes itself, and statuses as exceptions: what a C++ program may wrap the header
// in. To be copied and changed.
#ifndef EXAMPLE_PIPELINE_H
#define EXAMPLE_PIPELINE_H

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "mutoscope.h"

namespace example {

class Error : public std::runtime_error {
public:
    Error(int32_t status, const std::string &message)
        : std::runtime_error(message), status_(status) {}
    int32_t status() const { return status_; }

private:
    int32_t status_;
};

inline void check(int32_t status) {
    if (status != MUTOSCOPE_OK) throw Error(status, mutoscope_last_error());
}

inline mutoscope_generate_params make_generate_params() {
    mutoscope_generate_params params;
    check(mutoscope_generate_params_init(&params, sizeof params));
    return params;
}

struct Video {
    mutoscope_result result;
    std::vector<uint8_t> frames;  // [num_frames, height, width, 3], RGB
};

class Pipeline {
public:
    explicit Pipeline(const std::string &bundle) {
        mutoscope_pipeline *pipeline = nullptr;
        check(mutoscope_pipeline_open(&pipeline, bundle.c_str(), nullptr));
        pipeline_.reset(pipeline);
    }

    Video generate(const mutoscope_generate_params &params) {
        mutoscope_settings settings;
        check(mutoscope_settings_init(&settings, sizeof settings));
        check(mutoscope_resolve(&settings, pipeline_.get(), &params));
        Video video{{}, std::vector<uint8_t>(settings.frames_bytes)};
        check(mutoscope_result_init(&video.result, sizeof video.result));
        check(mutoscope_generate(&video.result, video.frames.data(), video.frames.size(),
                                 pipeline_.get(), &params));
        return video;
    }

    // From any thread, while this object lives.
    void cancel() { mutoscope_cancel(pipeline_.get()); }

private:
    struct Close {
        void operator()(mutoscope_pipeline *pipeline) const { mutoscope_pipeline_close(pipeline); }
    };
    std::unique_ptr<mutoscope_pipeline, Close> pipeline_;
};

}  // namespace example

#endif
