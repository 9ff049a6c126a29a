// Float32 tensors of a safetensors file, read row by row; runtime/safetensors_file.py is the same.
//
// Such a file is the length of a header (8 bytes, little-endian), the header (JSON: for each tensor
// its type, its shape and where its values lie, beside texts under __metadata__), and the values.
#ifndef MUTOSCOPE_SAFETENSORS_FILE_H
#define MUTOSCOPE_SAFETENSORS_FILE_H

#include <cstdint>
#include <string>
#include <string_view>

#include "array.h"
#include "ordered.h"

namespace mutoscope {

// What the header says; every tensor lies within the file.
struct SafetensorsHeader {
    struct Tensor {
        Shape shape;         // each length at least 1
        uint64_t start = 0;  // in bytes from the beginning of the file
    };

    Ordered<Tensor> tensors;
    Ordered<std::string> metadata;
};

// Read a header, of which `text` is what follows its length.
//
// file_bytes: the size of the whole file.
// name: what messages call it.
// BundleError: it is damaged, or has tensors that are not float32.
SafetensorsHeader parse_safetensors(std::string_view text, uint64_t file_bytes,
                                    const std::string &name);

// One file, of which only the header is in memory.
class SafetensorsFile {
public:
    // Raises BundleError.
    SafetensorsFile(std::string path, uint64_t file_bytes, std::string name);

    const Ordered<SafetensorsHeader::Tensor> &tensors() const { return header_.tensors; }
    // A text of the metadata, or null.
    const std::string *find_text(const std::string &key) const {
        return find(header_.metadata, key);
    }
    // tensor[index : index + 1] of a tensor that there is, with a row of that index. Raises
    // BundleError.
    Array read_row(const std::string &tensor, size_t index) const;

private:
    std::string path_, name_;
    SafetensorsHeader header_;
};

}  // namespace mutoscope

#endif
