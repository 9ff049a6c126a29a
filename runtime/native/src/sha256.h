// SHA-256 (FIPS 180-4).
#ifndef MUTOSCOPE_SHA256_H
#define MUTOSCOPE_SHA256_H

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace mutoscope {

class Sha256 {
public:
    // Which code hashes; the results are the same.
    enum class Code { plain, fastest };

    explicit Sha256(Code code = Code::fastest);

    void update(const void *data, size_t size);
    // The digest of all that was given, 64 lower-case hexadecimal digits. Ends the use of the
    // object.
    std::string finish();

private:
    using Blocks = void (*)(uint32_t *state, const uint8_t *data, size_t num_blocks);

    Blocks hash_blocks_;
    std::array<uint32_t, 8> state_;
    std::array<uint8_t, 64> rest_{};  // what does not fill a block yet
    uint64_t size_ = 0;
};

}  // namespace mutoscope

#endif
