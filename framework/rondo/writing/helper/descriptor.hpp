#pragma once

#include <unistd.h>

#include <utility>

namespace rondo::writing::helper {

/// A file descriptor with an owner, or none.
class descriptor {
 public:
  descriptor() = default;
  explicit descriptor(int value) noexcept : value_(value) {}
  descriptor(descriptor&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  descriptor& operator=(descriptor&& other) noexcept {
    const descriptor old(std::exchange(value_, std::exchange(other.value_, -1)));
    return *this;
  }
  ~descriptor() {
    if (value_ >= 0) ::close(value_);
  }

  [[nodiscard]] int get() const noexcept { return value_; }
  [[nodiscard]] bool valid() const noexcept { return value_ >= 0; }

 private:
  int value_ = -1;
};

}  // namespace rondo::writing::helper
