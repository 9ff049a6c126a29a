#include "sha256.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#include <immintrin.h>
#define MUTOSCOPE_SHA_INSTRUCTIONS 1
#endif

namespace mutoscope {

namespace {

constexpr size_t kBlockBytes = 64;
constexpr size_t kNumRounds = 64;

alignas(16) constexpr uint32_t kRounds[kNumRounds] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

uint32_t rotate(uint32_t word, int bits) { return word >> bits | word << (32 - bits); }

uint32_t read_word(const uint8_t *data) {
    return uint32_t{data[0]} << 24 | uint32_t{data[1]} << 16 | uint32_t{data[2]} << 8 | data[3];
}

void hash_blocks_plainly(uint32_t *state, const uint8_t *data, size_t num_blocks) {
    for (; num_blocks > 0; --num_blocks, data += kBlockBytes) {
        uint32_t words[kNumRounds];
        for (size_t i = 0; i < 16; ++i) words[i] = read_word(data + 4 * i);
        for (size_t i = 16; i < kNumRounds; ++i) {
            const uint32_t early = words[i - 15], late = words[i - 2];
            words[i] = words[i - 16] + (rotate(early, 7) ^ rotate(early, 18) ^ early >> 3) +
                       words[i - 7] + (rotate(late, 17) ^ rotate(late, 19) ^ late >> 10);
        }
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
        uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
        for (size_t i = 0; i < kNumRounds; ++i) {
            const uint32_t first = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) +
                                   ((e & f) ^ (~e & g)) + kRounds[i] + words[i];
            const uint32_t second =
                (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            h = g, g = f, f = e, e = d + first, d = c, c = b, b = a, a = first + second;
        }
        state[0] += a, state[1] += b, state[2] += c, state[3] += d;
        state[4] += e, state[5] += f, state[6] += g, state[7] += h;
    }
}

#if MUTOSCOPE_SHA_INSTRUCTIONS
bool has_sha_instructions() {
    unsigned int a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_SSSE3) == 0 || (c & bit_SSE4_1) == 0) {
        return false;
    }
    constexpr unsigned int kSha = 1U << 29;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & kSha) != 0;
}

// Four rounds at a time: a register holds four words of the message, and one half of the state, the
// words a, b, e, f or c, d, g, h from its high end.
__attribute__((target("sha,ssse3,sse4.1"))) void hash_blocks_by_instructions(uint32_t *state,
                                                                             const uint8_t *data,
                                                                             size_t num_blocks) {
    const auto word = [state](size_t i) { return static_cast<int>(state[i]); };
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i abef = _mm_set_epi32(word(0), word(1), word(4), word(5));
    __m128i cdgh = _mm_set_epi32(word(2), word(3), word(6), word(7));
    for (; num_blocks > 0; --num_blocks, data += kBlockBytes) {
        const __m128i old_abef = abef, old_cdgh = cdgh;
        __m128i words[4];
        for (size_t i = 0; i < 4; ++i) {
            const auto *source = reinterpret_cast<const __m128i *>(data + 16 * i);
            words[i] = _mm_shuffle_epi8(_mm_loadu_si128(source), big_endian);
        }
        for (size_t i = 0; i < kNumRounds / 4; ++i) {
            __m128i &now = words[i % 4];
            const auto *rounds = reinterpret_cast<const __m128i *>(kRounds + 4 * i);
            const __m128i sum = _mm_add_epi32(now, _mm_load_si128(rounds));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, sum);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(sum, 0x0E));
            // These four words are used up; in their place come those of four times four later.
            const __m128i second = words[(i + 1) % 4], third = words[(i + 2) % 4];
            const __m128i last = words[(i + 3) % 4];
            const __m128i middle = _mm_alignr_epi8(last, third, 4);
            now = _mm_add_epi32(_mm_sha256msg1_epu32(now, second), middle);
            now = _mm_sha256msg2_epu32(now, last);
        }
        abef = _mm_add_epi32(abef, old_abef);
        cdgh = _mm_add_epi32(cdgh, old_cdgh);
    }
    alignas(16) uint32_t halves[8];
    _mm_store_si128(reinterpret_cast<__m128i *>(halves), abef);
    _mm_store_si128(reinterpret_cast<__m128i *>(halves + 4), cdgh);
    state[0] = halves[3], state[1] = halves[2], state[2] = halves[7], state[3] = halves[6];
    state[4] = halves[1], state[5] = halves[0], state[6] = halves[5], state[7] = halves[4];
}
#endif

}  // namespace

Sha256::Sha256(Code code)
    : hash_blocks_(hash_blocks_plainly), state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                                0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19} {
#if MUTOSCOPE_SHA_INSTRUCTIONS
    if (code == Code::fastest && has_sha_instructions()) hash_blocks_ = hash_blocks_by_instructions;
#else
    static_cast<void>(code);
#endif
}

void Sha256::update(const void *data, size_t size) {
    if (size == 0) return;
    const auto *bytes = static_cast<const uint8_t *>(data);
    const size_t filled = size_ % kBlockBytes;
    size_ += size;
    if (filled > 0) {
        const size_t taken = std::min(size, kBlockBytes - filled);
        std::memcpy(rest_.data() + filled, bytes, taken);
        if (filled + taken < kBlockBytes) return;
        hash_blocks_(state_.data(), rest_.data(), 1);
        bytes += taken, size -= taken;
    }
    const size_t num_blocks = size / kBlockBytes;
    hash_blocks_(state_.data(), bytes, num_blocks);
    std::memcpy(rest_.data(), bytes + num_blocks * kBlockBytes, size % kBlockBytes);
}

std::string Sha256::finish() {
    const uint64_t num_bits = 8 * size_;
    constexpr size_t kLengthBytes = 8;
    const uint8_t end[kBlockBytes] = {0x80};
    const size_t filled = size_ % kBlockBytes;
    const size_t room = filled < kBlockBytes - kLengthBytes ? kBlockBytes : 2 * kBlockBytes;
    update(end, room - kLengthBytes - filled);
    uint8_t length[kLengthBytes];
    for (size_t i = 0; i < kLengthBytes; ++i) {
        length[i] = static_cast<uint8_t>(num_bits >> (56 - 8 * i));
    }
    update(length, kLengthBytes);
    std::string digest;
    for (const uint32_t word : state_) {
        for (int bit = 28; bit >= 0; bit -= 4) digest += "0123456789abcdef"[word >> bit & 15];
    }
    return digest;
}

}  // namespace mutoscope
