// What a graph takes for a picture: equal to what the Python runtime makes of it.
//
//     images_test image_corpus.bin        the cases that make_image_corpus.py wrote
//     images_test                         only what needs none
#include "images.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "check.h"
#include "records.h"

using nlohmann::json;

namespace mutoscope {
namespace {

std::optional<ImageSize> read_size(const json &operation, const char *name) {
    if (!operation.contains(name)) return std::nullopt;
    const json &size = operation[name];
    if (size.is_string()) return ImageSize{-1, size.get<std::string>()};
    return ImageSize{size.get<int64_t>(), ""};
}

template <typename T>
std::optional<T> read_field(const json &operation, const char *name) {
    if (!operation.contains(name)) return std::nullopt;
    return operation[name].get<T>();
}

ImageRecord read_record(const json &record) {
    ImageRecord result;
    for (const json &operation : record.at("operations")) {
        result.operations.push_back({operation.at("kind"), read_size(operation, "height"),
                                     read_size(operation, "width"),
                                     read_field<std::string>(operation, "filter"),
                                     read_field<std::vector<double>>(operation, "mean"),
                                     read_field<std::vector<double>>(operation, "std")});
    }
    return result;
}

// A picture in its bytes.
struct Image {
    int64_t height = 0;
    int64_t width = 0;
    std::vector<uint8_t> pixels;
};

Image make_image(int64_t height, int64_t width, uint8_t level = 100) {
    return {height, width, std::vector<uint8_t>(static_cast<size_t>(height * width * 3), level)};
}

Array prepare(const Image &image, const std::vector<ImageOperation> &operations, int64_t height = 8,
              int64_t width = 8) {
    return prepare_image(image.pixels.data(), image.height, image.width, ImageRecord{operations},
                         height, width);
}

ImageOperation make_operation(const std::string &kind, int64_t height, int64_t width,
                              const std::string &filter = "box") {
    return {kind, ImageSize{height, ""}, ImageSize{width, ""}, filter, {}, {}};
}

void check_case(const json &header, const Image &image, const std::vector<float> &expected) {
    const ImageRecord record = read_record(header.at("record"));
    const int64_t height = header.at("height"), width = header.at("width");
    if (header.contains("error")) {
        const std::string message = header["error"];
        CHECK_THROWS(prepare(image, record.operations, height, width), message);
        return;
    }
    const Array found = prepare(image, record.operations, height, width);
    CHECK_EQUAL(found.shape(), header.at("shape").get<Shape>());
    CHECK_EQUAL(get_dtype_name(found.dtype()), "float32");
    if (found.size() != expected.size()) return;
    double difference = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
        difference =
            std::max(difference, std::abs(static_cast<double>(found.as<float>()[i]) - expected[i]));
    }
    if (!(difference <= header.at("tolerance").get<double>())) {
        check::fail(__FILE__, __LINE__, header.dump() + ": differs by " + check::show(difference));
    }
}

template <typename T>
std::vector<T> read_values(std::istream &file, size_t count) {
    std::vector<T> values(count);
    file.read(reinterpret_cast<char *>(values.data()),
              static_cast<std::streamsize>(count * sizeof(T)));
    return values;
}

TEST(pictures_are_prepared_as_in_python) {
    if (test_arguments().empty()) return;
    std::ifstream file(test_arguments()[0], std::ios::binary);
    CHECK(file.good());
    Image image;
    std::string line;
    size_t count = 0;
    while (std::getline(file, line)) {
        const json header = json::parse(line);
        if (header.contains("image")) {
            image.height = header["image"][0];
            image.width = header["image"][1];
            image.pixels =
                read_values<uint8_t>(file, static_cast<size_t>(image.height * image.width * 3));
        }
        size_t size = 0;
        if (header.contains("shape")) size = count_elements(header["shape"].get<Shape>());
        const auto expected = read_values<float>(file, size);
        CHECK(file.good());
        check_case(header, image, expected);
        ++count;
    }
    std::printf("       %zu cases\n", count);
    CHECK(count > 0);
}

TEST(pixels_become_0_to_1_in_planes) {
    const Image image = {1, 2, {0, 51, 255, 255, 102, 0}};
    const Array found = prepare(image, {});
    CHECK_EQUAL(found.shape(), Shape{1, 3, 1, 2});
    const std::vector<float> values(found.as<float>(), found.as<float>() + 6);
    CHECK_EQUAL(values, std::vector<float>{0.0F, 1.0F, 0.2F, 0.4F, 1.0F, 0.0F});
}

TEST(a_level_keeps_its_value_through_every_filter_and_size) {
    for (const char *filter : {"box", "bilinear", "bicubic", "lanczos"}) {
        for (const int64_t size : {1, 2, 9, 200}) {
            const Array found =
                prepare(make_image(31, 17, 255), {make_operation("resize", size, size, filter)});
            const float *values = found.as<float>();
            CHECK(std::all_of(values, values + found.size(), [](float x) { return x == 1.0F; }));
        }
    }
}

TEST(sizes_without_end_are_refused_before_anything_is_made) {
    const Image image = make_image(4, 4);
    constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
    for (const char *kind : {"resize", "resize_and_crop", "blur_and_resize"}) {
        CHECK_THROWS(prepare(image, {make_operation(kind, kHuge, 4)}), "must be at most 65535");
        CHECK_THROWS(prepare(image, {make_operation(kind, 4, 65536)}), "must be at most 65535");
        CHECK_THROWS(prepare(image, {make_operation(kind, 65535, 65535)}), "134217728 pixels");
        CHECK_THROWS(prepare(image, {make_operation(kind, -kHuge - 1, 4)}), "must be a number of");
    }
    ImageOperation clip = make_operation("resize", -1, -1);
    clip.height->name = "height";
    clip.width->name = "width";
    CHECK_THROWS(prepare(image, {clip}, kHuge, kHuge), "must be at most 65535");
    CHECK_THROWS(prepare(image, {clip}, 0, 4), "size 'height' must be a number of pixels");
}

TEST(a_picture_without_pixels_or_with_too_many_is_refused) {
    const Image image = make_image(1, 1);
    for (const int64_t side : {int64_t{0}, int64_t{-1}, int64_t{65536}}) {
        CHECK_THROWS(prepare_image(image.pixels.data(), side, 1, {}, 8, 8), "1 to 65535");
        CHECK_THROWS(prepare_image(image.pixels.data(), 1, side, {}, 8, 8), "1 to 65535");
    }
}

TEST(the_longest_lines_are_resized) {
    const Image image = make_image(65535, 2, 7);
    for (const char *kind : {"resize", "resize_and_crop", "blur_and_resize"}) {
        const Array found = prepare(image, {make_operation(kind, 2, 1, "lanczos")});
        CHECK(std::abs(found.as<float>()[0] - 7.0F / 255.0F) < 1e-6F);
    }
}

}  // namespace
}  // namespace mutoscope
