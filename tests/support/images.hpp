// Image files for the tests of data loading.
#pragma once

#include <png.h>
#include <turbojpeg.h>
#include <zlib.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace rondo::test {

using bytes = std::vector<std::uint8_t>;

struct png_kind {
  int colours = PNG_COLOR_TYPE_RGB;
  int depth = 8;
  bool interlaced = false;
  double gamma = 0;        // of the gAMA chunk, 0 for none
  bytes palette = {};      // red, green, blue, red, …
  bytes transparent = {};  // alpha of the first palette entries
};

/// `rows` are the bytes of all rows, as PNG packs them.
inline void write_png(const std::filesystem::path& path, std::uint32_t height, std::uint32_t width, bytes rows,
                      const png_kind& kind = {}) {
  const auto fail = [](png_structp, png_const_charp message) { throw std::runtime_error(message); };
  const auto ignore = [](png_structp, png_const_charp) {};
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> out(std::fopen(path.c_str(), "wb"), &std::fclose);
  if (!out) throw std::runtime_error("cannot write " + path.string());
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, nullptr, fail, ignore);
  png_infop info = png_create_info_struct(png);
  png_init_io(png, out.get());
  png_set_IHDR(png, info, width, height, kind.depth, kind.colours,
               kind.interlaced ? PNG_INTERLACE_ADAM7 : PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
               PNG_FILTER_TYPE_DEFAULT);
  std::vector<png_color> palette;
  for (std::size_t i = 0; i + 2 < kind.palette.size(); i += 3)
    palette.push_back({kind.palette[i], kind.palette[i + 1], kind.palette[i + 2]});
  if (!palette.empty()) png_set_PLTE(png, info, palette.data(), static_cast<int>(palette.size()));
  if (!kind.transparent.empty())
    png_set_tRNS(png, info, kind.transparent.data(), static_cast<int>(kind.transparent.size()), nullptr);
  if (kind.gamma > 0) png_set_gAMA(png, info, kind.gamma);
  std::vector<png_bytep> starts;
  for (std::size_t row = 0; row < height; ++row) starts.push_back(rows.data() + row * rows.size() / height);
  png_set_rows(png, info, starts.data());
  png_write_png(png, info, PNG_TRANSFORM_IDENTITY, nullptr);
  png_destroy_write_struct(&png, &info);
}

/// `pixels` are bytes in the order that `format` (of TurboJPEG) says.
inline bytes encode_jpeg(int height, int width, const bytes& pixels, int format = TJPF_RGB,
                         int subsampling = TJSAMP_444, int flags = 0) {
  const std::unique_ptr<void, int (*)(void*)> encoder(tjInitCompress(), &tjDestroy);
  unsigned char* memory = nullptr;
  unsigned long size = 0;
  if (tjCompress2(encoder.get(), pixels.data(), width, 0, height, format, &memory, &size, subsampling, 95, flags) != 0)
    throw std::runtime_error(tjGetErrorStr2(encoder.get()));
  const bytes result(memory, memory + size);
  tjFree(memory);
  return result;
}

inline void write_bytes(const std::filesystem::path& path, const bytes& content) {
  const std::unique_ptr<std::FILE, int (*)(std::FILE*)> out(std::fopen(path.c_str(), "wb"), &std::fclose);
  if (!out || (!content.empty() && std::fwrite(content.data(), content.size(), 1, out.get()) != 1))
    throw std::runtime_error("cannot write " + path.string());
}

/// A PNG file whose header promises another size.
inline void patch_png_size(std::string& file, std::uint32_t width, std::uint32_t height) {
  const auto put = [&](std::size_t at, std::uint32_t value) {
    for (int i = 0; i < 4; ++i) file[at + static_cast<std::size_t>(i)] = static_cast<char>(value >> (24 - 8 * i));
  };
  put(16, width);
  put(20, height);
  const auto* header = reinterpret_cast<const std::uint8_t*>(file.data()) + 12;
  put(29, static_cast<std::uint32_t>(crc32(0, header, 17)));
}

}  // namespace rondo::test
