#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "rondo/checkpoint/image.hpp"
#include "rondo/writing/atomic_file.hpp"

namespace rondo::writing::helper {

class job_message;

/// The image of a file and its spots, in the memory of the trainer.
class mapped_image {
 public:
  /// Throws io_error when `file` is not what the message says.
  mapped_image(const job_message& job, int file);
  mapped_image(const mapped_image&) = delete;
  mapped_image& operator=(const mapped_image&) = delete;
  ~mapped_image();

  [[nodiscard]] std::span<std::byte> bytes() const noexcept { return {begin_, static_cast<std::size_t>(size_)}; }
  [[nodiscard]] std::span<const checkpoint::checksum_spot> spots() const noexcept;

 private:
  std::uint64_t size_;
  std::uint64_t spots_;
  std::uint64_t spots_offset_;
  std::size_t length_ = 0;
  std::byte* begin_ = nullptr;
};

/// Closes all descriptors behind the socket.
void close_what_was_not_given();

/// `format`: see job_message.
using write_function =
    std::function<write_receipt(const path& target, const mapped_image& image, const std::string& format)>;

/// What a helper process does (see writers::process): receives images of files and has `write` bring them to disk, one
/// after the other, until its socket ends; also when the trainer is no longer there. The status to exit with.
[[nodiscard]] int serve(const write_function& write);

}  // namespace rondo::writing::helper
