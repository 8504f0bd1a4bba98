#include "rondo/checkpoint/image.hpp"

#include <algorithm>

#include "rondo/checkpoint/verify.hpp"
#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/checkpoint.hpp"
#include "support/messages.hpp"

namespace checkpoint_image_test {

using namespace rondo;
using namespace rondo::checkpoint;
using namespace rondo::testing;

namespace {

constexpr std::size_t chunk = std::size_t{8} << 20;

struct storages_of_sizes {
  std::vector<byte_vector> bytes;
  tree::list tensors;
  std::vector<storage> storages;

  explicit storages_of_sizes(const std::vector<std::size_t>& sizes) {
    for (const auto size : sizes) bytes.push_back(noise(size, static_cast<unsigned>(bytes.size())));
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      tensors.push_back(vector_of(scalar_type::uint8, std::to_string(i), static_cast<std::int64_t>(sizes[i])));
      storages.push_back({std::to_string(i), bytes[i]});
    }
  }
  [[nodiscard]] encoder file() const {
    return encoder(tree::dict{{"tensors", tensors}, {"lr", 0.1}}, storages, {7, 1, false, {{"rondo", "1"}}, 2, "snap"});
  }
  void copy_to(std::span<std::byte> image, const encoder& file) const {
    for (std::size_t i = 0; i < bytes.size(); ++i)
      std::ranges::copy(bytes[i], image.begin() + static_cast<std::ptrdiff_t>(file.storage_offset(i)));
  }
};

/// What reaches the sink, and where in the image it lies.
struct sealed {
  byte_vector bytes;
  std::vector<std::size_t> offsets;
  std::vector<std::size_t> sizes;

  sealed(std::span<std::byte> image, std::span<const checksum_spot> spots) {
    seal(image, spots, [&](std::span<const std::byte> piece) {
      offsets.push_back(static_cast<std::size_t>(piece.data() - image.data()));
      sizes.push_back(piece.size());
      bytes.insert(bytes.end(), piece.begin(), piece.end());
    });
  }
};

}  // namespace

TEST_CASE("a sealed image is what the encoder writes, byte for byte", "[checkpoint][image]") {
  const std::vector<std::vector<std::size_t>> cases = {
      {},
      {0},
      {1, 63, 64, 65, 4095, 4096, 4097, 0, 100'000},
      {chunk, chunk - 1, 3, chunk + 1},
      {3 * chunk + 5},
      std::vector<std::size_t>(2000, 40),
  };
  for (const auto& sizes : cases) {
    const storages_of_sizes data(sizes);
    const auto file = data.file();
    const auto expected = write_to_memory(file);
    // Memory that has been used: nothing of what was there may be left.
    auto image = noise(file.size(), 99);
    data.copy_to(image, file);
    file.write_frame(image);
    const sealed result(image, file.checksum_spots());
    CHECK(result.bytes == expected);
    CHECK(image == expected);
    CHECK(file.checksum_spots().size() == file.checksum_count());
    CHECK(file.storage_count() == sizes.size());
    // Once more over the same memory, with the frame written before the storages.
    std::ranges::fill(image, std::byte{0xff});
    file.write_frame(image);
    data.copy_to(image, file);
    CHECK(sealed(image, file.checksum_spots()).bytes == expected);
    CHECK(problems(reader::from_span(image, "image")).empty());
  }
}

TEST_CASE("sealing may be repeated", "[checkpoint][image]") {
  const storages_of_sizes data({5000, 10});
  const auto file = data.file();
  byte_vector image(file.size());
  file.write_frame(image);
  data.copy_to(image, file);
  const auto first = sealed(image, file.checksum_spots()).bytes;
  CHECK(sealed(image, file.checksum_spots()).bytes == first);
}

TEST_CASE("a frame leaves storages alone", "[checkpoint][image]") {
  const storages_of_sizes data({5000, 10, 0});
  const auto file = data.file();
  auto image = noise(file.size(), 3);
  const auto before = image;
  file.write_frame(image);
  for (std::size_t i = 0; i < 3; ++i) {
    const auto at = static_cast<std::ptrdiff_t>(file.storage_offset(i));
    const auto size = static_cast<std::ptrdiff_t>(data.bytes[i].size());
    CHECK(std::equal(before.begin() + at, before.begin() + at + size, image.begin() + at));
  }
}

TEST_CASE("an image leaves in chunks that a disk likes, never changed afterwards", "[checkpoint][image]") {
  const storages_of_sizes data({chunk, 10, 2 * chunk + 17, 5000, chunk / 2, chunk / 2, 1});
  const auto file = data.file();
  byte_vector image(file.size());
  file.write_frame(image);
  data.copy_to(image, file);
  const sealed result(image, file.checksum_spots());
  REQUIRE(result.sizes.size() > 3);
  std::size_t at = 0;
  for (std::size_t i = 0; i < result.sizes.size(); ++i) {
    CHECK(result.offsets[i] == at);
    CHECK(at % chunk == 0);
    if (i + 1 < result.sizes.size()) CHECK(result.sizes[i] % chunk == 0);
    at += result.sizes[i];
  }
  CHECK(at == image.size());
  // The sink took copies at once; a later change would show.
  CHECK(result.bytes == image);
}

TEST_CASE("an error of the sink ends the sealing and reaches the caller", "[checkpoint][image]") {
  struct full {};
  const storages_of_sizes data({2 * chunk});
  const auto file = data.file();
  byte_vector image(file.size());
  file.write_frame(image);
  int calls = 0;
  const auto refuse = [&](std::span<const std::byte>) {
    ++calls;
    throw full();
  };
  CHECK_THROWS_AS(seal(image, file.checksum_spots(), refuse), full);
  CHECK(calls == 1);
}

TEST_CASE("spots outside the image are refused", "[checkpoint][image]") {
  const storages_of_sizes data({100, 200});
  const auto file = data.file();
  byte_vector image(file.size());
  file.write_frame(image);
  const auto refusal = [&](auto change) {
    auto spots = file.checksum_spots();
    change(spots);
    return refusal_of<format_error>([&] { sealed(image, spots); });
  };
  constexpr auto none = ~std::uint64_t{0};
  const auto size = static_cast<std::uint64_t>(image.size());
  CHECK(refusal([](auto&) {}).empty());
  for (const auto wrong : {none, none - 3, none / 2, size, size - 3}) {
    CAPTURE(wrong);
    CHECK(contains(refusal([&](auto& s) { s[1].begin = wrong; }), "outside the image"));
    CHECK(contains(refusal([&](auto& s) { s[1].size = wrong; }), "outside the image"));
    CHECK(contains(refusal([&](auto& s) { s[1].descriptor = wrong; }), "outside the image"));
    CHECK(contains(refusal([&](auto& s) { s[1].directory = wrong; }), "outside the image"));
    CHECK(contains(refusal([&](auto& s) { s[1].manifest = wrong; }), "outside the image"));
  }
  CHECK_FALSE(refusal([](auto& s) { std::swap(s[1], s[2]); }).empty());
  CHECK_FALSE(refusal([](auto& s) { s[2].directory = 0; }).empty());
  CHECK_FALSE(refusal([](auto& s) { s[2].manifest = 1; }).empty());
}

TEST_CASE("an image of nothing needs no sink", "[checkpoint][image]") { CHECK(sealed({}, {}).sizes.empty()); }

}  // namespace checkpoint_image_test
