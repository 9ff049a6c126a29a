#include "memory_figures.h"

#include <cstdlib>
#include <fstream>
#include <string>

namespace mutoscope {

MemoryFigures read_memory_figures() {
    MemoryFigures figures;
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        const auto read = [&line](const char *key, uint64_t &bytes) {
            const size_t length = std::char_traits<char>::length(key);
            if (line.compare(0, length, key) != 0) return;
            bytes = 1024 * std::strtoull(line.c_str() + length, nullptr, 10);
        };
        read("VmRSS:", figures.resident_bytes);
        read("VmHWM:", figures.peak_resident_bytes);
    }
    return figures;
}

}  // namespace mutoscope
