#pragma once

#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <vector>

namespace rondo::testing {

/// As much of a terminal as there is to look at: lines that scroll, and the few control sequences that Rondo uses. What
/// it does not know it marks with "?".
class screen {
 public:
  screen(int columns, int rows) : columns_(columns), rows_(rows), lines_(1) {}

  void write(std::string_view text) {
    for (std::size_t i = 0; i < text.size(); ++i) {
      if (text[i] == '\x1b')
        i = sequence(text, i);
      else
        put(text[i]);
    }
  }

  /// Everything, with what has scrolled away; no spaces at the ends of lines, no empty lines at the end.
  [[nodiscard]] std::vector<std::string> all() const {
    std::vector<std::string> result;
    for (const auto& line : lines_) {
      std::string text;
      for (const auto& cell : line) text += cell;
      text.erase(text.find_last_not_of(' ') + 1);
      result.push_back(std::move(text));
    }
    while (!result.empty() && result.back().empty()) result.pop_back();
    return result;
  }
  /// From which of the lines of `all` on they are to be seen.
  [[nodiscard]] std::size_t top() const { return top_; }
  [[nodiscard]] std::size_t cursor_row() const { return y_; }
  [[nodiscard]] std::size_t cursor_column() const { return x_; }
  /// Whether all that was to be seen has been erased at once, of which some terminals keep a copy in the scrollback.
  [[nodiscard]] bool erased_whole() const { return erased_whole_; }
  [[nodiscard]] bool cursor_hidden() const { return hidden_; }

 private:
  std::size_t sequence(std::string_view text, std::size_t i) {
    std::size_t end = i + 2;
    while (end < text.size() && (text[end] < '@' || text[end] > '~')) ++end;
    const std::string argument(text.substr(i + 2, end - i - 2));
    const auto number = static_cast<std::size_t>(std::max(1, std::atoi(argument.c_str())));
    const char kind = end < text.size() ? text[end] : '?';
    if (kind == 'J')
      erase_below();
    else if (kind == 'K')
      lines_[y_].resize(std::min(x_, lines_[y_].size()));
    else if (kind == 'A')
      y_ -= std::min(number, y_ - top_);
    else if (kind == 'l' && argument == "?25")
      hidden_ = true;
    else if (kind != 'm')
      put('?');
    return end;
  }

  void erase_below() {
    if (x_ == 0 && y_ == top_ && !lines_[y_].empty()) erased_whole_ = true;
    lines_[y_].resize(std::min(x_, lines_[y_].size()));
    lines_.resize(y_ + 1);
  }

  void put(char c) {
    if (c == '\n') return next_line();
    if (c == '\r') {
      x_ = 0;
      return;
    }
    auto* line = &lines_[y_];
    if ((static_cast<unsigned char>(c) & 0xc0) == 0x80) {
      if (x_ > 0) (*line)[x_ - 1] += c;
      return;
    }
    if (x_ == static_cast<std::size_t>(columns_)) {
      next_line();
      x_ = 0;
      line = &lines_[y_];
    }
    if (line->size() <= x_) line->resize(x_ + 1, " ");
    (*line)[x_++] = c;
  }

  void next_line() {
    if (++y_ == lines_.size()) lines_.emplace_back();
    top_ = std::max(top_, y_ + 1 < static_cast<std::size_t>(rows_) ? 0 : y_ + 1 - static_cast<std::size_t>(rows_));
  }

  int columns_;
  int rows_;
  std::vector<std::vector<std::string>> lines_;
  std::size_t x_ = 0;
  std::size_t y_ = 0;
  std::size_t top_ = 0;
  bool hidden_ = false;
  bool erased_whole_ = false;
};

/// While it lives, stdout and stderr of the process are a terminal of its own.
class pseudo_terminal {
 public:
  pseudo_terminal(int columns, int rows) : screen_(columns, rows) {
    master_ = ::posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (master_ < 0 || ::grantpt(master_) != 0 || ::unlockpt(master_) != 0)
      throw std::system_error(errno, std::generic_category(), "posix_openpt");
    const int slave = ::open(::ptsname(master_), O_RDWR | O_NOCTTY | O_CLOEXEC);
    resize(columns, rows);
    std::fflush(stdout);
    std::fflush(stderr);
    for (int i = 0; i < 2; ++i) {
      before_[static_cast<std::size_t>(i)] = ::dup(i + 1);
      ::dup2(slave, i + 1);
    }
    ::close(slave);
    if (const char* kind = ::getenv("TERM")) kind_ = kind;
    ::setenv("TERM", "xterm", 1);
    reader_ = std::thread([this] {
      std::array<char, 4096> buffer;
      for (ssize_t got = 0; (got = ::read(master_, buffer.data(), buffer.size())) > 0;)
        raw_.append(buffer.data(), static_cast<std::size_t>(got));
    });
  }
  pseudo_terminal(const pseudo_terminal&) = delete;
  pseudo_terminal& operator=(const pseudo_terminal&) = delete;
  ~pseudo_terminal() {
    if (reader_.joinable()) static_cast<void>(close());
    ::close(master_);
  }

  void resize(int columns, int rows) const {
    winsize size = {};
    size.ws_col = static_cast<unsigned short>(columns);
    size.ws_row = static_cast<unsigned short>(rows);
    ::ioctl(master_, TIOCSWINSZ, &size);
  }

  /// Gives the process its streams back, and returns what is on the terminal.
  const screen& close() {
    std::fflush(stdout);
    std::fflush(stderr);
    for (int i = 0; i < 2; ++i) {
      ::dup2(before_[static_cast<std::size_t>(i)], i + 1);
      ::close(before_[static_cast<std::size_t>(i)]);
    }
    reader_.join();
    kind_.empty() ? ::unsetenv("TERM") : ::setenv("TERM", kind_.c_str(), 1);
    screen_.write(raw_);
    return screen_;
  }
  /// Every byte. After `close`.
  [[nodiscard]] const std::string& raw() const { return raw_; }

 private:
  screen screen_;
  int master_ = -1;
  std::array<int, 2> before_ = {-1, -1};
  std::string kind_;
  std::string raw_;
  std::thread reader_;
};

}  // namespace rondo::testing
