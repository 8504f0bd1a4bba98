#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <filesystem>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/writing/savefun.hpp"

/// What a trainer and its helper process say to each other, one message per packet of a SOCK_SEQPACKET socket. Both are
/// built from the same sources; the version is there because a program on disk can be replaced while it runs.
namespace rondo::writing::helper {

inline constexpr std::uint32_t protocol_version = 2;
/// Where the helper finds its socket.
inline constexpr int socket_number = 3;
inline constexpr std::size_t longest_message = std::size_t{64} << 10U;
inline constexpr std::size_t longest_text = std::size_t{12} << 10U;

/// One file to write. Beside it travel descriptors: the image; where helpers take turns also the writing end of a
/// pipe, which the helper holds until this file is done, however that ends; and, unless it is the first, the reading
/// end of the pipe of the file before, at whose end it may begin.
class job_message {
 public:
  static constexpr std::size_t most_descriptors = 3;

  std::uint64_t number = 0;
  /// Of the file, in bytes.
  std::uint64_t size = 0;
  /// How many checksum spots there are, and where in the image the first one is.
  std::uint64_t spots = 0;
  std::uint64_t spots_offset = 0;
  /// Absolute.
  std::string target;
  /// A file to remove before the reply; may be empty.
  std::string announcement;
  /// The description of the format to write; empty for Rondo's own, and where the helper runs a registered function.
  std::string format;
};

/// How a job ended.
class reply_message {
 public:
  enum class kind : std::uint32_t { receipt, io_error, format_error, state_error, savefun_error, error };

  std::uint64_t number = 0;
  kind what = kind::receipt;
  // receipt
  std::uint64_t bytes = 0;
  double write_seconds = 0;
  double sync_seconds = 0;
  double commit_seconds = 0;
  // errors: operation and path, or where; and the rest of the message
  std::int32_t code = 0;
  std::uint64_t offset = 0;
  std::string subject;
  std::string path;
  std::string problem;
};

namespace detail {

class packer {
 public:
  template <class T>
  void number(T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    const auto* first = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), first, first + sizeof value);
  }

  void text(std::string_view value) {
    const auto cut = value.substr(0, longest_text);
    number(static_cast<std::uint32_t>(cut.size()));
    const auto bytes = std::as_bytes(std::span(cut));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }

  [[nodiscard]] std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

class unpacker {
 public:
  explicit unpacker(std::span<const std::byte> bytes) : rest_(bytes) {}

  template <class T>
  [[nodiscard]] T number() {
    static_assert(std::is_trivially_copyable_v<T>);
    T value{};
    const auto from = next(sizeof value);
    if (!from.empty()) std::memcpy(&value, from.data(), sizeof value);
    return value;
  }

  [[nodiscard]] std::string text() {
    const auto size = number<std::uint32_t>();
    const auto from = next(size);
    return {reinterpret_cast<const char*>(from.data()), from.size()};
  }

  /// True when everything was there and nothing is left.
  [[nodiscard]] bool exact() const noexcept { return sound_ && rest_.empty(); }

 private:
  std::span<const std::byte> next(std::size_t size) {
    sound_ = sound_ && size <= rest_.size();
    if (!sound_) return {};
    const auto taken = rest_.first(size);
    rest_ = rest_.subspan(size);
    return taken;
  }

  std::span<const std::byte> rest_;
  bool sound_ = true;
};

// What `whole` says after `beginning`: errors do not keep their parts.
inline std::string rest_of(const char* whole, const std::string& beginning) {
  const std::string_view text(whole);
  return text.substr(0, beginning.size()) == beginning ? std::string(text.substr(beginning.size())) : std::string(text);
}

}  // namespace detail

[[nodiscard]] inline std::vector<std::byte> pack(const job_message& job) {
  detail::packer out;
  out.number(protocol_version);
  out.number(job.number);
  out.number(job.size);
  out.number(job.spots);
  out.number(job.spots_offset);
  out.text(job.target);
  out.text(job.announcement);
  out.text(job.format);
  return out.take();
}

[[nodiscard]] inline std::vector<std::byte> pack(const reply_message& reply) {
  detail::packer out;
  out.number(protocol_version);
  out.number(reply.number);
  out.number(reply.what);
  out.number(reply.bytes);
  out.number(reply.write_seconds);
  out.number(reply.sync_seconds);
  out.number(reply.commit_seconds);
  out.number(reply.code);
  out.number(reply.offset);
  out.text(reply.subject);
  out.text(reply.path);
  out.text(reply.problem);
  return out.take();
}

/// Nothing when the bytes are not such a message of this version.
[[nodiscard]] inline std::optional<job_message> unpack_job(std::span<const std::byte> bytes) {
  detail::unpacker in(bytes);
  if (in.number<std::uint32_t>() != protocol_version) return std::nullopt;
  job_message job;
  job.number = in.number<std::uint64_t>();
  job.size = in.number<std::uint64_t>();
  job.spots = in.number<std::uint64_t>();
  job.spots_offset = in.number<std::uint64_t>();
  job.target = in.text();
  job.announcement = in.text();
  job.format = in.text();
  if (!in.exact()) return std::nullopt;
  return job;
}

/// The same for a reply.
[[nodiscard]] inline std::optional<reply_message> unpack_reply(std::span<const std::byte> bytes) {
  detail::unpacker in(bytes);
  if (in.number<std::uint32_t>() != protocol_version) return std::nullopt;
  reply_message reply;
  reply.number = in.number<std::uint64_t>();
  const auto what = in.number<std::uint32_t>();
  if (what > static_cast<std::uint32_t>(reply_message::kind::error)) return std::nullopt;
  reply.what = static_cast<reply_message::kind>(what);
  reply.bytes = in.number<std::uint64_t>();
  reply.write_seconds = in.number<double>();
  reply.sync_seconds = in.number<double>();
  reply.commit_seconds = in.number<double>();
  reply.code = in.number<std::int32_t>();
  reply.offset = in.number<std::uint64_t>();
  reply.subject = in.text();
  reply.path = in.text();
  reply.problem = in.text();
  if (!in.exact()) return std::nullopt;
  return reply;
}

/// Puts an error that `target` was not written for into a reply, so that `failure_in` makes the same one of it.
inline void put_failure(reply_message& reply, const std::filesystem::path& target, const std::exception_ptr& failure) {
  try {
    std::rethrow_exception(failure);
  } catch (const io_error& e) {
    reply.what = reply_message::kind::io_error;
    reply.subject = e.operation();
    reply.path = e.path().string();
    reply.code = e.code().value();
    reply.problem = detail::rest_of(e.what(), std::string(io_error(e.operation(), e.path(), e.code()).what()) + "; ");
    if (reply.problem == e.what()) reply.problem.clear();
  } catch (const format_error& e) {
    reply.what = reply_message::kind::format_error;
    reply.subject = e.where();
    reply.offset = e.offset();
    reply.problem = detail::rest_of(e.what(), format_error(e.where(), e.offset(), "").what());
  } catch (const state_error& e) {
    reply.what = reply_message::kind::state_error;
    reply.subject = e.key();
    reply.problem = detail::rest_of(e.what(), state_error(e.key(), "").what());
  } catch (const savefun_error& e) {
    reply.what = reply_message::kind::savefun_error;
    reply.problem = e.what();
  } catch (const std::bad_alloc&) {
    reply.what = reply_message::kind::io_error;
    reply.subject = "write";
    reply.path = target.string();
    reply.code = static_cast<std::int32_t>(std::errc::not_enough_memory);
  } catch (const std::exception& e) {
    reply.what = reply_message::kind::error;
    reply.problem = e.what();
  } catch (...) {
    reply.what = reply_message::kind::error;
    reply.problem = "something that is not an exception was thrown";
  }
}

/// The error in a reply that is no receipt.
[[nodiscard]] inline std::exception_ptr failure_in(const reply_message& reply) {
  switch (reply.what) {
    case reply_message::kind::io_error:
      return std::make_exception_ptr(
          io_error(reply.subject, reply.path, std::error_code(reply.code, std::generic_category()), reply.problem));
    case reply_message::kind::format_error:
      return std::make_exception_ptr(format_error(reply.subject, reply.offset, reply.problem));
    case reply_message::kind::state_error:
      return std::make_exception_ptr(state_error(reply.subject, reply.problem));
    case reply_message::kind::savefun_error:
      return std::make_exception_ptr(savefun_error(reply.problem));
    default:
      return std::make_exception_ptr(error("helper process: " + reply.problem));
  }
}

}  // namespace rondo::writing::helper
