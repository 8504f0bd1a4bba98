#pragma once

#include <cstddef>
#include <span>
#include <utility>

namespace rondo::writing {

/// Memory straight from the operating system: page-aligned, zeroed, and backed when the constructor returns, so that no
/// page fault is left for those who use it; in huge pages where there are any.
class memory_block {
 public:
  /// How many bytes a block for `size` bytes really takes: up to the next page, or 2 MiB when it is larger than that.
  [[nodiscard]] static std::size_t rounded(std::size_t size) noexcept;

  /// No memory.
  memory_block() = default;
  /// `size` bytes, rounded up. With `shared`, they are a file as well that other processes can map and nobody can make
  /// larger or smaller. Throws memory_shortage (a std::bad_alloc) when there is less memory, io_error when there can be
  /// no such file.
  explicit memory_block(std::size_t size, bool shared = false);
  memory_block(memory_block&& other) noexcept
      : bytes_(std::exchange(other.bytes_, {})), descriptor_(std::exchange(other.descriptor_, -1)) {}
  memory_block& operator=(memory_block&& other) noexcept {
    const memory_block old(std::move(*this));
    bytes_ = std::exchange(other.bytes_, {});
    descriptor_ = std::exchange(other.descriptor_, -1);
    return *this;
  }
  ~memory_block();

  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return bytes_; }
  /// -1 when it is not shared.
  [[nodiscard]] int descriptor() const noexcept { return descriptor_; }

 private:
  void make_file();
  void map();
  void back();
  void release() noexcept;

  std::span<std::byte> bytes_;
  int descriptor_ = -1;
};

}  // namespace rondo::writing
