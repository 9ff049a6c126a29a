// What the stages of a tiled decoding make of a whole frame, in temporary files.
#ifndef MUTOSCOPE_TILED_VALUES_H
#define MUTOSCOPE_TILED_VALUES_H

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "array.h"

namespace mutoscope {

// Rows of a value, from begin up to end.
struct RowRange {
    int64_t begin;
    int64_t end;

    int64_t size() const { return end - begin; }
};

// The mean and the summed squared deviation of each group, over what was added so far.
class Moments {
public:
    explicit Moments(int groups) : groups_(groups) {}
    int groups() const { return groups_; }

    // Merge some rows of the value's part, float32 [1, C, H, W].
    void add(const Array &part, const RowRange &rows);

    // What a norm takes beside its value: "mean" and "reciprocal_std", float32 [1, groups, 1].
    NamedArrays find_statistics(double epsilon) const;

private:
    int groups_;
    double count_ = 0.0;
    std::vector<double> means_, deviations_;
};

// A file without a name in TMPDIR, or /tmp; it is gone when it is closed. Raises EngineError.
class TemporaryFile {
public:
    TemporaryFile();
    ~TemporaryFile();
    TemporaryFile(const TemporaryFile &) = delete;
    TemporaryFile &operator=(const TemporaryFile &) = delete;

    void write(const std::byte *data, size_t bytes, uint64_t offset);
    void read(std::byte *data, size_t bytes, uint64_t offset);

private:
    std::string folder_;
    int descriptor_ = -1;
};

// Values by name, [1, C, H, W] each. Files are read and written, never mapped, so that their pages
// do not count as the process's.
class TiledValues {
public:
    bool has(const std::string &name) const { return values_.count(name) > 0; }

    // Keep moments of a value that is yet to be written.
    void keep_moments(const std::string &name, int groups);
    NamedArrays find_statistics(const std::string &name, double epsilon) const;

    // Put some rows of a part, [1, C, rows, W], from row `top` of the value on; it has `height`
    // rows.
    void write(const std::string &name, int64_t top, const Array &part, const RowRange &rows,
               int64_t height);

    // Rows of a value, a new array.
    Array read(const std::string &name, const RowRange &rows);

    // Forget a value, if it is there.
    void drop(const std::string &name) { values_.erase(name); }

private:
    struct Value {
        DType dtype = DType::float32;
        int64_t channels = 0, height = 0, width = 0;
        TemporaryFile file;

        size_t row_bytes() const { return static_cast<size_t>(width) * get_item_bytes(dtype); }
        uint64_t find_offset(int64_t channel, int64_t row) const;
    };

    std::map<std::string, Value> values_;
    std::map<std::string, Moments> moments_;
};

}  // namespace mutoscope

#endif
