#include "rondo/checkpoint/image.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "rondo/checkpoint/crc32.hpp"
#include "rondo/error.hpp"

namespace rondo::checkpoint {

namespace {

constexpr std::uint64_t chunk_size = std::uint64_t{8} << 20;

// Keeps how far the image is finished, and gives whole chunks of that away.
class sealer {
 public:
  sealer(std::span<std::byte> image, const byte_sink& sink) : image_(image), sink_(sink) {}

  void seal(const checksum_spot& spot) {
    check(spot);
    finished_to(spot.begin);
    const auto end = spot.begin + spot.size;
    std::uint32_t checksum = 0;
    while (finished_ < end) {
      const auto next = std::min(end, given_ + chunk_size);
      checksum = crc32(part(finished_, next), checksum);
      finished_to(next);
    }
    put_number(spot.descriptor, checksum);
    put_number(spot.directory, checksum);
    if (spot.manifest != 0) put_digits(spot.manifest, checksum);
  }

  void finish() {
    finished_to(image_.size());
    if (given_ != finished_) sink_(part(given_, finished_));
  }

 private:
  [[nodiscard]] std::span<std::byte> part(std::uint64_t begin, std::uint64_t end) const {
    return image_.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
  }

  void finished_to(std::uint64_t end) {
    finished_ = end;
    for (; finished_ - given_ >= chunk_size; given_ += chunk_size) sink_(part(given_, given_ + chunk_size));
  }

  // The spots may come from another process, so nothing in them is taken for granted.
  void check(const checksum_spot& spot) const {
    const auto size = static_cast<std::uint64_t>(image_.size());
    const auto fits = [&](std::uint64_t place, std::uint64_t from, std::uint64_t width) {
      return place >= from && place <= size && size - place >= width;
    };
    const bool sound = fits(spot.begin, finished_, 0) && fits(spot.begin, finished_, spot.size) &&
                       fits(spot.descriptor, spot.begin + spot.size, number_width) &&
                       fits(spot.directory, spot.begin + spot.size, number_width) &&
                       (spot.manifest == 0 || fits(spot.manifest, spot.begin + spot.size, digits_width));
    if (!sound)
      throw format_error("file image", std::min(spot.begin, size),
                         fmt::format("a part of {} bytes or a place of its checksum lies outside the image of {} bytes "
                                     "or before what has been written",
                                     spot.size, size));
  }

  void put_number(std::uint64_t place, std::uint32_t checksum) {
    for (std::uint64_t i = 0; i < number_width; ++i)
      image_[static_cast<std::size_t>(place + i)] = static_cast<std::byte>(checksum >> (8 * i) & 0xff);
  }

  void put_digits(std::uint64_t place, std::uint32_t checksum) {
    constexpr std::string_view digits = "0123456789abcdef";
    for (std::uint64_t i = 0; i < digits_width; ++i)
      image_[static_cast<std::size_t>(place + i)] =
          static_cast<std::byte>(digits[checksum >> (4 * (digits_width - 1 - i)) & 0xf]);
  }

  static constexpr std::uint64_t number_width = 4;
  static constexpr std::uint64_t digits_width = 8;

  std::span<std::byte> image_;
  const byte_sink& sink_;
  std::uint64_t finished_ = 0;
  std::uint64_t given_ = 0;
};

}  // namespace

void seal(std::span<std::byte> image, std::span<const checksum_spot> spots, const byte_sink& sink) {
  sealer work(image, sink);
  for (const auto& spot : spots) work.seal(spot);
  work.finish();
}

}  // namespace rondo::checkpoint
