// Where the time of a generation went.
#ifndef MUTOSCOPE_TIMINGS_H
#define MUTOSCOPE_TIMINGS_H

#include <chrono>

namespace mutoscope {

// Wall time in seconds, by part; mutoscope_result says of what.
struct Timings {
    double seconds_load = 0;
    double seconds_text_encoder = 0;
    double seconds_image_encoder = 0;
    double seconds_vae_encoder = 0;
    double seconds_denoiser = 0;
    double seconds_sampler = 0;
    double seconds_vae_decoder = 0;
    double seconds_other = 0;
    double seconds_output = 0;
};

// Adds the time of its life to a number.
class Stopwatch {
public:
    using Clock = std::chrono::steady_clock;

    explicit Stopwatch(double &seconds) : seconds_(seconds) {}
    ~Stopwatch() { seconds_ += elapsed(); }
    Stopwatch(const Stopwatch &) = delete;
    Stopwatch &operator=(const Stopwatch &) = delete;

    double elapsed() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

private:
    double &seconds_;
    Clock::time_point start_ = Clock::now();
};

}  // namespace mutoscope

#endif
