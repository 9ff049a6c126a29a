// Normal random numbers as torch's CPU generator draws them; runtime/noise.py says how.
#ifndef MUTOSCOPE_NOISE_H
#define MUTOSCOPE_NOISE_H

#include <cstddef>
#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "array.h"

namespace mutoscope {

// The state of one torch CPU generator; successive draws continue one stream.
class NoiseGenerator {
public:
    explicit NoiseGenerator(uint64_t seed) : words_(static_cast<uint32_t>(seed)) {}

    // The next values, standard normal, in C order.
    void fill(float *values, size_t count);
    Array draw(Shape shape);
    // Noise for latents, float32 [1, C, F, h, w]; with frames_first drawn as [1, F, C, h, w].
    void fill_latents(const Array &latents, bool frames_first);
    // The numbers from 0 to count - 1 in a random order, as torch.randperm draws it.
    std::vector<int> draw_permutation(int count);

private:
    void fill_block(float *block);
    double draw_normal();
    double draw_uniform();

    std::mt19937 words_;
    std::optional<double> waiting_normal_;
};

}  // namespace mutoscope

#endif
