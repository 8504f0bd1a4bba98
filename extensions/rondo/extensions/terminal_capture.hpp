#pragma once

#include <memory>
#include <string>
#include <vector>

namespace rondo::extensions {

/// Columns and rows of the terminal that `descriptor` is; 80 × 24 if it does not say.
struct terminal_size {
  int columns = 80;
  int rows = 24;
};
[[nodiscard]] terminal_size size_of_terminal(int descriptor);

/// Keeps a picture at the lower end of a terminal while everybody prints what they like.
///
/// From `begin` to `end`, the standard streams of the process that go to this terminal go through a pipe, and a thread
/// writes what comes out of it above the picture, line by line, where it scrolls away as usual. So the terminal has one
/// writer only. Escape sequences other than colours are taken out of these lines. The picture leaves the cursor at its
/// own first column and hides nothing, so that a process that is killed leaves a usable terminal. When the process dies
/// of a fatal signal or exits, the streams are given back first, and what was in the pipe is printed.
///
/// One at a time per process. Used by one thread.
class terminal_capture {
 public:
  /// Begins. `descriptor` is STDOUT_FILENO or STDERR_FILENO, a terminal. Throws `io_error`.
  explicit terminal_capture(int descriptor);
  terminal_capture(const terminal_capture&) = delete;
  terminal_capture& operator=(const terminal_capture&) = delete;
  /// Ends, with the picture removed.
  ~terminal_capture();

  /// Whether there is one in this process.
  [[nodiscard]] static bool in_use() noexcept;
  [[nodiscard]] terminal_size size() const;
  /// Replaces the picture. Its lines must be shorter than the terminal is wide, and fewer than it is high. Does not
  /// wait for the terminal.
  void show(std::vector<std::string> picture);
  /// Gives the streams back, and leaves `picture` behind with the cursor under it. Waits for the terminal.
  void end(std::vector<std::string> picture);

 private:
  class painter;
  std::unique_ptr<painter> self_;
};

}  // namespace rondo::extensions
