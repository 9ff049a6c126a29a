#include "file_reader.h"

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <vector>

namespace mutoscope {

namespace {

constexpr size_t kBlockBytes = size_t{1} << 20;

struct CloseFile {
    void operator()(std::FILE *file) const { std::fclose(file); }
};

using File = std::unique_ptr<std::FILE, CloseFile>;

std::error_code get_errno() { return {errno, std::generic_category()}; }

// Open a regular file: opening what is not one, a pipe for example, could wait for ever.
std::error_code open_file(const std::string &path, File &file) {
    std::error_code error;
    const auto status = std::filesystem::status(path, error);
    if (error) return error;
    if (std::filesystem::is_directory(status)) return make_error_code(std::errc::is_a_directory);
    if (!std::filesystem::is_regular_file(status)) {
        return make_error_code(std::errc::invalid_argument);
    }
    file.reset(std::fopen(path.c_str(), "rb"));
    return file == nullptr ? get_errno() : std::error_code();
}

}  // namespace

std::error_code read_blocks(const std::string &path, uint64_t max_bytes,
                            const std::function<void(std::string_view)> &take) {
    File file;
    const std::error_code error = open_file(path, file);
    if (error) return error;
    std::setvbuf(file.get(), nullptr, _IONBF, 0);  // the blocks are large
    std::vector<char> block(kBlockBytes);
    for (;;) {
        const size_t size = std::fread(block.data(), 1, block.size(), file.get());
        if (size < block.size() && std::ferror(file.get()) != 0) return get_errno();
        if (size == 0) return {};
        if (size > max_bytes) return make_error_code(std::errc::file_too_large);
        max_bytes -= size;
        take({block.data(), size});
    }
}

std::error_code read_whole_file(const std::string &path, uint64_t max_bytes, std::string &content) {
    content.clear();
    return read_blocks(path, max_bytes, [&content](std::string_view block) { content += block; });
}

std::error_code read_part(const std::string &path, uint64_t offset, size_t size, void *data) {
    File file;
    const std::error_code error = open_file(path, file);
    if (error) return error;
    if (fseeko(file.get(), static_cast<off_t>(offset), SEEK_SET) != 0) return get_errno();
    if (std::fread(data, 1, size, file.get()) == size) return {};
    return std::ferror(file.get()) != 0 ? get_errno()
                                        : make_error_code(std::errc::result_out_of_range);
}

}  // namespace mutoscope
