// libFuzzer target: the header of a file of baked prompts is either read, with every tensor within
// the file, or refused with one of our errors. The input is the header; 64 bytes of values follow.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "baked_prompts.h"
#include "error.h"
#include "safetensors_file.h"

namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kValuesBytes = 64;

void check(bool condition) {
    if (!condition) std::abort();
}

void check_tensor(const mutoscope::SafetensorsHeader::Tensor &tensor, uint64_t begin) {
    uint64_t bytes = sizeof(float);
    for (const int64_t length : tensor.shape) {
        check(length >= 1 && static_cast<uint64_t>(length) <= kValuesBytes);
        bytes *= static_cast<uint64_t>(length);
        check(bytes <= kValuesBytes);
    }
    check(tensor.start >= begin && tensor.start + bytes <= begin + kValuesBytes);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const uint64_t begin = kLengthBytes + size;
    try {
        const mutoscope::SafetensorsHeader header = mutoscope::parse_safetensors(
            std::string_view(reinterpret_cast<const char *>(data), size), begin + kValuesBytes,
            "prompts.safetensors");
        for (const auto &[name, tensor] : header.tensors) check_tensor(tensor, begin);
        const auto texts =
            mutoscope::read_baked_texts(mutoscope::find(header.metadata, "format"),
                                        mutoscope::find(header.metadata, "texts"), "prompts");
        check(!texts.empty());
    } catch (const mutoscope::Error &) {
    }
    return 0;
}
