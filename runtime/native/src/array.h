// Arrays in C order, of the types that graphs take and return.
#ifndef MUTOSCOPE_ARRAY_H
#define MUTOSCOPE_ARRAY_H

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "ordered.h"

namespace mutoscope {

using Shape = std::vector<int64_t>;

enum class DType { float32, float64, float16, int64, int32, uint8, boolean };

// Of "float32", as the manifest names it; raises BundleError for a name that is unknown.
DType parse_dtype(const std::string &name);
const char *get_dtype_name(DType dtype);
size_t get_item_bytes(DType dtype);

// The number of elements; raises EngineError where that is negative or more than memory can hold.
size_t count_elements(const Shape &shape);

// An array with memory of its own; copies of the object share it.
class Array {
public:
    Array() = default;
    // Not initialised, or zeros.
    static Array make(DType dtype, Shape shape);
    static Array make_zeros(DType dtype, Shape shape);
    static Array make_number(double value);  // float64 []
    static Array copy_from(DType dtype, Shape shape, const void *data);
    // With memory that the caller made, as large as the shape needs.
    static Array adopt(DType dtype, Shape shape, std::shared_ptr<std::byte[]> memory);

    DType dtype() const { return dtype_; }
    const Shape &shape() const { return shape_; }
    size_t rank() const { return shape_.size(); }
    size_t size() const { return size_; }
    size_t bytes() const { return size_ * get_item_bytes(dtype_); }
    void *data() const { return memory_.get(); }
    template <typename T>
    T *as() const {
        return static_cast<T *>(data());
    }

    // The same memory with another shape of the same size.
    Array reshape(Shape shape) const;
    // A part of it along the first axis, in the same memory.
    Array slice(int64_t begin, int64_t end) const;
    // A copy with the elements converted as numpy's astype does; the array itself if it has the
    // type already. Raises EngineError for what the type cannot hold, and for float16.
    Array convert(DType dtype) const;

private:
    Array(DType dtype, Shape shape, std::shared_ptr<std::byte[]> memory);

    DType dtype_ = DType::float32;
    Shape shape_;
    size_t size_ = 0;
    std::shared_ptr<std::byte[]> memory_;
};

using NamedArrays = Ordered<Array>;

}  // namespace mutoscope

#endif
