// Pipelines in several threads, for ThreadSanitizer: two handles generate while a third thread
// cancels, and one handle is asked for twice at once. argv: the folder of record_cases.py.
#include <atomic>
#include <chrono>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "cases.h"
#include "check.h"

using cases::Params;
using cases::Pipeline;

namespace {

constexpr int kRounds = 20;
constexpr size_t kFrameBytes = size_t{32} * 48 * 3;

std::string folder() { return test_arguments().at(0); }

// CHECK counts failures without a lock: threads count here, and the test checks after them.
struct Counts {
    std::atomic<int> made{0};
    std::atomic<int> cancelled{0};
    std::atomic<int> busy{0};
    std::atomic<int> wrong{0};

    void add(int32_t status, bool is_right) {
        if (status == MUTOSCOPE_OK && is_right) {
            ++made;
        } else if (status == MUTOSCOPE_ERROR_CANCELLED) {
            ++cancelled;
        } else if (status == MUTOSCOPE_ERROR_BUSY) {
            ++busy;
        } else {
            ++wrong;
        }
    }
};

void generate(const Pipeline &pipeline, const std::string &name, Counts &counts) {
    const Params params(folder(), cases::find_case(folder(), name));
    std::vector<uint8_t> frames(6 * kFrameBytes);
    const int32_t status =
        mutoscope_generate(nullptr, frames.data(), frames.size(), pipeline.get(), &params.params);
    const std::string expected = cases::read_file(folder() + "/" + name + ".frames");
    counts.add(status, cases::are_frames(frames, expected));
    // Each thread has a message of its own, whatever the others do.
    if (status != MUTOSCOPE_OK && *mutoscope_last_error() == '\0') ++counts.wrong;
}

void run_all(const std::vector<std::function<void()>> &functions) {
    std::vector<std::thread> threads;
    for (const auto &function : functions) threads.emplace_back(function);
    for (std::thread &thread : threads) thread.join();
}

}  // namespace

TEST(two_handles_generate_while_a_third_thread_cancels_one) {
    const Pipeline first = cases::open(folder(), cases::find_case(folder(), "plain"));
    const Pipeline second = cases::open(folder(), cases::find_case(folder(), "noisy"));
    Counts of_first, of_second;
    std::atomic<bool> is_done{false};
    const auto repeat = [&](const Pipeline &pipeline, const std::string &name, Counts &counts) {
        for (int i = 0; i < kRounds; ++i) generate(pipeline, name, counts);
    };
    std::thread canceller([&] {
        while (!is_done) {
            mutoscope_cancel(first.get());
            std::this_thread::sleep_for(std::chrono::microseconds(300));
        }
    });
    run_all(
        {[&] { repeat(first, "plain", of_first); }, [&] { repeat(second, "noisy", of_second); }});
    is_done = true;
    canceller.join();
    CHECK_EQUAL(of_first.wrong, 0);
    CHECK_EQUAL(of_first.made + of_first.cancelled, kRounds);
    CHECK_EQUAL(of_second.made, kRounds);
    generate(first, "plain", of_first);
    CHECK_EQUAL(of_first.made + of_first.cancelled, kRounds + 1);
}

TEST(a_generation_is_cancelled_in_the_middle) {
    // Every generation is cancelled from its first progress on, by another thread.
    const Pipeline pipeline = cases::open(folder(), cases::find_case(folder(), "plain"));
    struct Shared {
        std::atomic<bool> is_started{false};
        std::atomic<bool> is_cancelled{false};
    };
    for (int i = 0; i < kRounds; ++i) {
        Shared shared;
        Params params(folder(), cases::find_case(folder(), "plain"));
        params.params.progress_user_data = &shared;
        params.params.progress_callback = [](const mutoscope_progress *, void *data) -> int32_t {
            auto &seen = *static_cast<Shared *>(data);
            seen.is_started = true;
            while (!seen.is_cancelled) std::this_thread::yield();
            return MUTOSCOPE_CONTINUE;
        };
        std::thread canceller([&] {
            while (!shared.is_started) std::this_thread::yield();
            mutoscope_cancel(pipeline.get());
            shared.is_cancelled = true;
        });
        std::vector<uint8_t> frames(6 * kFrameBytes);
        const int32_t status = mutoscope_generate(nullptr, frames.data(), frames.size(),
                                                  pipeline.get(), &params.params);
        canceller.join();
        CHECK_EQUAL(status, MUTOSCOPE_ERROR_CANCELLED);
    }
    Counts counts;
    generate(pipeline, "plain", counts);
    CHECK_EQUAL(counts.made, 1);
}

TEST(one_handle_is_used_by_one_thread_at_a_time) {
    const Pipeline pipeline = cases::open(folder(), cases::find_case(folder(), "plain"));
    Counts counts;
    const auto repeat = [&] {
        for (int i = 0; i < kRounds; ++i) generate(pipeline, "plain", counts);
    };
    run_all({repeat, repeat, repeat});
    CHECK_EQUAL(counts.wrong, 0);
    CHECK_EQUAL(counts.made + counts.busy, 3 * kRounds);
    CHECK(counts.made > 0);
}

TEST(handles_are_opened_and_closed_by_several_threads) {
    Counts counts;
    const auto repeat = [&] {
        for (int i = 0; i < kRounds / 4; ++i) {
            const Pipeline pipeline = cases::open(folder(), cases::find_case(folder(), "plain"));
            generate(pipeline, "plain", counts);
        }
    };
    run_all({repeat, repeat});
    CHECK_EQUAL(counts.made, 2 * (kRounds / 4));
}
