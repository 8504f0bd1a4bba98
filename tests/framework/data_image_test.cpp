#include "rondo/data/image.hpp"

#include <ATen/Functions.h>

#include <cstdint>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/idx_files.hpp"
#include "support/images.hpp"
#include "support/messages.hpp"
#include "support/python.hpp"
#include "support/temporary_directory.hpp"

namespace data_image_test {

using namespace rondo;
using namespace rondo::test;
using rondo::testing::contains;
using rondo::testing::message_of;
using rondo::testing::run_python;
using rondo::testing::temporary_directory;

namespace {

/// Bytes [height, width, channels] as a float tensor [channels, height, width].
at::Tensor planes(const bytes& pixels, std::int64_t height, std::int64_t width, std::int64_t channels) {
  const auto all = at::tensor(at::ArrayRef<std::uint8_t>(pixels), at::kByte).reshape({height, width, channels});
  return all.permute({2, 0, 1}).to(at::kFloat).div(255);
}

bytes noise(std::size_t size, unsigned seed = 1) {
  std::mt19937 random(seed);
  bytes result(size);
  for (auto& byte : result) byte = static_cast<std::uint8_t>(random());
  return result;
}

/// Colours that change slowly, which JPEG keeps nearly.
bytes gradient(int height, int width) {
  bytes pixels;
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (const int value : {255 * x / width, 255 * y / height, 128})
        pixels.push_back(static_cast<std::uint8_t>(value));
  return pixels;
}

void check_bytes(const at::Tensor& image, const std::vector<int>& expected) {
  REQUIRE(image.scalar_type() == at::kFloat);
  const auto found = image.mul(255).flatten();
  REQUIRE(found.numel() == static_cast<std::int64_t>(expected.size()));
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i);
    CHECK(found[static_cast<std::int64_t>(i)].item<float>() == Approx(expected[i]).margin(1e-3));
  }
}

}  // namespace

TEST_CASE("a PNG image is read byte for byte", "[data][image]") {
  const temporary_directory folder;
  const auto pixels = noise(7 * 5 * 3);
  for (const bool interlaced : {false, true}) {
    write_png(folder / "image", 7, 5, pixels, {.interlaced = interlaced});
    const auto image = data::read_image(folder / "image");
    REQUIRE(image.sizes() == at::IntArrayRef({3, 7, 5}));
    REQUIRE(image.is_contiguous());
    REQUIRE(image.equal(planes(pixels, 7, 5, 3)));
  }
}

TEST_CASE("all kinds of PNG give the channels that are asked for", "[data][image]") {
  const temporary_directory folder;
  const auto path = folder / "image";
  SECTION("grey") {
    write_png(path, 1, 2, {10, 200}, {.colours = PNG_COLOR_TYPE_GRAY});
    check_bytes(data::read_image(path, {.channels = 1}), {10, 200});
    check_bytes(data::read_image(path), {10, 200, 10, 200, 10, 200});
    check_bytes(data::read_image(path, {.channels = 4}), {10, 200, 10, 200, 10, 200, 255, 255});
  }
  SECTION("one bit") {
    write_png(path, 2, 3, {0b10100000, 0b01000000}, {.colours = PNG_COLOR_TYPE_GRAY, .depth = 1});
    check_bytes(data::read_image(path, {.channels = 1}), {255, 0, 255, 0, 255, 0});
  }
  SECTION("colours as grey") {
    write_png(path, 1, 4, {255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 255});
    check_bytes(data::read_image(path, {.channels = 1}), {76, 150, 29, 255});  // 0.299, 0.587, 0.114 of 255
  }
  SECTION("alpha, without which colours stay as they are") {
    write_png(path, 1, 2, {10, 20, 30, 40, 50, 60, 70, 0}, {.colours = PNG_COLOR_TYPE_RGB_ALPHA});
    check_bytes(data::read_image(path, {.channels = 4}), {10, 50, 20, 60, 30, 70, 40, 0});
    check_bytes(data::read_image(path), {10, 50, 20, 60, 30, 70});
  }
  SECTION("a palette with transparent colours") {
    write_png(
        path, 1, 4, {0, 1, 2, 1},
        {.colours = PNG_COLOR_TYPE_PALETTE, .palette = {9, 8, 7, 100, 110, 120, 1, 2, 3}, .transparent = {0, 50}});
    check_bytes(data::read_image(path, {.channels = 4}),
                {9, 100, 1, 100, 8, 110, 2, 110, 7, 120, 3, 120, 0, 50, 255, 50});
  }
  SECTION("16 bits, rounded") {
    write_png(path, 1, 3, {0x80, 0x80, 0x12, 0x34, 0xff, 0xff}, {.colours = PNG_COLOR_TYPE_GRAY, .depth = 16});
    check_bytes(data::read_image(path, {.channels = 1}), {0x80, 0x12, 0xff});
  }
  SECTION("the gamma of sRGB changes nothing, another one is converted") {
    write_png(path, 1, 2, {100, 200}, {.colours = PNG_COLOR_TYPE_GRAY, .gamma = 0.45455});
    check_bytes(data::read_image(path, {.channels = 1}), {100, 200});
    write_png(path, 1, 2, {55, 255}, {.colours = PNG_COLOR_TYPE_GRAY, .gamma = 1.0});
    const auto image = data::read_image(path, {.channels = 1}).mul(255);
    CHECK(image[0][0][0].item<float>() == Approx(128).margin(1));  // 255 * sRGB(55 / 255)
    CHECK(image[0][0][1].item<float>() == Approx(255));
  }
}

TEST_CASE("a JPEG image is read, whatever its kind", "[data][image]") {
  const temporary_directory folder;
  const auto path = folder / "image";
  const auto pixels = gradient(40, 60);
  const auto expected = planes(pixels, 40, 60, 3);
  const auto difference = [&](const at::Tensor& wanted, const data::image_options& options = {}) {
    const auto image = data::read_image(path, options);
    REQUIRE(image.sizes() == wanted.sizes());
    return image.sub(wanted).abs().max().item<float>();
  };
  SECTION("baseline, subsampled, progressive") {
    for (const int subsampling : {TJSAMP_444, TJSAMP_422, TJSAMP_420})
      for (const int flags : {0, TJFLAG_PROGRESSIVE}) {
        write_bytes(path, encode_jpeg(40, 60, pixels, TJPF_RGB, subsampling, flags));
        CHECK(difference(expected) < 0.03);
      }
  }
  SECTION("grey") {
    bytes luma;
    for (int i = 0; i < 40 * 60; ++i) luma.push_back(static_cast<std::uint8_t>(i / 10));
    write_bytes(path, encode_jpeg(40, 60, luma, TJPF_GRAY, TJSAMP_GRAY));
    const auto grey = planes(luma, 40, 60, 1);
    CHECK(difference(grey, {.channels = 1}) < 0.03);
    CHECK(difference(grey.expand({3, 40, 60})) < 0.03);
  }
  SECTION("colours as grey, and with alpha") {
    write_bytes(path, encode_jpeg(40, 60, pixels));
    const auto grey = expected[0].mul(0.299).add(expected[1].mul(0.587)).add(expected[2].mul(0.114)).unsqueeze(0);
    CHECK(difference(grey, {.channels = 1}) < 0.03);
    const auto image = data::read_image(path, {.channels = 4});
    CHECK(image[3].eq(1).all().item<bool>());
    CHECK(image.slice(0, 0, 3).equal(data::read_image(path)));
  }
  SECTION("CMYK as Adobe writes it: 255 is no ink") {
    bytes inks;
    for (std::size_t i = 0; i < pixels.size(); i += 3) {
      inks.insert(inks.end(), pixels.begin() + static_cast<std::ptrdiff_t>(i),
                  pixels.begin() + static_cast<std::ptrdiff_t>(i) + 3);
      inks.push_back(128);
    }
    write_bytes(path, encode_jpeg(40, 60, inks, TJPF_CMYK));
    CHECK(difference(expected.mul(128.0 / 255)) < 0.03);
  }
}

TEST_CASE("images are scaled as LibTorch in Python scales them", "[data][image]") {
  const temporary_directory folder;
  const auto pixels = noise(30 * 20 * 3);
  write_png(folder / "image", 30, 20, pixels);
  write_plain(folder / "raw", std::string(pixels.begin(), pixels.end()));
  for (const auto& [height, width] :
       std::vector<std::pair<std::int64_t, std::int64_t>>{{7, 11}, {45, 64}, {1, 1}, {30, 5}}) {
    CAPTURE(height, width);
    const auto judged = run_python(R"(
import sys, torch
raw = torch.frombuffer(bytearray(open(sys.argv[1], "rb").read()), dtype=torch.uint8).reshape(30, 20, 3)
image = raw.permute(2, 0, 1).float().div(255).unsqueeze(0)
size = int(sys.argv[2]), int(sys.argv[3])
scaled = torch.nn.functional.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
print(*scaled.flatten().tolist())
)",
                                   {(folder / "raw").string(), std::to_string(height), std::to_string(width)});
    REQUIRE(judged.status == 0);
    const auto image = data::read_image(folder / "image", {.size = data::image_size{height, width}});
    REQUIRE(image.sizes() == at::IntArrayRef({3, height, width}));
    std::istringstream in(judged.output);
    const auto flat = image.flatten();
    for (std::int64_t i = 0; i < flat.numel(); ++i) {
      float expected = 0;
      REQUIRE(in >> expected);
      if (std::abs(flat[i].item<float>() - expected) > 1e-5F) FAIL("pixel " << i);
    }
    CHECK(image.min().item<float>() >= 0);
    CHECK(image.max().item<float>() <= 1);
  }
  REQUIRE(data::read_image(folder / "image", {.size = {{30, 20}}}).equal(planes(pixels, 30, 20, 3)));
}

TEST_CASE("a PNG image with damage is refused or read right, never read wrong", "[data][image]") {
  const temporary_directory folder;
  const auto path = folder / "image";
  write_png(path, 9, 11, noise(9 * 11 * 3));
  const auto whole = read_plain(path);
  const auto expected = data::read_image(path);
  const auto is_read = [&](const std::string& content) {
    write_plain(path, content);
    at::Tensor found;
    const auto attempt = [&] { found = data::read_image(path); };
    try {
      attempt();
    } catch (const format_error& e) {
      REQUIRE(e.where() == path.string());
      return false;
    }
    REQUIRE(found.equal(expected));
    return true;
  };
  SECTION("cut off") {
    std::size_t read = 0;
    for (std::size_t length = 0; length < whole.size(); ++length) read += is_read(whole.substr(0, length)) ? 1 : 0;
    REQUIRE(read <= 12);  // what is missing then is the end marker only
  }
  SECTION("a bit flipped") {
    std::size_t read = 0;
    for (std::size_t i = 0; i < whole.size(); ++i) {
      auto damaged = whole;
      damaged[i] = static_cast<char>(damaged[i] ^ 0x10);
      CAPTURE(i);
      read += is_read(damaged) ? 1 : 0;
    }
    REQUIRE(read <= 12);
  }
}

TEST_CASE("a JPEG image that is cut off is refused, one with damage never ends in anything but a typed error",
          "[data][image]") {
  const temporary_directory folder;
  const auto path = folder / "image";
  for (const int flags : {0, TJFLAG_PROGRESSIVE}) {
    const auto whole = encode_jpeg(16, 24, noise(16 * 24 * 3), TJPF_RGB, TJSAMP_420, flags);
    for (std::size_t length = 0; length < whole.size(); length += 7) {
      CAPTURE(length);
      write_bytes(path, bytes(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(length)));
      const auto message = message_of<format_error>([&] { static_cast<void>(data::read_image(path)); });
      REQUIRE(contains(message, path.string()));
    }
    std::mt19937 random(4);
    for (int i = 0; i < 500; ++i) {
      auto damaged = whole;
      damaged[random() % damaged.size()] = static_cast<std::uint8_t>(random());
      write_bytes(path, damaged);
      try {
        static_cast<void>(data::read_image(path));
      } catch (const format_error&) {
      }
    }
  }
}

TEST_CASE("what is no image is refused", "[data][image]") {
  const temporary_directory folder;
  const auto path = folder / "image.png";
  write_plain(path, "");
  REQUIRE(contains(message_of<format_error>([&] { static_cast<void>(data::read_image(path)); }), "is empty"));
  write_plain(path, "GIF89a\x01");
  REQUIRE(contains(message_of<format_error>([&] { static_cast<void>(data::read_image(path)); }),
                   "it begins with 47 49 46 38 39 61 01"));
  for (const auto& missing : {folder / "missing", folder.path()}) {
    try {
      static_cast<void>(data::read_image(missing));
      FAIL("read");
    } catch (const io_error& e) {
      REQUIRE(e.path() == missing);
    }
  }
}

TEST_CASE("an image with more pixels than are allowed is refused before it takes memory", "[data][image]") {
  const temporary_directory folder;
  const auto path = folder / "image";
  const auto refusal = [&](const data::image_options& options = {}) {
    return message_of<format_error>([&] { static_cast<void>(data::read_image(path, options)); });
  };
  SECTION("PNG") {
    write_png(path, 10, 20, noise(600));
    REQUIRE(contains(refusal({.max_pixels = 199}), "20 x 10 pixels, more than the option 'max_pixels', which is 199"));
    REQUIRE(data::read_image(path, {.max_pixels = 200}).numel() == 600);
    auto file = read_plain(path);
    patch_png_size(file, 1000000, 1000000);
    write_plain(path, file);
    REQUIRE(contains(refusal(), "1000000 x 1000000 pixels"));
  }
  SECTION("JPEG") {
    auto file = encode_jpeg(10, 20, noise(600));
    write_bytes(path, file);
    REQUIRE(contains(refusal({.max_pixels = 199}), "20 x 10 pixels"));
    for (std::size_t i = 0; i + 9 < file.size(); ++i)
      if (file[i] == 0xff && file[i + 1] == 0xc0) file[i + 5] = file[i + 7] = 0xf0;  // height and width of the frame
    write_bytes(path, file);
    REQUIRE(contains(refusal(), "61460 x 61450 pixels"));
  }
  SECTION("a file that is far too long") {
    write_png(path, 10, 20, noise(600));
    std::filesystem::resize_file(path, std::uintmax_t{1} << 36);
    REQUIRE(contains(refusal(), "68719476736 bytes"));
  }
}

TEST_CASE("image options that make no sense are refused", "[data][image]") {
  const temporary_directory folder;
  write_png(folder / "image", 1, 1, {1, 2, 3});
  const auto refusal = [&](const data::image_options& options) {
    return message_of<option_error>([&] { static_cast<void>(data::read_image(folder / "image", options)); });
  };
  for (const int channels : {-1, 0, 2, 5}) REQUIRE(contains(refusal({.channels = channels}), "channels"));
  REQUIRE(contains(refusal({.size = {{0, 5}}}), "0 x 5"));
  REQUIRE(contains(refusal({.size = {{5, -1}}}), "size"));
  REQUIRE(contains(refusal({.max_pixels = 0}), "max_pixels"));
  REQUIRE(contains(refusal({.max_pixels = std::numeric_limits<std::int64_t>::max()}), "max_pixels"));
}

}  // namespace data_image_test
