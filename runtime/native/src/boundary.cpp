#include "boundary.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string_view>

#include "error.h"
#include "text.h"

namespace mutoscope {
namespace {

// Of no type that has a constructor: it must be there when memory is short.
thread_local char last_error[2048] = "";

// One line of UTF-8, cut where a character ends: a message may hold what somebody wrote into a
// file.
void set_last_error(const char *message) {
    constexpr size_t room = sizeof last_error - 1;
    size_t length = 0;
    const std::string_view text(message);
    while (length < text.size()) {
        const size_t sequence = find_sequence(text, length);
        if (length + std::max<size_t>(sequence, 1) > room) break;
        const bool is_control = static_cast<unsigned char>(text[length]) < 0x20;
        if (sequence == 0 || is_control) {
            last_error[length++] = is_control ? ' ' : '?';
            continue;
        }
        std::memcpy(last_error + length, message + length, sequence);
        length += sequence;
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
        set_last_error("an exception of no known kind");
        return MUTOSCOPE_ERROR_INTERNAL;
    }
}

}  // namespace mutoscope
