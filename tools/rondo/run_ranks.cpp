// rondo run: the ranks of a training on one machine.

#include <fcntl.h>
#include <fmt/format.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "commands.hpp"
#include "rondo/error.hpp"
#include "text.hpp"

namespace rondo::tool {

namespace {

using clock = std::chrono::steady_clock;

constexpr std::array forwarded{SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2};
constexpr int status_not_found = 127;
constexpr int status_not_executable = 126;
// What a rank has left in a pipe is read for so long after its end, although processes that it has left behind hold the
// pipe open.
constexpr auto leftovers = std::chrono::milliseconds(200);

struct launch_options {
  int ranks = 0;
  int port = 0;
  double grace = 30.0;
  bool plain = false;
  std::vector<std::string> command;
};

[[noreturn]] void fail(const char* what) { throw std::system_error(errno, std::generic_category(), what); }

/// Closes itself.
class descriptor {
 public:
  descriptor() = default;
  explicit descriptor(int value) : value_(value) {}
  descriptor(descriptor&& other) noexcept : value_(std::exchange(other.value_, -1)) {}
  descriptor& operator=(descriptor&& other) noexcept {
    std::swap(value_, other.value_);
    return *this;
  }
  ~descriptor() { close(); }

  void close() {
    if (value_ >= 0) ::close(std::exchange(value_, -1));
  }
  [[nodiscard]] int get() const { return value_; }
  [[nodiscard]] bool is_open() const { return value_ >= 0; }

 private:
  int value_ = -1;
};

std::pair<descriptor, descriptor> make_pipe() {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) fail("cannot make a pipe");
  return {descriptor(ends[0]), descriptor(ends[1])};
}

void write_all(int to, std::string_view text) {
  while (!text.empty()) {
    const auto written = ::write(to, text.data(), text.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0 && errno == EAGAIN) {
      pollfd ready{to, POLLOUT, 0};
      ::poll(&ready, 1, -1);
      continue;
    }
    if (written < 0) fail("cannot write the ranks' output");
    text.remove_prefix(static_cast<std::size_t>(written));
  }
}

/// One of a rank's two streams, line by line.
class stream {
 public:
  stream(descriptor from, int to, std::string prefix) : from_(std::move(from)), to_(to), prefix_(std::move(prefix)) {
    ::fcntl(from_.get(), F_SETFL, O_NONBLOCK);
  }

  [[nodiscard]] int get() const { return from_.get(); }
  [[nodiscard]] bool is_open() const { return from_.is_open(); }

  /// Passes on what is there. False if there was nothing.
  bool pass_on() {
    std::array<char, 65536> buffer;
    const auto count = ::read(from_.get(), buffer.data(), buffer.size());
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (count <= 0) {
      finish();
      return false;
    }
    take({buffer.data(), static_cast<std::size_t>(count)});
    return true;
  }

  /// A last line that has no end gets one.
  void finish() {
    if (!rest_.empty()) write_all(to_, prefix_ + rest_ + "\n");
    rest_.clear();
    from_.close();
  }

 private:
  void take(std::string_view text) {
    if (prefix_.empty()) return write_all(to_, text);
    std::string lines;
    for (auto end = text.find('\n'); end != std::string_view::npos; end = text.find('\n')) {
      lines.append(prefix_).append(rest_).append(text.substr(0, end + 1));
      rest_.clear();
      text.remove_prefix(end + 1);
    }
    rest_ += text;
    write_all(to_, lines);
  }

  descriptor from_;
  int to_;
  std::string prefix_;
  std::string rest_;
};

/// The variables that torchrun sets, for one rank.
void set_variables(const launch_options& options, int rank) {
  const auto set = [](const char* name, const std::string& value) { ::setenv(name, value.c_str(), 1); };
  for (const char* const other : {"TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_RUN_ID"})
    ::unsetenv(other);
  set("RANK", std::to_string(rank));
  set("LOCAL_RANK", std::to_string(rank));
  set("WORLD_SIZE", std::to_string(options.ranks));
  set("LOCAL_WORLD_SIZE", std::to_string(options.ranks));
  set("MASTER_ADDR", "127.0.0.1");
  set("MASTER_PORT", std::to_string(options.port));
  const auto cores = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  ::setenv("OMP_NUM_THREADS", std::to_string(std::max(1, cores / options.ranks)).c_str(), 0);
}

/// How a process has ended.
struct ending {
  int status = 0;  // as a shell gives it
  bool by_signal = false;
};

struct rank_process {
  int rank = 0;
  pid_t process = 0;  // and number of its process group
  std::optional<ending> end;
  std::optional<clock::time_point> ended;
  std::vector<stream> streams;
};

std::string outcome_of(const rank_process& one) {
  if (one.end->by_signal)
    return fmt::format("was ended by signal {} ({})", one.end->status - 128, ::strsignal(one.end->status - 128));
  return fmt::format("ended with status {}", one.end->status);
}

int free_port() {
  const descriptor socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  auto* const any = reinterpret_cast<sockaddr*>(&address);
  if (!socket.is_open() || ::bind(socket.get(), any, size) != 0 || ::getsockname(socket.get(), any, &size) != 0)
    fail("cannot find a free port");
  return ntohs(address.sin_port);
}

/// A process that outlives this one if that is killed, and then ends the process groups that it has been told of.
class guard {
 public:
  guard() {
    auto [told, telling] = make_pipe();
    process_ = ::fork();
    if (process_ < 0) fail("cannot start a process");
    if (process_ == 0) stand(told.get(), telling.get());
    telling_ = std::move(telling);
  }
  guard(const guard&) = delete;
  guard& operator=(const guard&) = delete;
  ~guard() {
    telling_.close();
    while (::waitpid(process_, nullptr, 0) < 0 && errno == EINTR) continue;
  }

  void watch(pid_t group) { tell(group); }
  void forget(pid_t group) { tell(-group); }

 private:
  void tell(pid_t group) {
    const auto ignored = ::write(telling_.get(), &group, sizeof(group));
    static_cast<void>(ignored);
  }

  [[noreturn]] static void stand(int told, int telling) {
    ::setsid();
    ::close(telling);
    ::prctl(PR_SET_NAME, "rondo-guard");
    // Whoever reads this program's output must not wait for this one.
    const int nothing = ::open("/dev/null", O_RDWR);
    for (const int number : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) ::dup2(nothing, number);
    std::vector<pid_t> groups;
    pid_t group = 0;
    for (;;) {
      const auto count = ::read(told, &group, sizeof(group));
      if (count < 0 && errno == EINTR) continue;
      if (count != sizeof(group)) break;
      if (group > 0)
        groups.push_back(group);
      else
        std::erase(groups, -group);
    }
    for (const pid_t left : groups) ::kill(-left, SIGKILL);
    ::_exit(0);
  }

  pid_t process_ = 0;
  descriptor telling_;
};

class launcher {
 public:
  explicit launcher(launch_options options) : options_(std::move(options)) {
    if (options_.port == 0) options_.port = free_port();
  }

  /// The exit status of the first rank that fails, or 0.
  int run() {
    watch_signals();
    for (int rank = 0; rank < options_.ranks && !failure_; ++rank) start(rank);
    while (has_unfinished()) {
      wait_for_something();
      collect_ended();
      press_on();
    }
    return failure_.value_or(0);
  }

 private:
  void watch_signals() {
    sigset_t watched;
    sigemptyset(&watched);
    for (const int signal : forwarded) sigaddset(&watched, signal);
    sigaddset(&watched, SIGCHLD);
    if (::sigprocmask(SIG_BLOCK, &watched, &before_) != 0) fail("cannot watch signals");
    signals_ = descriptor(::signalfd(-1, &watched, SFD_CLOEXEC | SFD_NONBLOCK));
    if (!signals_.is_open()) fail("cannot watch signals");
  }

  void start(int rank) {
    auto [out, out_end] = make_pipe();
    auto [err, err_end] = make_pipe();
    auto [told, telling] = make_pipe();
    const auto parent = ::getpid();
    const auto process = ::fork();
    if (process < 0) fail("cannot start a process");
    if (process == 0) become_rank(rank, parent, out_end.get(), err_end.get(), telling.get());
    telling.close();
    int refusal = 0;
    const bool refused = ::read(told.get(), &refusal, sizeof(refusal)) == sizeof(refusal);
    guard_.watch(process);
    auto& one = ranks_.emplace_back();
    one.rank = rank;
    one.process = process;
    const auto prefix = options_.plain ? std::string() : fmt::format("[{}] ", rank);
    one.streams.emplace_back(std::move(out), STDOUT_FILENO, prefix);
    one.streams.emplace_back(std::move(err), STDERR_FILENO, prefix);
    if (!refused) return;
    complain(fmt::format("cannot run '{}': {}", options_.command.front(), std::generic_category().message(refusal)));
    failure_ = refusal == ENOENT ? status_not_found : status_not_executable;
    begin_end();
  }

  /// In the child. A process group of its own, so that a terminal's Ctrl-C reaches the ranks once: through this
  /// program.
  [[noreturn]] void become_rank(int rank, pid_t parent, int out, int err, int telling) {
    ::setpgid(0, 0);
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(1);
    ::dup2(out, STDOUT_FILENO);
    ::dup2(err, STDERR_FILENO);
    // Reading from the terminal would stop a process that is not in its foreground.
    if (::isatty(STDIN_FILENO) != 0) ::dup2(::open("/dev/null", O_RDONLY), STDIN_FILENO);
    ::sigprocmask(SIG_SETMASK, &before_, nullptr);
    ::signal(SIGPIPE, SIG_DFL);
    ::signal(SIGBUS, SIG_DFL);
    ::signal(SIGXFSZ, SIG_DFL);
    set_variables(options_, rank);
    std::vector<char*> arguments;
    for (auto& argument : options_.command) arguments.push_back(argument.data());
    arguments.push_back(nullptr);
    ::execvp(arguments[0], arguments.data());
    const int why = errno;
    const auto ignored = ::write(telling, &why, sizeof(why));
    static_cast<void>(ignored);
    ::_exit(status_not_found);
  }

  [[nodiscard]] bool has_unfinished() const {
    return std::ranges::any_of(
        ranks_, [](const rank_process& one) { return !one.end || std::ranges::any_of(one.streams, &stream::is_open); });
  }

  void wait_for_something() {
    std::vector<pollfd> watched{{signals_.get(), POLLIN, 0}};
    std::vector<stream*> streams{nullptr};
    for (auto& one : ranks_)
      for (auto& each : one.streams) {
        if (!each.is_open()) continue;
        watched.push_back({each.get(), POLLIN, 0});
        streams.push_back(&each);
      }
    if (::poll(watched.data(), watched.size(), patience()) < 0 && errno != EINTR) fail("cannot wait for the ranks");
    for (std::size_t i = 1; i < watched.size(); ++i)
      if (watched[i].revents != 0) streams[i]->pass_on();
    if (watched[0].revents != 0) take_signals();
  }

  /// Until something has to be done that nobody announces, in ms.
  [[nodiscard]] int patience() const {
    std::optional<clock::time_point> next = end_;
    for (const auto& one : ranks_)
      if (one.ended && std::ranges::any_of(one.streams, &stream::is_open))
        next = std::min(next.value_or(clock::time_point::max()), *one.ended + leftovers);
    if (!next) return -1;
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(*next - clock::now());
    return static_cast<int>(std::clamp<std::int64_t>(left.count(), 0, 60'000));
  }

  void take_signals() {
    signalfd_siginfo info{};
    while (::read(signals_.get(), &info, sizeof(info)) == sizeof(info))
      if (const auto signal = static_cast<int>(info.ssi_signo); signal != SIGCHLD) send(signal);
  }

  void send(int signal) {
    for (const auto& one : ranks_)
      if (!one.end) ::kill(-one.process, signal);
  }

  void collect_ended() {
    const rank_process* first = nullptr;
    for (auto& one : ranks_) {
      if (one.end || !collect(one) || one.end->status == 0) continue;
      // Of several at once, one that was killed is the cause, and others say that they miss it.
      if (first == nullptr || (one.end->by_signal && !first->end->by_signal)) first = &one;
    }
    if (first == nullptr || failure_) return;
    failure_ = first->end->status;
    complain(fmt::format("rank {} (process {}) {}", first->rank, first->process, outcome_of(*first)));
    begin_end();
  }

  /// False while it runs. What it has left behind in its process group ends with it, as long as its number is nobody
  /// else's.
  bool collect(rank_process& one) {
    siginfo_t info{};
    const auto number = static_cast<id_t>(one.process);
    if (::waitid(P_PID, number, &info, WEXITED | WNOHANG | WNOWAIT) != 0 || info.si_pid != one.process) return false;
    ::kill(-one.process, SIGKILL);
    guard_.forget(one.process);
    int status = 0;
    ::waitpid(one.process, &status, 0);
    one.end = WIFSIGNALED(status) ? ending{128 + WTERMSIG(status), true} : ending{WEXITSTATUS(status), false};
    one.ended = clock::now();
    return true;
  }

  /// The others find out by themselves that one is missing, and say so; whoever does not is ended.
  void begin_end() {
    if (!end_)
      end_ = clock::now() + std::chrono::duration_cast<clock::duration>(std::chrono::duration<double>(options_.grace));
  }

  void press_on() {
    const auto now = clock::now();
    for (auto& one : ranks_)
      if (one.ended && now >= *one.ended + leftovers)
        for (auto& each : one.streams) {
          while (each.is_open() && each.pass_on()) {
          }
          if (each.is_open()) each.finish();
        }
    if (!end_ || now < *end_) return;
    send(pressed_++ == 0 ? SIGTERM : SIGKILL);
    end_ = now + std::chrono::seconds(pressed_ == 1 ? 5 : 60);
  }

  launch_options options_;
  guard guard_;
  sigset_t before_{};
  descriptor signals_;
  std::vector<rank_process> ranks_;
  std::optional<int> failure_;
  std::optional<clock::time_point> end_;  // of patience with those who go on although one has failed
  int pressed_ = 0;
};

}  // namespace

action run_ranks_command(CLI::App& app) {
  const auto options = std::make_shared<launch_options>();
  auto* const command = app.add_subcommand("run", "starts the ranks of a training on this machine");
  command->add_option("-n,--ranks", options->ranks, "how many")->required()->check(CLI::Range(1, 4096));
  command->add_option("--master-port", options->port, "at which the ranks meet (default: a free one)")
      ->check(CLI::Range(1, 65535));
  command->add_option("--grace", options->grace, "seconds that the others get to end when one has failed")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  command->add_flag("--no-prefix", options->plain, "pass the output on as it is");
  command->prefix_command();  // from the program on, everything is the program's
  command->footer(
      "Then comes the program, and everything behind its name is its own: rondo run -n 4 ./train --epochs 3\n\n"
      "Exit status: 0 when all ranks end with 0, else that of the first that does not (128 + signal for one that a "
      "signal ends), 127 when there is no such program.");
  return [options, command] {
    options->command = command->remaining();
    if (options->command.empty()) throw unusable_error("run: no program was named: rondo run -n 4 ./program …");
    return static_cast<outcome>(launcher(*options).run());
  };
}

}  // namespace rondo::tool
