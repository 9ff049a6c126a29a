#include "structs.h"

#include <string>

#include "error.h"

namespace mutoscope {
namespace {

// Every struct is a multiple of its alignment, so no size of a version cuts a field in two.
constexpr size_t kAlignment = 8;
constexpr size_t kMaxStructBytes = 65536;

// So that no appended field can hide in what was padding.
static_assert(sizeof(void *) == 8, "the structs are without padding on 64-bit systems only");
static_assert((sizeof(mutoscope_limit) == 16 && sizeof(mutoscope_number) == 16 &&
               sizeof(mutoscope_array) == 32 && sizeof(mutoscope_pipeline_params) == 64 &&
               sizeof(mutoscope_bundle_info) == 160 && sizeof(mutoscope_condition_info) == 40 &&
               sizeof(mutoscope_progress) == 40 && sizeof(mutoscope_frame) == 32 &&
               sizeof(mutoscope_generate_params) == 184 && sizeof(mutoscope_settings) == 104 &&
               sizeof(mutoscope_result) == 128));

}  // namespace

void check_struct(const char *name, const void *given, size_t struct_size) {
    if (given == nullptr) {
        throw Error(MUTOSCOPE_ERROR_ARGUMENT, std::string(name) + " is NULL");
    }
    if (struct_size < kAlignment || struct_size > kMaxStructBytes ||
        struct_size % kAlignment != 0) {
        throw Error(MUTOSCOPE_ERROR_ARGUMENT,
                    std::string(name) + " has struct_size " + std::to_string(struct_size) +
                        ", which no version of it has: call " + name + "_init");
    }
}

void check_tail(const char *name, const void *given, size_t struct_size, size_t known_size) {
    const auto *bytes = static_cast<const unsigned char *>(given);
    for (size_t i = known_size; i < struct_size; ++i) {
        if (bytes[i] == 0) continue;
        throw Error(MUTOSCOPE_ERROR_ARGUMENT,
                    std::string(name) + " has a field at byte " + std::to_string(i) +
                        " that libmutoscope " MUTOSCOPE_VERSION
                        " does not know: leave it 0, or use a newer libmutoscope");
    }
}

}  // namespace mutoscope
