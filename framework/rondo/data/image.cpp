#include "rondo/data/image.hpp"

#include <ATen/Functions.h>
#include <fmt/format.h>
#include <png.h>
#include <torch/nn/functional/upsampling.h>
#include <turbojpeg.h>

#include <cstddef>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "rondo/data/input_file.hpp"
#include "rondo/error.hpp"

namespace rondo::data {

namespace {

/// Four bytes per pixel: red, green, blue, alpha.
struct pixels {
  std::int64_t height = 0;
  std::int64_t width = 0;
  std::vector<std::uint8_t> bytes;
};

/// A file and what may be in it.
struct encoded {
  std::filesystem::path path;
  std::string bytes;
  std::int64_t max_pixels;

  [[nodiscard]] const std::uint8_t* data() const { return reinterpret_cast<const std::uint8_t*>(bytes.data()); }

  [[noreturn]] void fail(const std::string& problem) const { throw format_error(path.string(), 0, problem); }
  [[noreturn]] void fail_as(const char* format, const std::string& reason) const {
    fail(
        fmt::format("the {} image is damaged, cut off or of an unknown kind ({}); copy the file again, or convert or "
                    "remove it",
                    format, reason));
  }

  [[nodiscard]] pixels room_for(std::int64_t height, std::int64_t width) const {
    if (height < 1 || width < 1) fail(fmt::format("the image has {} x {} pixels", width, height));
    if (height > max_pixels / width)
      fail(fmt::format("the image has {} x {} pixels, more than the option 'max_pixels', which is {}", width, height,
                       max_pixels));
    return {height, width, std::vector<std::uint8_t>(static_cast<std::size_t>(4 * height * width))};
  }
};

pixels decode_png(const encoded& file) {
  struct closing {
    png_image image{};
    ~closing() { png_image_free(&image); }
  } open;
  auto& image = open.image;
  image.version = PNG_IMAGE_VERSION;
  if (png_image_begin_read_from_memory(&image, file.data(), file.bytes.size()) == 0) file.fail_as("PNG", image.message);
  auto result = file.room_for(image.height, image.width);
  image.format = PNG_FORMAT_RGBA;
  image.flags |= PNG_IMAGE_FLAG_16BIT_sRGB;  // 16 bits would mean linear light otherwise
  if (png_image_finish_read(&image, nullptr, result.bytes.data(), 0, nullptr) == 0) file.fail_as("PNG", image.message);
  return result;
}

/// Adobe's CMYK, in which 255 means no ink.
void cmyk_to_rgba(std::vector<std::uint8_t>& bytes) {
  for (std::size_t at = 0; at < bytes.size(); at += 4) {
    const unsigned black = bytes[at + 3];
    for (std::size_t i = at; i < at + 3; ++i) bytes[i] = static_cast<std::uint8_t>((bytes[i] * black + 127) / 255);
    bytes[at + 3] = 255;
  }
}

pixels decode_jpeg(const encoded& file) {
  struct destroy {
    void operator()(void* handle) const noexcept { tjDestroy(handle); }
  };
  const std::unique_ptr<void, destroy> decoder(tjInitDecompress());
  if (!decoder) throw std::bad_alloc();
  const auto require = [&](int result) {
    if (result != 0) file.fail_as("JPEG", tjGetErrorStr2(decoder.get()));
  };
  int width = 0;
  int height = 0;
  int subsampling = 0;
  int colours = 0;
  require(tjDecompressHeader3(decoder.get(), file.data(), static_cast<unsigned long>(file.bytes.size()), &width,
                              &height, &subsampling, &colours));
  auto result = file.room_for(height, width);
  const bool cmyk = colours == TJCS_CMYK || colours == TJCS_YCCK;
  // A warning means that bytes are missing or wrong, and grey in their place. Thousands of scans are an attack.
  require(tjDecompress2(decoder.get(), file.data(), static_cast<unsigned long>(file.bytes.size()), result.bytes.data(),
                        width, 0, height, cmyk ? TJPF_CMYK : TJPF_RGBA, TJFLAG_STOPONWARNING | TJFLAG_LIMITSCANS));
  if (cmyk) cmyk_to_rgba(result.bytes);
  return result;
}

pixels decode(const encoded& file) {
  using namespace std::string_view_literals;
  const std::string_view bytes = file.bytes;
  if (bytes.starts_with("\x89PNG\r\n\x1a\n"sv)) return decode_png(file);
  if (bytes.starts_with("\xff\xd8\xff"sv)) return decode_jpeg(file);
  std::string beginning;
  for (const char c : bytes.substr(0, 8)) beginning += fmt::format(" {:02x}", static_cast<unsigned char>(c));
  file.fail(bytes.empty() ? "the file is empty; expected a PNG or JPEG image"
                          : fmt::format("neither a PNG nor a JPEG image: it begins with{}", beginning));
}

encoded read_file(const std::filesystem::path& path, std::int64_t max_pixels) {
  const detail::random_access_file file(path);
  // No format needs more for an image of that size, which may have text and profiles beside its pixels.
  const auto most = (std::uint64_t{1} << 26) + 16 * static_cast<std::uint64_t>(max_pixels);
  if (file.size() > most)
    throw format_error(
        path.string(), 0,
        fmt::format("the file has {} bytes, more than an image of {} pixels, the option 'max_pixels', can "
                    "need",
                    file.size(), max_pixels));
  return {path, file.read(0, file.size()), max_pixels};
}

at::Tensor grey(const pixels& from) {
  auto result = at::empty({1, from.height, from.width}, at::TensorOptions().dtype(at::kByte));
  auto* to = result.data_ptr<std::uint8_t>();
  for (std::size_t at = 0; at < from.bytes.size(); at += 4)
    *to++ = static_cast<std::uint8_t>(
        (19595U * from.bytes[at] + 38470U * from.bytes[at + 1] + 7471U * from.bytes[at + 2] + 0x8000U) >> 16U);
  return result;
}

at::Tensor planes(pixels& from, int channels) {
  if (channels == 1) return grey(from);
  const auto all = at::from_blob(from.bytes.data(), {from.height, from.width, 4}, at::TensorOptions().dtype(at::kByte));
  return all.permute({2, 0, 1}).slice(0, 0, channels);
}

at::Tensor scaled(const at::Tensor& image, const image_size& size) {
  namespace functional = torch::nn::functional;
  const auto options = functional::InterpolateFuncOptions()
                           .size(std::vector<std::int64_t>{size.height, size.width})
                           .mode(torch::kBilinear)
                           .align_corners(false)
                           .antialias(true);
  return functional::interpolate(image.unsqueeze(0), options).squeeze(0).clamp_(0, 1);  // rounding may leave the range
}

}  // namespace

void detail::check_image_options(const image_options& options) {
  if (options.channels != 1 && options.channels != 3 && options.channels != 4)
    throw option_error("channels", fmt::format("{}", options.channels), "1 (grey), 3 (RGB) or 4 (RGBA)");
  if (options.size && (options.size->height < 1 || options.size->width < 1))
    throw option_error("size", fmt::format("{} x {}", options.size->height, options.size->width),
                       "1 x 1 or more (height x width)");
  constexpr auto limit = std::int64_t{1} << 40;
  if (options.max_pixels < 1 || options.max_pixels > limit)
    throw option_error("max_pixels", fmt::format("{}", options.max_pixels), fmt::format("from 1 to {}", limit));
}

at::Tensor read_image(const std::filesystem::path& path, const image_options& options) {
  detail::check_image_options(options);
  auto decoded = decode(read_file(path, options.max_pixels));
  const auto image =
      planes(decoded, options.channels).to(at::kFloat, false, true, at::MemoryFormat::Contiguous).div_(255);
  if (!options.size || (options.size->height == decoded.height && options.size->width == decoded.width)) return image;
  return scaled(image, *options.size);
}

}  // namespace rondo::data
