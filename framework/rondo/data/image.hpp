#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <optional>

namespace rondo::data {

/// In pixels.
struct image_size {
  std::int64_t height;
  std::int64_t width;
};

struct image_options {
  /// 1: grey (luma of ITU-R BT.601: 0.299 red + 0.587 green + 0.114 blue, rounded as Pillow does); 3: red, green, blue,
  /// without regard to transparency; 4: with alpha at the end, 1 where the image has none.
  int channels = 3;
  /// What every image is scaled to: bilinear, with antialiasing where it becomes smaller, each side by its own factor.
  /// Without it, images keep their sizes.
  std::optional<image_size> size = std::nullopt;
  /// Images with more pixels are refused before memory is spent on them, since a small file can stand for a huge image.
  /// Reading takes 4 bytes per pixel beside the result.
  std::int64_t max_pixels = 100'000'000;
};

/// Reads a PNG or JPEG file (told by its content) into a float32 tensor [channels, height, width] in [0, 1]: byte /
/// 255. PNG of all kinds; 16 bits are rounded to 8, and the colours of an image with a gAMA chunk are converted to
/// sRGB. JPEG: 8 bits, baseline or progressive; CMYK in Adobe's convention. Orientation and colour profiles are not
/// applied, as in torchvision.
///
/// Throws `option_error` for bad options, `io_error` when the file cannot be opened or read, and `format_error` with
/// its path when it is damaged, cut off, too large or of another format. Any thread.
[[nodiscard]] at::Tensor read_image(const std::filesystem::path& path, const image_options& options = {});

namespace detail {

/// Throws `option_error`.
void check_image_options(const image_options& options);

}  // namespace detail

}  // namespace rondo::data
