#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "rondo/checkpoint/byte_sink.hpp"

namespace rondo::checkpoint {

/// Gives small pieces to a sink together and large ones as they are. `flush` must be called at the end. Not safe for
/// use by several threads at once.
class joining_sink {
 public:
  /// The sink must live as long as this object.
  explicit joining_sink(const byte_sink& sink) : sink_(sink) { joined_.reserve(joined_size); }

  /// Adds bytes. What the sink throws passes through.
  void write(std::span<const std::byte> bytes) {
    if (bytes.size() > joined_size / 4) {
      flush();
      return sink_(bytes);
    }
    if (joined_.size() + bytes.size() > joined_size) flush();
    joined_.insert(joined_.end(), bytes.begin(), bytes.end());
  }

  void flush() {
    if (joined_.empty()) return;
    sink_(joined_);
    joined_.clear();
  }

 private:
  static constexpr std::size_t joined_size = 256 * 1024;

  const byte_sink& sink_;
  std::vector<std::byte> joined_;
};

}  // namespace rondo::checkpoint
