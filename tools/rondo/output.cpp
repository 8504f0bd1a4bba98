#include "output.hpp"

#include <fmt/format.h>

#include <csignal>

#include "outcome.hpp"
#include "progress.hpp"
#include "rondo/writing/atomic_file.hpp"
#include "text.hpp"

namespace rondo::tool {

namespace {

volatile std::sig_atomic_t signal_seen = 0;

/// While it lives, signals that would end the program are only noted.
class deferred_signals {
 public:
  deferred_signals() {
    struct sigaction note {};
    note.sa_handler = [](int number) { signal_seen = number; };
    ::sigaction(SIGINT, &note, &interrupt_);
    ::sigaction(SIGTERM, &note, &terminate_);
  }
  deferred_signals(const deferred_signals&) = delete;
  deferred_signals& operator=(const deferred_signals&) = delete;
  ~deferred_signals() {
    ::sigaction(SIGINT, &interrupt_, nullptr);
    ::sigaction(SIGTERM, &terminate_, nullptr);
    if (signal_seen != 0) std::raise(signal_seen);
  }

 private:
  struct sigaction interrupt_ {};
  struct sigaction terminate_ {};
};

}  // namespace

void require_free(const std::filesystem::path& target, bool force) {
  std::error_code ignored;
  if (!force && std::filesystem::exists(std::filesystem::symlink_status(target, ignored)))
    throw unusable_error(fmt::format("'{}' exists already; --force replaces it", target.string()));
}

void write_file(const std::filesystem::path& target, std::uint64_t size, const producer& produce) {
  const deferred_signals guard;
  const auto files = writing::posix_file_system();
  progress shown("writing " + printable(target.string()), size);
  writing::write_atomically(*files, target, size, [&](const writing::append_function& append) {
    produce([&](std::span<const std::byte> bytes) {
      if (signal_seen != 0) throw unusable_error(fmt::format("interrupted; '{}' is not written", target.string()));
      append(bytes);
      shown.advance(bytes.size());
    });
  });
}

}  // namespace rondo::tool
