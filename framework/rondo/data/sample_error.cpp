#include "rondo/data/sample_error.hpp"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <asio/error.hpp>
#include <system_error>

namespace rondo::data {

sample_error::sample_error(std::int64_t epoch, std::int64_t index)
    : error(fmt::format("making element {} of epoch {} failed: {}", index, epoch,
                        detail::text_of(std::current_exception()))),
      epoch_(epoch),
      index_(index) {}

namespace detail {

std::string text_of(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const c10::Error& e) {
    return e.what_without_backtrace();
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "something was thrown that is no std::exception";
  }
}

void throw_sample_error(std::int64_t epoch, std::int64_t index) {
  try {
    throw;
  } catch (const std::system_error& e) {
    if (e.code() == asio::error::operation_aborted) throw;
    throw sample_error(epoch, index);
  } catch (...) {
    throw sample_error(epoch, index);
  }
}

}  // namespace detail

}  // namespace rondo::data
