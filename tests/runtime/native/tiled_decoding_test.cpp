// A frame in tiles is the frame as a whole.
#include "tiled_decoding.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "small_decoder.h"

namespace mutoscope {
namespace {

// Statistics are summed in another order, and the frame is rounded to whole levels.
constexpr int kMaxTileDifference = 1;

std::vector<uint8_t> decode(
    const Graphs &graphs, const TilesRecord &tiles, const Array &latents, int tile_height,
    const std::function<void()> &on_run = [] {}) {
    const OpenGraph open_graph = [&](const std::string &path) { return graphs.at(path); };
    const Shape &shape = latents.shape();
    std::vector<uint8_t> frame(static_cast<size_t>(shape[3] * 4 * shape[4] * 4 * 3));
    decode_in_tiles(open_graph, latents, tiles, tile_height, on_run, frame.data(), frame.size());
    return frame;
}

int find_difference(const std::vector<uint8_t> &a, const std::vector<uint8_t> &b) {
    int difference = a.size() == b.size() ? 0 : 256;
    for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
        difference = std::max(difference, std::abs(a[i] - b[i]));
    }
    return difference;
}

size_t count_entries(const std::string &folder) {
    size_t count = 0;
    DIR *directory = opendir(folder.c_str());
    if (directory == nullptr) return 0;
    while (readdir(directory) != nullptr) ++count;
    closedir(directory);
    return count - 2;  // "." and ".."
}

// An empty folder that TMPDIR names for as long as this lives.
class TemporaryFolder {
public:
    TemporaryFolder() : path_("/tmp/tiled_decoding_test-XXXXXX") {
        CHECK(mkdtemp(path_.data()) != nullptr);
        setenv("TMPDIR", path_.c_str(), 1);
    }
    ~TemporaryFolder() {
        unsetenv("TMPDIR");
        rmdir(path_.c_str());
    }
    const std::string &path() const { return path_; }

private:
    std::string path_;
};

TEST(tiles_make_the_whole_frame) {
    const TemporaryFolder folder;
    const struct {
        int64_t height, width;
        int tile_height;
    } cases[] = {{32, 32, 8}, {32, 32, 12}, {13, 9, 4}, {7, 11, 1}, {1, 1, 1}, {5, 3, 9}};
    for (const auto &[height, width, tile_height] : cases) {
        const Array latents = make_latents(height, width);
        const std::vector<uint8_t> whole = decode_whole(latents);
        const auto frame = decode(make_graphs(), make_tiles(), latents, tile_height);
        CHECK(find_difference(frame, whole) <= kMaxTileDifference);
        const auto [least, most] = std::minmax_element(whole.begin(), whole.end());
        CHECK(height == 1 || *most - *least > 100);
    }
    CHECK_EQUAL(count_entries(folder.path()), 0U);
}

TEST(a_stage_that_is_given_too_few_rows_shows) {
    const Array latents = make_latents(12, 5);
    for (size_t i = 0; i < 3; ++i) {
        TilesRecord tiles = make_tiles();
        tiles.stages[i].halo = 0;
        const auto frame = decode(make_graphs(), tiles, latents, 4);
        CHECK(find_difference(frame, decode_whole(latents)) > kMaxTileDifference);
    }
}

TEST(a_level_far_from_zero_keeps_its_variance) {
    // Summed squares less the squared mean would lose it in float32.
    Graphs graphs = make_graphs();
    graphs["first"] = [](const NamedArrays &feeds) {
        NamedArrays outputs = run_first(feeds);
        for (size_t i = 0; i < outputs[0].second.size(); ++i) {
            outputs[0].second.as<float>()[i] = 1000.0F + static_cast<float>(i % 2);
        }
        return outputs;
    };
    float mean = 0, scale = 0;
    graphs["second"] = [&](const NamedArrays &feeds) {
        mean = find(feeds, "mean")->as<float>()[1];
        scale = find(feeds, "reciprocal_std")->as<float>()[1];
        return run_second(feeds);
    };
    decode(graphs, make_tiles(), make_latents(9, 4), 2);
    CHECK(std::abs(mean - 1000.5F) < 1e-3F);
    CHECK(std::abs(scale - 2.0F) < 1e-3F);
}

TEST(every_run_is_counted_and_one_graph_is_open_at_a_time) {
    int num_runs = 0, num_open = 0, most_open = 0;
    const auto graphs = make_graphs();
    const OpenGraph open_graph = [&](const std::string &path) -> RunGraph {
        ++num_open;
        most_open = std::max(most_open, num_open);
        const std::shared_ptr<int> session(new int(0), [&num_open](const int *pointer) {
            delete pointer;
            --num_open;
        });
        return [session, run = graphs.at(path)](const NamedArrays &feeds) { return run(feeds); };
    };
    const TilesRecord tiles = make_tiles();
    std::vector<uint8_t> frame(7 * 4 * 5 * 4 * 3);
    decode_in_tiles(
        open_graph, make_latents(7, 5), tiles, 3, [&] { ++num_runs; }, frame.data(), frame.size());
    CHECK_EQUAL(num_runs, 1 + 3 * 3);
    CHECK_EQUAL(num_runs, count_tile_runs(tiles, 7, 3));
    CHECK_EQUAL(most_open, 1);
    CHECK_EQUAL(num_open, 0);
}

TEST(cancelling_leaves_no_file_and_no_descriptor) {
    const TemporaryFolder folder;
    const size_t descriptors = count_entries("/proc/self/fd");
    int runs_left = 6;
    size_t most_descriptors = 0;
    const auto cancel = [&] {
        most_descriptors = std::max(most_descriptors, count_entries("/proc/self/fd"));
        CHECK_EQUAL(count_entries(folder.path()), 0U);
        if (--runs_left == 0) throw Error(MUTOSCOPE_ERROR_CANCELLED, "cancelled");
    };
    CHECK_THROWS(decode(make_graphs(), make_tiles(), make_latents(9, 5), 4, cancel), "cancelled");
    CHECK(most_descriptors >= descriptors + 2);
    CHECK_EQUAL(count_entries("/proc/self/fd"), descriptors);
}

TEST(a_value_is_gone_when_no_stage_needs_it_any_more) {
    const size_t descriptors = count_entries("/proc/self/fd");
    std::vector<size_t> seen;
    decode(make_graphs(), make_tiles(), make_latents(4, 5), 4,
           [&] { seen.push_back(count_entries("/proc/self/fd") - descriptors); });
    // After the head there is a, after the first stage a and b, then b and c.
    CHECK_EQUAL(seen, std::vector<size_t>{1, 2, 2, 2});
    CHECK_EQUAL(count_entries("/proc/self/fd"), descriptors);
}

TEST(no_folder_for_temporary_files_is_one_line_with_a_way_out) {
    setenv("TMPDIR", "/tmp/there/is/no/such/folder", 1);
    CHECK_THROWS(
        decode(make_graphs(), make_tiles(), make_latents(9, 5), 4),
        "decoding in tiles needs a folder for temporary files (No such file or directory): "
        "set TMPDIR to one that can be written to, or raise the memory limit");
    unsetenv("TMPDIR");
}

TEST(a_full_disk_is_one_line_with_a_way_out) {
    const TemporaryFolder folder;
    std::signal(SIGXFSZ, SIG_IGN);
    rlimit before{};
    getrlimit(RLIMIT_FSIZE, &before);
    const rlimit small = {1000, before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &small);
    CHECK_THROWS(decode(make_graphs(), make_tiles(), make_latents(9, 50), 4),
                 "a temporary file in " + folder.path() +
                     " cannot be written: File too large: set TMPDIR to a folder on a disk with "
                     "more room, or raise the memory limit");
    setrlimit(RLIMIT_FSIZE, &before);
}

// One graph returns something else.
void check_refused(const std::string &path, const RunGraph &run, const std::string &message) {
    Graphs graphs = make_graphs();
    graphs[path] = run;
    CHECK_THROWS(decode(graphs, make_tiles(), make_latents(9, 5), 4), message);
}

TEST(a_graph_that_returns_something_else_is_refused) {
    const auto give = [](const std::string &name, const Array &array) {
        return [=](const NamedArrays &) { return NamedArrays{{name, array}}; };
    };
    const auto make = [](DType dtype, const Shape &shape) {
        return Array::make_zeros(dtype, shape);
    };
    check_refused("first", give("x", make_array(4, 12, 10)), "first returned no 'b': export again");
    check_refused("head", give("a", make(DType::float32, {4, 9})),
                  "about 'a': it is float32[4, 9]");
    check_refused("head", give("a", make(DType::float32, {1, 0, 9, 5})), "it is float32[1, 0, 9,");
    check_refused("head", give("a", make(DType::float32, {2, 4, 9, 5})), "it is float32[2, 4, 9,");
    check_refused("head", give("a", make_array(4, 3, 5)),
                  "it has 3 rows, and a stage takes 0 to 5");
    check_refused("first", give("b", make_array(4, 7, 10)), "of which rows 0 to 8 are needed");
    check_refused("first", give("b", make(DType::float16, {1, 4, 16, 10})), "is float16[1, 4, 16");
    check_refused("first", give("b", make_array(3, 16, 10)), "normalised in 2 groups of channels");
    check_refused("last", give("frames", make(DType::float32, {1, 1, 36, 20, 3})),
                  "the last tile graph returned float32[1, 1, 36, 20, 3]; it must be uint8");
    for (const Shape &shape : {Shape{1, 36, 20, 3}, Shape{1, 1, 15, 20, 3}, Shape{1, 1, 36, 21, 3},
                               Shape{1, 2, 36, 20, 3}, Shape{1, 1, 36, 20, 4}}) {
        check_refused("last", give("frames", make(DType::uint8, shape)), "the last tile graph");
    }
    int num_runs = 0;
    const auto change = [&](const NamedArrays &) {
        return NamedArrays{{"b", make_array(4, 16, 10 + num_runs++)}};
    };
    check_refused("first", change, "it has not the same shape in each tile");
}

void check_record_refused(const std::function<void(TilesRecord &)> &change,
                          const std::string &message) {
    TilesRecord tiles = make_tiles();
    change(tiles);
    CHECK_THROWS(decode(make_graphs(), tiles, make_latents(9, 5), 4), message);
}

TEST(a_record_that_makes_no_sense_is_refused) {
    constexpr int kMost = 2147483647;
    check_record_refused([](TilesRecord &tiles) { tiles.stages.clear(); }, "the last stage must");
    check_record_refused([](TilesRecord &tiles) { tiles.stages.back().outputs.clear(); },
                         "the last stage must make the frames and nothing else");
    for (const int scale : {0, -1, 1025, kMost}) {
        check_record_refused([=](TilesRecord &tiles) { tiles.stages[1].scale = scale; }, "scale");
        check_record_refused(
            [=](TilesRecord &tiles) { tiles.stages[0].inputs[0].second = scale; },
            "manifest.json: tiles: first: scale " + std::to_string(scale) + " must be from 1 to");
        check_record_refused([=](TilesRecord &tiles) { tiles.stages[2].outputs[0].second = scale; },
                             "must be from 1 to 1024: export again");
    }
    check_record_refused([](TilesRecord &tiles) { tiles.stages[0].inputs[0].second = 2; },
                         "it has 9 rows, and a stage takes 0 to 10");
    check_record_refused([](TilesRecord &tiles) { tiles.stages[2].inputs[0].second = 2; },
                         "rows 0 to 10 of 9 of the latents");
    check_record_refused([](TilesRecord &tiles) { tiles.stages[1].norm->value = "z"; },
                         "about 'z': a stage normalises it, and none before it makes it");
    check_record_refused([](TilesRecord &tiles) { tiles.stages[1].norm->groups = kMost; },
                         "normalised in 2147483647 groups of channels");
}

TEST(more_rows_around_a_tile_than_there_are_change_nothing) {
    TilesRecord tiles = make_tiles();
    for (StageRecord &stage : tiles.stages) stage.halo = 2147483647;
    const Array latents = make_latents(9, 5);
    CHECK(find_difference(decode(make_graphs(), tiles, latents, 4), decode_whole(latents)) <=
          kMaxTileDifference);
}

}  // namespace
}  // namespace mutoscope
