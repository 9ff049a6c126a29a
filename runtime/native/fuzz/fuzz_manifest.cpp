// libFuzzer target: a manifest is either read or refused with one of our errors.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "error.h"
#include "manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    try {
        const mutoscope::Manifest manifest =
            mutoscope::parse_manifest(std::string_view(reinterpret_cast<const char *>(data), size));
        // What was accepted must be safe to use.
        for (const auto &[name, component] : manifest.components) {
            component.find_cpu_graph(component.choose_variant("int8"));
        }
        for (const auto &[name, condition] : manifest.conditions) condition.check(name, 1.0);
        for (const int64_t value : {INT64_MIN, int64_t{-1}, int64_t{81}, INT64_MAX}) {
            manifest.limits.num_frames.check("num_frames", value);
        }
    } catch (const mutoscope::Error &) {
    }
    return 0;
}
