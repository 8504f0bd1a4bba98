// IDX files and folders for the tests of data loading.
#pragma once

#include <unistd.h>
#include <zlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace rondo::test {

/// An empty folder that goes away with the object.
class idx_folder {
 public:
  idx_folder()
      : path_(std::filesystem::temp_directory_path() /
              ("rondo-idx-" + std::to_string(::getpid()) + "-" + std::to_string(std::random_device{}()))) {
    std::filesystem::create_directory(path_);
  }
  idx_folder(const idx_folder&) = delete;
  idx_folder& operator=(const idx_folder&) = delete;
  ~idx_folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  [[nodiscard]] const std::filesystem::path& path() const { return path_; }
  [[nodiscard]] std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

inline std::string idx_header(std::uint8_t type, const std::vector<std::uint32_t>& sizes) {
  std::string bytes{'\0', '\0', static_cast<char>(type), static_cast<char>(sizes.size())};
  for (const auto size : sizes)
    for (const int shift : {24, 16, 8, 0}) bytes += static_cast<char>((size >> shift) & 0xffU);
  return bytes;
}

inline void write_plain(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream out(path, std::ios::binary);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (!out.flush()) throw std::runtime_error("cannot write " + path.string());
}

inline void write_gzip(const std::filesystem::path& path, const std::string& bytes) {
  gzFile out = gzopen(path.c_str(), "wb");
  if (out == nullptr) throw std::runtime_error("cannot write " + path.string());
  const auto length = static_cast<unsigned>(bytes.size());
  const auto written = gzwrite(out, bytes.data(), length);
  if (gzclose(out) != Z_OK || written != static_cast<int>(length))
    throw std::runtime_error("cannot write " + path.string());
}

inline std::string read_plain(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

}  // namespace rondo::test
