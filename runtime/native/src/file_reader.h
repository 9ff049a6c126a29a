// Files read in blocks, or in part.
#ifndef MUTOSCOPE_FILE_READER_H
#define MUTOSCOPE_FILE_READER_H

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <system_error>

namespace mutoscope {

// Give the content of a file to `take`, block by block. Returns what went wrong, if anything did:
// file_too_large where there is more than max_bytes, which is then not given.
std::error_code read_blocks(const std::string &path, uint64_t max_bytes,
                            const std::function<void(std::string_view)> &take);

// The same, with the whole content into `content`.
std::error_code read_whole_file(const std::string &path, uint64_t max_bytes, std::string &content);

// Read `size` bytes from `offset` on into `data`: result_out_of_range where the file has fewer.
std::error_code read_part(const std::string &path, uint64_t offset, size_t size, void *data);

}  // namespace mutoscope

#endif
