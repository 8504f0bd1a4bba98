#include "rondo/extensions/terminal_capture.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <mutex>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include "rondo/error.hpp"
#include "rondo/extensions/terminal.hpp"

namespace rondo::extensions {

namespace {

constexpr std::size_t longest_line = 65536;
constexpr std::array fatal_signals = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};

/// What a dying process needs, in a form that a signal handler may use.
struct borrowed_streams {
  std::atomic<bool> taken = false;
  int terminal = -1;
  int pipe = -1;
  std::array<int, 2> originals = {-1, -1};  ///< of stdout and stderr; -1: not taken
  std::array<struct sigaction, fatal_signals.size()> handlers = {};
};
borrowed_streams borrowed;  // NOLINT: a signal handler has nothing else

void write_all(int descriptor, const char* data, std::size_t size) {
  while (size > 0) {
    const auto written = ::write(descriptor, data, size);
    if (written < 0 && errno != EINTR && errno != EAGAIN) return;
    if (written <= 0) continue;
    data += written;
    size -= static_cast<std::size_t>(written);
  }
}

void give_back_streams() {
  for (int i = 0; i < 2; ++i)
    if (borrowed.originals[static_cast<std::size_t>(i)] >= 0)
      ::dup2(borrowed.originals[static_cast<std::size_t>(i)], i == 0 ? STDOUT_FILENO : STDERR_FILENO);
}

/// Only what a signal handler may do.
void rescue() {
  if (!borrowed.taken.exchange(false)) return;
  give_back_streams();
  write_all(borrowed.terminal, clear_below.data(), clear_below.size());
  std::array<char, 4096> buffer;
  for (;;) {
    const auto got = ::read(borrowed.pipe, buffer.data(), buffer.size());
    if (got <= 0) break;
    write_all(borrowed.terminal, buffer.data(), static_cast<std::size_t>(got));
  }
}

void die_well(int number) {
  const int before = errno;
  rescue();
  for (std::size_t i = 0; i < fatal_signals.size(); ++i)
    if (fatal_signals[i] == number) ::sigaction(number, &borrowed.handlers[i], nullptr);
  ::raise(number);
  errno = before;
}

void watch_for_death() {
  [[maybe_unused]] static const int registered = std::atexit(rescue);
  struct sigaction action = {};
  action.sa_handler = die_well;
  action.sa_flags = SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  for (std::size_t i = 0; i < fatal_signals.size(); ++i) ::sigaction(fatal_signals[i], &action, &borrowed.handlers[i]);
}

void stop_watching() {
  for (std::size_t i = 0; i < fatal_signals.size(); ++i) {
    struct sigaction present = {};
    ::sigaction(fatal_signals[i], nullptr, &present);
    if (present.sa_handler == die_well) ::sigaction(fatal_signals[i], &borrowed.handlers[i], nullptr);
  }
}

void flush_streams() {
  std::cout.flush();
  std::cerr.flush();
  std::clog.flush();
  std::fflush(stdout);
  std::fflush(stderr);
}

bool same_terminal(int a, int b) {
  struct stat first = {}, second = {};
  return ::isatty(a) == 1 && ::isatty(b) == 1 && ::fstat(a, &first) == 0 && ::fstat(b, &second) == 0 &&
         first.st_rdev == second.st_rdev;
}

/// Without control characters and sequences that are not colours; what a carriage return overwrites is gone.
std::string harmless(std::string_view line) {
  if (const auto back = line.rfind('\r'); back != std::string_view::npos) line.remove_prefix(back + 1);
  std::string text;
  for (std::size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (c == '\x1b' && i + 1 < line.size() && line[i + 1] == '[') {
      auto end = i + 2;
      while (end < line.size() && (line[end] < '@' || line[end] > '~')) ++end;
      if (end < line.size() && line[end] == 'm') text += line.substr(i, end - i + 1);
      i = end;
    } else if (c == '\t' || static_cast<unsigned char>(c) >= ' ') {
      text += c;
    }
  }
  if (text.find('\x1b') != std::string::npos) text += "\x1b[0m";
  return text;
}

/// How many columns it takes: colours take none, other characters one.
std::size_t columns_of(std::string_view text) {
  std::size_t columns = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '\x1b')
      i = std::min(text.find('m', i), text.size() - 1);
    else if ((static_cast<unsigned char>(text[i]) & 0xc0) != 0x80)
      ++columns;
  }
  return columns;
}

int checked(int result, const char* operation) {
  if (result < 0) throw io_error(operation, "the terminal", {errno, std::generic_category()});
  return result;
}

}  // namespace

terminal_size size_of_terminal(int descriptor) {
  winsize found = {};
  if (::ioctl(descriptor, TIOCGWINSZ, &found) != 0 || found.ws_col == 0 || found.ws_row == 0) return {};
  return {found.ws_col, found.ws_row};
}

class terminal_capture::painter {
 public:
  explicit painter(int descriptor) {
    terminal_ = checked(::fcntl(descriptor, F_DUPFD_CLOEXEC, 3), "duplicate");
    wake_ = checked(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), "make an event for");
    std::array<int, 2> ends = {-1, -1};
    checked(::pipe2(ends.data(), O_CLOEXEC), "make a pipe for");
    from_ = ends[0];
    ::fcntl(from_, F_SETFL, O_NONBLOCK);
    take_streams(ends[1]);
    ::close(ends[1]);
    start();
  }

  ~painter() {
    for (const int d : {terminal_, wake_, from_, borrowed.originals[0], borrowed.originals[1]})
      if (d >= 0) ::close(d);
    borrowed.originals = {-1, -1};
  }

  [[nodiscard]] int terminal() const noexcept { return terminal_; }

  void show(std::vector<std::string> picture) {
    {
      const std::lock_guard lock(mutex_);
      picture_ = std::move(picture);
      changed_ = true;
    }
    wake();
  }

  void end(std::vector<std::string> picture) {
    flush_streams();
    give_back_streams();
    borrowed.taken = false;
    stop_watching();
    {
      const std::lock_guard lock(mutex_);
      picture_ = std::move(picture);
      ending_ = true;
    }
    wake();
    thread_.join();
  }

 private:
  void take_streams(int to) {
    flush_streams();
    borrowed.terminal = terminal_;
    borrowed.pipe = from_;
    for (const int stream : {STDOUT_FILENO, STDERR_FILENO})
      if (same_terminal(stream, terminal_))
        borrowed.originals[stream == STDOUT_FILENO ? 0 : 1] = checked(::fcntl(stream, F_DUPFD_CLOEXEC, 3), "duplicate");
    borrowed.taken = true;
    watch_for_death();
    // Lines as on a terminal, although it is a pipe now.
    if (borrowed.originals[0] >= 0) {
      std::setvbuf(stdout, nullptr, _IOLBF, BUFSIZ);
      ::dup2(to, STDOUT_FILENO);
    }
    if (borrowed.originals[1] >= 0) ::dup2(to, STDERR_FILENO);
  }

  void start() {
    // Signals are for the training thread.
    sigset_t all, before;
    sigfillset(&all);
    for (const int number : fatal_signals) sigdelset(&all, number);
    ::pthread_sigmask(SIG_SETMASK, &all, &before);
    thread_ = std::thread([this] { work(); });
    ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void wake() const {
    const std::uint64_t one = 1;
    [[maybe_unused]] const auto written = ::write(wake_, &one, sizeof one);
  }

  void work() {
    for (bool ending = false; !ending;) {
      std::array<pollfd, 2> both = {pollfd{from_, POLLIN, 0}, pollfd{wake_, POLLIN, 0}};
      // A pipe that nobody has open any more would be ready all the time.
      ::poll(both.data(), both.size(), -1);
      std::uint64_t count = 0;
      [[maybe_unused]] const auto got = ::read(wake_, &count, sizeof count);
      std::vector<std::string> picture;
      bool changed = false;
      {
        const std::lock_guard lock(mutex_);
        picture = picture_;
        changed = std::exchange(changed_, false);
        ending = ending_;
      }
      auto lines = read_lines(ending);
      if (changed || ending || !lines.empty()) draw(lines, picture, ending);
    }
  }

  /// The whole lines that have been printed since, and at the end the rest.
  std::string read_lines(bool all) {
    std::array<char, 16384> buffer;
    for (ssize_t got = 0; (got = ::read(from_, buffer.data(), buffer.size())) > 0;)
      rest_.append(buffer.data(), static_cast<std::size_t>(got));
    std::string lines;
    std::size_t begin = 0;
    for (auto end = rest_.find('\n'); end != std::string::npos; end = rest_.find('\n', begin)) {
      lines += finished(harmless(std::string_view(rest_).substr(begin, end - begin)));
      begin = end + 1;
    }
    rest_.erase(0, begin);
    if (!rest_.empty() && (all || rest_.size() > longest_line)) lines += finished(harmless(std::exchange(rest_, "")));
    return lines;
  }

  /// Erases what of the picture is behind the line. One that fills its rows has left nothing, and would lose its last
  /// character.
  [[nodiscard]] std::string finished(std::string line) const {
    const auto columns = columns_of(line);
    const bool full = columns > 0 && columns % static_cast<std::size_t>(size_of_terminal(terminal_).columns) == 0;
    return std::move(line) + (full ? "\r\n" : "\x1b[K\r\n");
  }

  void draw(const std::string& lines, const std::vector<std::string>& picture, bool last) const {
    // Over the old picture, not after erasing it: some terminals keep a copy of an erased screen.
    std::string text = lines;
    for (const auto& line : picture) text += line + "\x1b[K\r\n";
    text += clear_below;
    if (!last && !picture.empty()) text += fmt::format("\x1b[{}A", picture.size());
    write_all(terminal_, text.data(), text.size());
  }

  int terminal_ = -1;
  int wake_ = -1;
  int from_ = -1;
  std::thread thread_;
  std::string rest_;  // of the painter's thread
  std::mutex mutex_;
  std::vector<std::string> picture_;
  bool changed_ = false;
  bool ending_ = false;
};

terminal_capture::terminal_capture(int descriptor) {
  if (in_use()) throw error("the terminal has a picture of somebody else already");
  self_ = std::make_unique<painter>(descriptor);
}

terminal_capture::~terminal_capture() {
  if (self_) end({});
}

bool terminal_capture::in_use() noexcept { return borrowed.taken; }
terminal_size terminal_capture::size() const { return size_of_terminal(self_->terminal()); }
void terminal_capture::show(std::vector<std::string> picture) { self_->show(std::move(picture)); }
void terminal_capture::end(std::vector<std::string> picture) {
  self_->end(std::move(picture));
  self_.reset();
}

}  // namespace rondo::extensions
