// What stands between the library's exceptions and its callers: a status, and the last error.
#ifndef MUTOSCOPE_BOUNDARY_H
#define MUTOSCOPE_BOUNDARY_H

#include <cstdint>

#include "mutoscope.h"

namespace mutoscope {

// The status of the exception that is being handled, whose message becomes the last error.
int32_t report_exception() noexcept;

// The last error of this thread, "" before the first.
const char *get_last_error() noexcept;

// Run a function and return its status; no exception passes.
template <typename Function>
int32_t guard(Function function) noexcept {
    try {
        function();
        return MUTOSCOPE_OK;
    } catch (...) {
        return report_exception();
    }
}

}  // namespace mutoscope

#endif
