// A test harness in one header: TEST, CHECK, CHECK_EQUAL, CHECK_THROWS, and a main that runs all.
//
//     #include "check.h"
//     TEST(join_puts_commas_between) { CHECK_EQUAL(join({"a", "b"}), "a, b"); }
//
// A check that fails is printed, and the test goes on; an exception ends the test. The program
// exits with 1 if anything failed. One file of a program includes this header: it defines main.
#ifndef MUTOSCOPE_TESTS_CHECK_H
#define MUTOSCOPE_TESTS_CHECK_H

#include <cstdint>
#include <cstdio>
#include <exception>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "error.h"

namespace check {

struct Test {
    const char *name;
    void (*run)();
};

inline std::vector<Test> &list_tests() {
    static std::vector<Test> tests;
    return tests;
}

inline int &count_failures() {
    static int failures = 0;
    return failures;
}

// What the program was called with, without its name.
inline std::vector<std::string> &test_arguments() {
    static std::vector<std::string> arguments;
    return arguments;
}

inline bool add_test(const char *name, void (*run)()) {
    list_tests().push_back({name, run});
    return true;
}

inline void fail(const char *file, int line, const std::string &text) {
    ++count_failures();
    std::fprintf(stderr, "%s:%d: %s\n", file, line, text.c_str());
}

// Values as failures show them; those that cannot be written to a stream have no text.
template <typename T, typename = void>
struct CanWrite : std::false_type {};
template <typename T>
struct CanWrite<T, std::void_t<decltype(std::declval<std::ostream &>() << std::declval<T>())>>
    : std::true_type {};

template <typename T>
std::string show(const T &value) {
    std::ostringstream text;
    if constexpr (std::is_same_v<T, bool>) {
        text << (value ? "true" : "false");
    } else if constexpr (std::is_integral_v<T>) {
        text << +value;
    } else if constexpr (std::is_same_v<T, std::nullptr_t>) {
        text << "nullptr";
    } else if constexpr (CanWrite<const T &>::value) {
        text << value;
    } else {
        text << "(a value without a text)";
    }
    return text.str();
}

template <typename T>
std::string show(const std::vector<T> &values) {
    std::string text;
    for (const T &value : values) text += (text.empty() ? "" : ", ") + show(value);
    return "[" + text + "]";
}

// Equal, also for numbers of other signs, where == would warn and mislead.
template <typename A, typename B>
bool are_equal(const A &a, const B &b) {
    if constexpr (std::is_integral_v<A> && std::is_integral_v<B>) {
        if constexpr (std::is_signed_v<A> == std::is_signed_v<B>) {
            return a == b;
        } else if constexpr (std::is_signed_v<A>) {
            return a >= 0 && static_cast<std::make_unsigned_t<A>>(a) == b;
        } else {
            return b >= 0 && a == static_cast<std::make_unsigned_t<B>>(b);
        }
    } else if constexpr (std::is_convertible_v<A, std::string_view> &&
                         std::is_convertible_v<B, std::string_view>) {
        return std::string_view(a) == std::string_view(b);
    } else {
        return a == b;
    }
}

template <typename A, typename B>
void check_equal(const char *file, int line, const char *text, const A &a, const B &b) {
    if (!are_equal(a, b)) fail(file, line, std::string(text) + ": " + show(a) + " != " + show(b));
}

// The call throws mutoscope::Error, whose one line has this part.
template <typename Call>
void check_throws(const char *file, int line, const char *text, const Call &call,
                  std::string_view part) {
    try {
        call();
    } catch (const mutoscope::Error &error) {
        const std::string_view message = error.what();
        if (message.find(part) == std::string_view::npos) {
            fail(file, line,
                 std::string(text) + ": the message is \"" + std::string(message) +
                     "\", without \"" + std::string(part) + "\"");
        }
        if (message.find('\n') != std::string_view::npos) {
            fail(file, line, std::string(text) + ": the message has several lines");
        }
        return;
    } catch (const std::exception &error) {
        fail(file, line, std::string(text) + ": threw another exception: " + error.what());
        return;
    }
    fail(file, line, std::string(text) + ": threw nothing");
}

inline int run_all(int argc, char **argv) {
    test_arguments().assign(argv + (argc > 0 ? 1 : 0), argv + argc);
    for (const Test &test : list_tests()) {
        const int failures_before = count_failures();
        try {
            test.run();
        } catch (const std::exception &error) {
            fail(test.name, 0, std::string("threw: ") + error.what());
        }
        const bool passed = count_failures() == failures_before;
        std::printf("%s %s\n", passed ? "ok    " : "FAILED", test.name);
        std::fflush(stdout);
    }
    std::printf("%zu tests, %d failures\n", list_tests().size(), count_failures());
    return count_failures() == 0 && !list_tests().empty() ? 0 : 1;
}

}  // namespace check

using check::test_arguments;

#define TEST(name)                                                                            \
    static void test_##name();                                                                \
    [[maybe_unused]] static const bool is_added_##name = check::add_test(#name, test_##name); \
    static void test_##name()

#define CHECK(...)                                                                 \
    do {                                                                           \
        if (!(__VA_ARGS__)) check::fail(__FILE__, __LINE__, "not: " #__VA_ARGS__); \
    } while (false)

#define CHECK_EQUAL(...) CHECK_EQUAL_AT_(__FILE__, __LINE__, #__VA_ARGS__, __VA_ARGS__)
#define CHECK_EQUAL_AT_(file, line, text, ...) check::check_equal(file, line, text, __VA_ARGS__)

// The last argument is a part of the message, what stands before it the expression.
#define CHECK_THROWS(expression, part) \
    check::check_throws(               \
        __FILE__, __LINE__, #expression, [&] { (void)(expression); }, part)

int main(int argc, char **argv) { return check::run_all(argc, argv); }

#endif
