#include "array.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>

#include "error.h"
#include "text.h"

namespace mutoscope {
namespace {

struct DTypeRecord {
    DType dtype;
    const char *name;
    size_t bytes;
};

constexpr DTypeRecord kDTypes[] = {
    {DType::float32, "float32", 4}, {DType::float64, "float64", 8}, {DType::float16, "float16", 2},
    {DType::int64, "int64", 8},     {DType::int32, "int32", 4},     {DType::uint8, "uint8", 1},
    {DType::boolean, "bool", 1},
};

const DTypeRecord &find_record(DType dtype) {
    for (const DTypeRecord &record : kDTypes) {
        if (record.dtype == dtype) return record;
    }
    throw Error(MUTOSCOPE_ERROR_INTERNAL, "a numeric type has no record");
}

template <typename To, typename From>
To convert_number(From value) {
    if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
        constexpr double limit = 9007199254740992.0;  // 2^53, which every double below is exact to
        const double most = std::min(limit, static_cast<double>(std::numeric_limits<To>::max()));
        const double least =
            std::max(-limit, static_cast<double>(std::numeric_limits<To>::lowest()));
        if (!(value >= least && value <= most)) {
            throw EngineError("the value " + format_number(static_cast<double>(value)) +
                              " does not fit into the whole number that a graph takes");
        }
    }
    return static_cast<To>(value);
}

template <typename From, typename To>
void convert_elements(const From *from, To *to, size_t count) {
    for (size_t i = 0; i < count; ++i) to[i] = convert_number<To>(from[i]);
}

template <typename From>
void convert_from(const From *from, const Array &to) {
    switch (to.dtype()) {
        case DType::float32:
            return convert_elements(from, to.as<float>(), to.size());
        case DType::float64:
            return convert_elements(from, to.as<double>(), to.size());
        case DType::int64:
            return convert_elements(from, to.as<int64_t>(), to.size());
        case DType::int32:
            return convert_elements(from, to.as<int32_t>(), to.size());
        case DType::uint8:
            return convert_elements(from, to.as<uint8_t>(), to.size());
        default:
            throw EngineError(std::string("a graph takes ") + get_dtype_name(to.dtype()) +
                              ", which this version cannot make: use a newer libmutoscope");
    }
}

}  // namespace

DType parse_dtype(const std::string &name) {
    for (const DTypeRecord &record : kDTypes) {
        if (name == record.name) return record.dtype;
    }
    throw BundleError("dtype " + quote(name) +
                      " is unknown to this version: use a newer libmutoscope");
}

const char *get_dtype_name(DType dtype) { return find_record(dtype).name; }

size_t get_item_bytes(DType dtype) { return find_record(dtype).bytes; }

size_t count_elements(const Shape &shape) {
    // So that no product of the count with the size of an element can overflow.
    constexpr int64_t most = std::numeric_limits<int64_t>::max() / 64;
    int64_t count = 1;
    for (const int64_t length : shape) {
        if (length < 0 || (length > 0 && count > most / length)) {
            throw EngineError("the shape " + format_shape(shape) + " is not one that memory holds");
        }
        count *= length;
    }
    return static_cast<size_t>(count);
}

Array::Array(DType dtype, Shape shape, std::shared_ptr<std::byte[]> memory)
    : dtype_(dtype),
      shape_(std::move(shape)),
      size_(count_elements(shape_)),
      memory_(std::move(memory)) {}

Array Array::make(DType dtype, Shape shape) {
    const size_t bytes = count_elements(shape) * get_item_bytes(dtype);
    std::shared_ptr<std::byte[]> memory(new std::byte[bytes]);
    return Array(dtype, std::move(shape), std::move(memory));
}

Array Array::make_zeros(DType dtype, Shape shape) {
    Array array = make(dtype, std::move(shape));
    if (array.size() > 0) std::memset(array.data(), 0, array.bytes());
    return array;
}

Array Array::make_number(double value) {
    Array array = make(DType::float64, {});
    *array.as<double>() = value;
    return array;
}

Array Array::copy_from(DType dtype, Shape shape, const void *data) {
    Array array = make(dtype, std::move(shape));
    if (array.size() > 0) std::memcpy(array.data(), data, array.bytes());
    return array;
}

Array Array::adopt(DType dtype, Shape shape, std::shared_ptr<std::byte[]> memory) {
    return Array(dtype, std::move(shape), std::move(memory));
}

Array Array::reshape(Shape shape) const {
    if (count_elements(shape) != size_) {
        throw EngineError("an array of shape " + format_shape(shape_) + " cannot become " +
                          format_shape(shape));
    }
    return Array(dtype_, std::move(shape), memory_);
}

Array Array::slice(int64_t begin, int64_t end) const {
    Shape shape = shape_;
    const size_t bytes_per_item = shape[0] == 0 ? 0 : bytes() / static_cast<size_t>(shape[0]);
    shape[0] = end - begin;
    const std::shared_ptr<std::byte[]> part(memory_, memory_.get() + begin * bytes_per_item);
    return Array(dtype_, std::move(shape), part);
}

Array Array::convert(DType dtype) const {
    if (dtype == dtype_) return *this;
    Array result = make(dtype, shape_);
    switch (dtype_) {
        case DType::float32:
            convert_from(as<float>(), result);
            break;
        case DType::float64:
            convert_from(as<double>(), result);
            break;
        case DType::int64:
            convert_from(as<int64_t>(), result);
            break;
        case DType::int32:
            convert_from(as<int32_t>(), result);
            break;
        case DType::uint8:
            convert_from(as<uint8_t>(), result);
            break;
        default:
            throw EngineError(std::string("a graph returned ") + get_dtype_name(dtype_) +
                              ", which this version cannot read: use a newer libmutoscope");
    }
    return result;
}

}  // namespace mutoscope
