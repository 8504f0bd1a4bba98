#pragma once

#include <cstdint>
#include <exception>
#include <string>

#include "rondo/error.hpp"

namespace rondo::data {

/// What making one element of a pipeline threw. `what()` names the element and tells what the cause says; the cause
/// itself is nested, so that `std::rethrow_if_nested` throws it, too.
class sample_error : public error, public std::nested_exception {
 public:
  /// To be made while an exception is being handled: that is the cause.
  sample_error(std::int64_t epoch, std::int64_t index);

  /// As given to `set_epoch`; 0 before.
  [[nodiscard]] std::int64_t epoch() const noexcept { return epoch_; }
  /// The place of the element within the epoch, counted from 0, at the stage that made it.
  [[nodiscard]] std::int64_t index() const noexcept { return index_; }
  /// What was thrown. Never null.
  [[nodiscard]] std::exception_ptr cause() const noexcept { return nested_ptr(); }

 private:
  std::int64_t epoch_;
  std::int64_t index_;
};

namespace detail {

/// What an exception says about itself, without LibTorch's stack trace.
[[nodiscard]] std::string text_of(const std::exception_ptr& exception);

/// To be called while an exception is being handled: throws it as a `sample_error`, but unchanged if it says that an
/// operation was cancelled.
[[noreturn]] void throw_sample_error(std::int64_t epoch, std::int64_t index);

}  // namespace detail

}  // namespace rondo::data
