// Make a video, but take no longer than so many seconds: another thread cancels it then.
#include <chrono>
#include <condition_variable>
#include <iostream>
#include <mutex>
#include <string>
#include <thread>

#include "pipeline.h"

namespace {

// Calls something after a time, unless it is destroyed before.
class Alarm {
public:
    template <typename Function>
    Alarm(std::chrono::duration<double> time, Function function)
        : thread_([this, time, function] {
              std::unique_lock<std::mutex> lock(mutex_);
              if (!changed_.wait_for(lock, time, [this] { return is_over_; })) function();
          }) {}
    ~Alarm() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            is_over_ = true;
        }
        changed_.notify_one();
        thread_.join();
    }

private:
    std::mutex mutex_;
    std::condition_variable changed_;
    bool is_over_ = false;
    std::thread thread_;
};

int32_t show_progress(const mutoscope_progress *progress, void *) {
    if (progress->stage == MUTOSCOPE_STAGE_DENOISING) {
        std::cerr << "step " << progress->num_done << " of " << progress->num_in_all << '\n';
    }
    return MUTOSCOPE_CONTINUE;
}

int generate(const std::string &bundle, const std::string &prompt, double seconds) {
    example::Pipeline pipeline(bundle);
    mutoscope_generate_params params = example::make_generate_params();
    params.prompt = prompt.c_str();
    params.seed = MUTOSCOPE_SEED_RANDOM;
    params.num_frames = 4;
    params.num_inference_steps = 8;
    params.progress_callback = show_progress;
    const Alarm alarm(std::chrono::duration<double>(seconds), [&pipeline] { pipeline.cancel(); });
    const example::Video video = pipeline.generate(params);
    std::cout << video.result.num_frames << " frames of " << video.result.width << " x "
              << video.result.height << " in " << video.result.seconds_total << " s\n";
    return 0;
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 4) {
        std::cerr << "usage: generate BUNDLE PROMPT SECONDS\n";
        return 2;
    }
    try {
        return generate(argv[1], argv[2], std::stod(argv[3]));
    } catch (const example::Error &error) {
        std::cerr << "error: " << error.what() << '\n';
        return error.status() == MUTOSCOPE_ERROR_CANCELLED ? 3 : 1;
    }
}
