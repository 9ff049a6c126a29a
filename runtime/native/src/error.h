// What goes wrong inside the library: a status and one line for people.
#ifndef MUTOSCOPE_ERROR_H
#define MUTOSCOPE_ERROR_H

#include <cstdint>
#include <exception>
#include <string>
#include <utility>

#include "mutoscope.h"

namespace mutoscope {

// Crosses no boundary: c_api.cpp turns it into the status and mutoscope_last_error().
class Error : public std::exception {
public:
    Error(int32_t status, std::string message) : status_(status), message_(std::move(message)) {}

    int32_t status() const { return status_; }
    const char *what() const noexcept override { return message_.c_str(); }

private:
    int32_t status_;
    std::string message_;
};

struct ParameterError : Error {
    explicit ParameterError(std::string message)
        : Error(MUTOSCOPE_ERROR_PARAMETER, std::move(message)) {}
};
struct BundleError : Error {
    explicit BundleError(std::string message) : Error(MUTOSCOPE_ERROR_BUNDLE, std::move(message)) {}
};
struct ScheduleError : Error {
    explicit ScheduleError(std::string message)
        : Error(MUTOSCOPE_ERROR_SCHEDULE, std::move(message)) {}
};
struct EngineError : Error {
    explicit EngineError(std::string message) : Error(MUTOSCOPE_ERROR_ENGINE, std::move(message)) {}
};

}  // namespace mutoscope

#endif
