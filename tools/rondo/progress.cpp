#include "progress.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <utility>

#include "text.hpp"

namespace rondo::tool {

namespace {

constexpr auto first_after = std::chrono::milliseconds(500);
constexpr auto again_after = std::chrono::milliseconds(100);

}  // namespace

progress::progress(std::string what, std::uint64_t total)
    : what_(std::move(what)), total_(total), next_(clock::now() + first_after), wanted_(::isatty(STDERR_FILENO) == 1) {}

progress::~progress() {
  if (drawn_) std::fputs("\r\x1b[K", stderr);
}

void progress::advance(std::uint64_t bytes) {
  done_ += bytes;
  if (wanted_ && clock::now() >= next_) draw();
}

void progress::draw() {
  next_ = clock::now() + again_after;
  drawn_ = true;
  const auto of = total_ == 0 ? std::string() : fmt::format(" of {}", human_size(total_));
  std::fputs(fmt::format("\r\x1b[K{}: {}{}", what_, human_size(done_), of).c_str(), stderr);
}

}  // namespace rondo::tool
