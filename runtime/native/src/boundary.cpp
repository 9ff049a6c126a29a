#include "boundary.h"

#include <cstddef>
#include <new>
#include <stdexcept>

#include "error.h"

namespace mutoscope {
namespace {

// Of no type that has a constructor: it must be there when memory is short.
thread_local char last_error[2048] = "";

// One line, cut where a character ends: a message may hold what somebody wrote into a file.
void set_last_error(const char *message) {
    constexpr size_t room = sizeof last_error - 1;
    size_t length = 0;
    for (; message[length] != '\0' && length < room; ++length) {
        const bool is_control = static_cast<unsigned char>(message[length]) < 0x20;
        last_error[length] = is_control ? ' ' : message[length];
    }
    if (message[length] != '\0') {
        const auto continues = [&] { return (message[length] & 0xC0) == 0x80; };
        while (length > 0 && continues()) --length;
    }
    last_error[length] = '\0';
}

}  // namespace

const char *get_last_error() noexcept { return last_error; }

int32_t report_exception() noexcept {
    try {
        throw;
    } catch (const Error &error) {
        set_last_error(error.what());
        return error.status();
    } catch (const std::bad_alloc &) {
        set_last_error("there is not enough memory: use a smaller clip, or the low memory mode");
        return MUTOSCOPE_ERROR_OUT_OF_MEMORY;
    } catch (const std::length_error &) {
        set_last_error("a size is more than memory can hold: use a smaller clip");
        return MUTOSCOPE_ERROR_OUT_OF_MEMORY;
    } catch (const std::exception &error) {
        set_last_error(error.what());
        return MUTOSCOPE_ERROR_INTERNAL;
    } catch (...) {
        set_last_error("a callback threw an exception: return MUTOSCOPE_CANCEL instead");
        return MUTOSCOPE_ERROR_ARGUMENT;
    }
}

}  // namespace mutoscope
