// What the tests of durable writing share: recognisable content, reading files, children that may die.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/writing/atomic_file.hpp"
#include "support/catch.hpp"

namespace rondo::testing {

using bytes = std::vector<std::byte>;

/// `size` bytes that depend on the seed at every position, none of them zero.
inline bytes pattern(std::size_t size, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  bytes content(size);
  for (auto& byte : content) byte = static_cast<std::byte>(1 + random() % 255);
  return content;
}

inline bytes read_file(const std::filesystem::path& file) {
  std::ifstream stream(file, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  return {begin, begin + text.size()};
}

inline void write_text(const std::filesystem::path& file, const std::string& text) { std::ofstream(file) << text; }

inline std::vector<std::string> names_in(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : writing::posix_file_system()->list(directory)) names.push_back(entry.name);
  return names;
}

/// Produces `content` in pieces of at most `piece` bytes. `content` must outlive the result.
inline writing::producer in_pieces(const bytes& content, std::size_t piece) {
  return [&content, piece](const writing::append_function& append) {
    for (std::size_t at = 0; at < content.size(); at += piece) {
      append(std::span(content).subspan(at, std::min(piece, content.size() - at)));
    }
  };
}

inline writing::write_receipt save(writing::file_system& files, const std::filesystem::path& target,
                                   const bytes& content) {
  return writing::write_atomically(files, target, content.size(), in_pieces(content, 4096));
}

/// The io_error that `action` throws.
template <class Action>
io_error failure_of(Action action) {
  try {
    action();
  } catch (const io_error& error) {
    return error;
  }
  FAIL("no io_error was thrown");
  throw std::logic_error("unreachable");
}

inline bool mentions(const std::exception& error, const std::string& text) {
  return std::string(error.what()).find(text) != std::string::npos;
}

/// Runs `action` in a child process, which ends with the number that it returns (100 when it throws).
template <class Action>
pid_t start_child(Action action) {
  const auto child = ::fork();
  if (child != 0) return child;
  int result = 100;
  try {
    result = action();
  } catch (...) {
  }
  ::_exit(result);
}

/// How the child ended: its exit status, or minus the signal that killed it.
inline int wait_for(pid_t child) {
  int status = 0;
  if (::waitpid(child, &status, 0) != child) return 101;
  return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

/// A process id that nobody has any more.
inline pid_t dead_process() {
  const auto child = start_child([] { return 0; });
  wait_for(child);
  return child;
}

}  // namespace rondo::testing
