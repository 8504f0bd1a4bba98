// A training without LibTorch in which every element of the state counts the updates, so that a mixture of two
// iterations shows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "rondo/checkpoint/encoder.hpp"
#include "rondo/checkpoint/image.hpp"
#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/verify.hpp"
#include "rondo/writing/staging.hpp"

namespace rondo::testing {

class counting_arrays {
 public:
  /// `count` arrays of zeros.
  counting_arrays(std::size_t count, std::size_t elements) : arrays_(count, std::vector<std::int32_t>(elements)) {}

  /// Adds 1 to every element, in place.
  void update() {
    ++iteration_;
    for (auto& array : arrays_)
      for (auto& element : array) ++element;
  }
  void update_to(std::int64_t iteration) {
    while (iteration_ < iteration) update();
  }
  [[nodiscard]] std::int64_t iteration() const noexcept { return iteration_; }

  [[nodiscard]] checkpoint::tree tree() const {
    checkpoint::tree::dict tensors;
    for (std::size_t i = 0; i < arrays_.size(); ++i) {
      const auto key = std::to_string(i);
      const auto size = static_cast<std::int64_t>(arrays_[i].size());
      tensors.insert_or_assign("a" + key, checkpoint::tensor_descriptor{
                                              checkpoint::scalar_type::int32, key, size, 0, {size}, {1}, false, false});
    }
    return checkpoint::tree::dict{{"arrays", std::move(tensors)}};
  }
  /// The live arrays.
  [[nodiscard]] std::vector<checkpoint::storage> storages() const {
    std::vector<checkpoint::storage> all;
    for (std::size_t i = 0; i < arrays_.size(); ++i) all.push_back({std::to_string(i), bytes_of(i)});
    return all;
  }
  [[nodiscard]] checkpoint::snapshot_info info() const {
    checkpoint::snapshot_info about;
    about.iteration = iteration_;
    about.made_by = "snapshot";
    return about;
  }
  /// The file of this moment. Its arrays are the live ones.
  [[nodiscard]] checkpoint::encoder file() const { return {tree(), storages(), info()}; }

  /// How much staging memory `file` needs.
  [[nodiscard]] static std::uint64_t memory_for(const checkpoint::encoder& file) {
    return writing::file_image::memory_for(file.size(), file.checksum_count());
  }

  /// Everything of the file but the arrays.
  [[nodiscard]] static writing::file_image frame(const checkpoint::encoder& file,
                                                 std::shared_ptr<writing::staging_slot> slot) {
    writing::file_image image(std::move(slot), file.size(), file.checksum_count());
    file.write_frame(image.bytes());
    std::ranges::copy(file.checksum_spots(), image.spots().begin());
    return image;
  }

  /// The arrays, as they are now. Any thread, while nobody updates.
  void copy_to(const writing::file_image& image, const checkpoint::encoder& file) const {
    for (std::size_t i = 0; i < arrays_.size(); ++i)
      std::memcpy(image.bytes().data() + file.storage_offset(i), arrays_[i].data(), bytes_of(i).size());
  }

 private:
  [[nodiscard]] std::span<const std::byte> bytes_of(std::size_t i) const {
    return std::as_bytes(std::span(arrays_[i]));
  }

  std::vector<std::vector<std::int32_t>> arrays_;
  std::int64_t iteration_ = 0;
};

/// The one number that all elements in the file are, and the iteration that the file claims to be; -1 when they differ.
/// Throws when the file is damaged.
inline std::int64_t the_count_in(const checkpoint::reader& file) {
  checkpoint::verify(file);
  const auto expected = file.info().value().info.iteration;
  for (const auto& [name, value] : file.state().get<checkpoint::tree::dict>("arrays")) {
    const auto bytes = file.storage(value.as<checkpoint::tensor_descriptor>());
    const std::vector<std::int32_t> elements(bytes.size() / sizeof(std::int32_t), static_cast<std::int32_t>(expected));
    if (std::memcmp(bytes.data(), elements.data(), bytes.size()) != 0) return -1;
  }
  return expected;
}

}  // namespace rondo::testing
