// What the process has in memory, as the system says.
#ifndef MUTOSCOPE_MEMORY_FIGURES_H
#define MUTOSCOPE_MEMORY_FIGURES_H

#include <cstdint>

namespace mutoscope {

// In bytes; 0 where the system does not say.
struct MemoryFigures {
    uint64_t resident_bytes = 0;
    uint64_t peak_resident_bytes = 0;
};

MemoryFigures read_memory_figures();

}  // namespace mutoscope

#endif
