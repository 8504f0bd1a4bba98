#include "rondo/distributed/roll_call.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <asio/connect.hpp>
#include <asio/executor_work_guard.hpp>
#include <asio/io_context.hpp>
#include <asio/ip/tcp.hpp>
#include <asio/post.hpp>
#include <asio/read.hpp>
#include <asio/steady_timer.hpp>
#include <asio/this_coro.hpp>
#include <asio/write.hpp>
#include <atomic>
#include <charconv>
#include <cstring>
#include <deque>
#include <future>
#include <limits>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "rondo/async/detail/homecoming.hpp"
#include "rondo/async/detail/quiet_thread.hpp"
#include "rondo/async/park.hpp"

namespace rondo::distributed {

namespace {

using tcp = asio::ip::tcp;
using clock = std::chrono::steady_clock;
using milliseconds = std::chrono::milliseconds;

// A larger message comes from somebody who is no rank, and before it has said who it is, a much smaller one.
constexpr std::uint64_t largest_message = std::uint64_t{1} << 32;
constexpr std::uint64_t largest_hello = 4096;
// What a rank waits longer than rank 0, whose word comes in time if it comes at all.
constexpr milliseconds longest_margin{500};
constexpr milliseconds connect_interval{50};
constexpr std::int64_t most_ranks = 1 << 20;
constexpr milliseconds flush_time{2000};
// How long ranks have to answer when something has failed; rank 0 itself a little longer.
constexpr milliseconds answer_time{600};
constexpr milliseconds answer_time_of_first{900};

// ---- messages ------------------------------------------------------------------------------------------------------

enum class message_kind : std::uint8_t { hello, part, answer, failure, goodbye, trouble, question, here };

/// Numbers are little-endian, texts carry their length.
class message_writer {
 public:
  explicit message_writer(message_kind kind) { byte(static_cast<std::uint8_t>(kind)); }
  message_writer& byte(std::uint8_t value) {
    bytes_.push_back(static_cast<char>(value));
    return *this;
  }
  message_writer& number(std::int64_t value) {
    auto rest = static_cast<std::uint64_t>(value);
    for (int i = 0; i < 8; ++i, rest >>= 8) bytes_.push_back(static_cast<char>(rest & 0xff));
    return *this;
  }
  message_writer& text(const std::string& value) {
    number(static_cast<std::int64_t>(value.size()));
    bytes_ += value;
    return *this;
  }
  [[nodiscard]] std::string take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

/// Throws `error` for what no rank has written.
class message_reader {
 public:
  explicit message_reader(const std::string& bytes) : bytes_(bytes) {}
  std::uint8_t byte() { return static_cast<std::uint8_t>(*take(1)); }
  std::int64_t number() {
    const char* from = take(8);
    std::uint64_t value = 0;
    for (int i = 7; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(from[i]);
    return static_cast<std::int64_t>(value);
  }
  std::string text() {
    const auto size = static_cast<std::uint64_t>(number());
    return {take(size), static_cast<std::size_t>(size)};
  }

 private:
  const char* take(std::uint64_t count) {
    if (count > bytes_.size() - at_) throw error("a message ends too early");
    const char* from = bytes_.data() + at_;
    at_ += static_cast<std::size_t>(count);
    return from;
  }
  const std::string& bytes_;
  std::size_t at_ = 0;
};

/// A meeting is known by its channel and its number there.
using meeting_id = std::pair<std::string, std::int64_t>;

struct part_message {
  meeting_id id;
  int circle = 0;
  meeting_kind kind = meeting_kind::barrier;
  int root = 0;
  milliseconds timeout{};
  std::string mine;
};

std::string encode(const part_message& part) {
  return message_writer(message_kind::part)
      .text(part.id.first)
      .number(part.id.second)
      .number(part.circle)
      .byte(static_cast<std::uint8_t>(part.kind))
      .number(part.root)
      .number(part.timeout.count())
      .text(part.mine)
      .take();
}

part_message decode_part(message_reader& from) {
  part_message part;
  part.id.first = from.text();
  part.id.second = from.number();
  part.circle = static_cast<int>(from.number());
  part.kind = static_cast<meeting_kind>(from.byte());
  part.root = static_cast<int>(from.number());
  part.timeout = milliseconds(from.number());
  part.mine = from.text();
  return part;
}

struct answer_message {
  meeting_id id;
  std::vector<std::string> all;
};

/// Equal texts of ranks side by side are sent once: most often all ranks have the same to say, and every one of them
/// gets what all have said.
std::string encode(const answer_message& answer) {
  message_writer to(message_kind::answer);
  to.text(answer.id.first).number(answer.id.second).number(static_cast<std::int64_t>(answer.all.size()));
  for (auto run = answer.all.begin(); run != answer.all.end();) {
    const auto end = std::find_if(run, answer.all.end(), [&](const std::string& one) { return one != *run; });
    to.number(end - run).text(*run);
    run = end;
  }
  return to.take();
}

answer_message decode_answer(message_reader& from) {
  answer_message answer;
  answer.id.first = from.text();
  answer.id.second = from.number();
  for (auto left = from.number(); left > 0;) {
    const auto count = from.number();
    if (count < 1 || count > left || left > most_ranks) throw error("an answer says that it has impossibly many parts");
    const auto text = from.text();
    answer.all.insert(answer.all.end(), static_cast<std::size_t>(count), text);
    left -= count;
  }
  return answer;
}

struct failure_message {
  std::string what;
  std::vector<int> ranks;
};

std::string encode(const failure_message& failure) {
  message_writer to(message_kind::failure);
  to.text(failure.what).number(static_cast<std::int64_t>(failure.ranks.size()));
  for (const int rank : failure.ranks) to.number(rank);
  return to.take();
}

failure_message decode_failure(message_reader& from) {
  failure_message failure;
  failure.what = from.text();
  for (auto left = from.number(); left > 0; --left) failure.ranks.push_back(static_cast<int>(from.number()));
  return failure;
}

std::string name_of(meeting_kind kind) {
  static constexpr std::array<const char*, 7> names = {"barrier", "agree",        "broadcast", "all_gather",
                                                       "gather",  "announcement", "split"};
  const auto index = static_cast<std::size_t>(kind);
  return index < names.size() ? names[index] : "something unknown";
}

std::string name_of(const std::vector<int>& ranks) {
  return ranks.size() == 1 ? fmt::format("rank {}", ranks[0]) : fmt::format("ranks {}", fmt::join(ranks, ", "));
}

std::string place_of(const std::string& channel) { return channel.empty() ? "" : fmt::format(" of '{}'", channel); }

std::string in_seconds(clock::duration time) {
  return fmt::format("{:.3g} s", std::chrono::duration<double>(time).count());
}

std::string name_of_this_machine() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "a machine without a name";
}

std::int64_t number_in(const std::string& text) {
  std::int64_t number = 0;
  const auto [end, failed] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (failed != std::errc() || end != text.data() + text.size()) throw error("a number was expected");
  return number;
}

/// When others were heard of last. While this process itself was stopped nobody could be heard, so that time does not
/// count.
class silence_watch {
 public:
  silence_watch(asio::io_context& events, milliseconds limit, std::size_t others)
      : timer_(events), limit_(limit), heard_(others, clock::now()) {
    if (limit.count() <= 0)
      throw option_error("heartbeat_timeout", fmt::format("{} ms", limit.count()), "a positive time");
  }

  void heard(std::size_t other) { heard_[other] = clock::now(); }
  [[nodiscard]] bool heard_since(std::size_t other, clock::time_point then) const { return heard_[other] >= then; }

  /// Calls `ask()` again and again, and `silent(other)` for whoever has not been heard within the limit.
  void start(std::function<void()> ask, std::function<void(std::size_t)> silent) {
    ask_ = std::move(ask);
    silent_ = std::move(silent);
    wait();
  }
  void stop() {
    stopped_ = true;
    timer_.cancel();
  }

 private:
  void wait() {
    if (stopped_) return;
    const auto interval = std::max(limit_ / 4, milliseconds(1));
    timer_.expires_after(interval);
    timer_.async_wait([this, interval, begun = clock::now()](const asio::error_code& cancelled) {
      if (cancelled) return;
      const auto now = clock::now();
      if (now - begun > 2 * interval) std::ranges::fill(heard_, now);
      for (std::size_t i = 0; i < heard_.size(); ++i)
        if (now - heard_[i] > limit_) silent_(i);
      ask_();
      wait();
    });
  }

  asio::steady_timer timer_;
  milliseconds limit_;
  std::vector<clock::time_point> heard_;
  std::function<void()> ask_;
  std::function<void(std::size_t)> silent_;
  bool stopped_ = false;
};

// ---- a connection --------------------------------------------------------------------------------------------------

/// Messages over a socket. Belongs to the thread of its event loop. Silent after `close`.
class connection : public std::enable_shared_from_this<connection> {
 public:
  using receiver = std::function<void(const std::string& message)>;
  using ending = std::function<void(const std::string& why)>;

  explicit connection(tcp::socket socket) : socket_(std::move(socket)) {
    asio::error_code ignored;
    socket_.set_option(tcp::no_delay(true), ignored);
    socket_.set_option(asio::socket_base::keep_alive(true), ignored);
  }

  void start(receiver receive, ending end) {
    receive_ = std::move(receive);
    end_ = std::move(end);
    read();
  }
  /// From somebody who has said who it is.
  void listen_to(receiver receive, ending end) {
    receive_ = std::move(receive);
    end_ = std::move(end);
    largest_ = largest_message;
  }

  void send(std::string message) {
    if (closed_ || broken_) return;
    std::string framed = message_size(message.size());
    framed += message;
    const bool idle = outgoing_.empty();
    outgoing_.push_back(std::move(framed));
    if (idle) write();
  }

  /// When everything that was sent is on its way, or the connection has ended.
  void when_flushed(std::function<void()> then) {
    if (outgoing_.empty() || closed_)
      then();
    else
      flushed_.push_back(std::move(then));
  }

  void close() {
    if (std::exchange(closed_, true)) return;
    receive_ = nullptr;
    end_ = nullptr;
    asio::error_code ignored;
    socket_.shutdown(tcp::socket::shutdown_both, ignored);
    socket_.close(ignored);
    tell_flushed();
  }

 private:
  static std::string message_size(std::size_t size) {
    std::string bytes(8, '\0');
    for (std::size_t i = 0; i < 8; ++i) bytes[i] = static_cast<char>(size >> (8 * i) & 0xff);
    return bytes;
  }

  void read() {
    asio::async_read(socket_, asio::buffer(head_),
                     [self = shared_from_this()](const asio::error_code& failed, std::size_t) {
                       if (failed) return self->ended(failed.message());
                       std::uint64_t size = 0;
                       for (std::size_t i = 8; i-- > 0;) size = size << 8 | static_cast<unsigned char>(self->head_[i]);
                       if (size > self->largest_)
                         return self->ended(fmt::format("it announced a message of {} bytes", size));
                       self->body_.resize(static_cast<std::size_t>(size));
                       self->read_body();
                     });
  }

  void read_body() {
    asio::async_read(socket_, asio::buffer(body_),
                     [self = shared_from_this()](const asio::error_code& failed, std::size_t) {
                       if (failed) return self->ended(failed.message());
                       if (self->closed_) return;
                       try {
                         const auto receive = self->receive_;
                         receive(self->body_);
                       } catch (const std::exception& e) {
                         return self->ended(e.what());
                       }
                       if (!self->closed_) self->read();
                     });
  }

  void write() {
    asio::async_write(socket_, asio::buffer(outgoing_.front()),
                      [self = shared_from_this()](const asio::error_code& failed, std::size_t) {
                        if (self->closed_) return;
                        if (failed) return self->stop_writing();
                        self->outgoing_.pop_front();
                        if (!self->outgoing_.empty()) return self->write();
                        self->tell_flushed();
                      });
  }

  /// The other side is gone. What it has said before, such as why, is still there to be read, and then the end.
  void stop_writing() {
    broken_ = true;
    outgoing_.clear();
    tell_flushed();
  }

  void ended(const std::string& why) {
    if (closed_) return;
    const auto end = std::move(end_);
    close();
    if (end) end(why);
  }

  void tell_flushed() {
    for (auto& then : std::exchange(flushed_, {})) then();
  }

  tcp::socket socket_;
  std::array<char, 8> head_{};
  std::string body_;
  std::deque<std::string> outgoing_;
  std::vector<std::function<void()>> flushed_;
  receiver receive_;
  ending end_;
  std::uint64_t largest_ = largest_hello;
  bool broken_ = false;
  bool closed_ = false;
};

// ---- rank 0's side -------------------------------------------------------------------------------------------------

/// Ranks that meet.
class circle {
 public:
  /// In ascending order.
  explicit circle(std::vector<int> ranks) : ranks_(std::move(ranks)) {}

  [[nodiscard]] static std::shared_ptr<const circle> of_all(std::size_t world_size) {
    std::vector<int> all(world_size);
    std::iota(all.begin(), all.end(), 0);
    return std::make_shared<const circle>(std::move(all));
  }

  [[nodiscard]] const std::vector<int>& ranks() const { return ranks_; }
  [[nodiscard]] std::size_t size() const { return ranks_.size(); }
  /// The place of `rank` among them, if it is one of them.
  [[nodiscard]] std::optional<std::size_t> place_of(int rank) const {
    const auto found = std::ranges::lower_bound(ranks_, rank);
    if (found == ranks_.end() || *found != rank) return std::nullopt;
    return static_cast<std::size_t>(found - ranks_.begin());
  }

 private:
  std::vector<int> ranks_;
};

/// Decides how every meeting ends. Belongs to the thread of its event loop.
class hub {
 public:
  /// Rank 0 itself has no connection: what it is told goes to `to_self`.
  hub(asio::io_context& events, int world_size, std::string token, milliseconds silence,
      std::function<void(const std::string&)> to_self, std::function<bool()> within_operation)
      : acceptor_(open_acceptor(events)),
        token_(std::move(token)),
        to_self_(std::move(to_self)),
        within_operation_(std::move(within_operation)),
        ranks_(static_cast<std::size_t>(world_size)),
        circles_{circle::of_all(ranks_.size())},
        watch_(events, silence, ranks_.size()),
        inquest_end_(events) {
    accept();
    watch_.start([this] { question_all(); }, [this, silence](std::size_t rank) { silent(rank, silence); });
  }

  [[nodiscard]] std::uint16_t port() const { return acceptor_.local_endpoint().port(); }

  void receive(int rank, const std::string& message) {
    watch_.heard(static_cast<std::size_t>(rank));
    message_reader from(message);
    switch (static_cast<message_kind>(from.byte())) {
      case message_kind::here:
        ranks_[static_cast<std::size_t>(rank)].within_operation = from.byte() != 0;
        return conclude_if_all_answer();
      case message_kind::trouble: {
        const auto of = circle_of(from.number());
        return trouble(rank, of, from.text());
      }
      case message_kind::part:
        return take_part(rank, decode_part(from));
      case message_kind::goodbye:
        return goodbye(rank, from.text());
      default:
        throw error("an unexpected message");
    }
  }

  /// Calls `then` when all other ranks have gone and everything has been told to them.
  void when_alone(std::function<void()> then) {
    alone_ = std::move(then);
    tell_if_alone();
  }

  void when_flushed(const std::function<void()>& then) {
    auto left = std::make_shared<std::size_t>(1);
    const auto one = [left, then] {
      if (--*left == 0) then();
    };
    for (auto& rank : ranks_) {
      if (!rank.line) continue;
      ++*left;
      rank.line->when_flushed(one);
    }
    one();
  }

  void close() {
    asio::error_code ignored;
    acceptor_.close(ignored);
    watch_.stop();
    inquest_end_.cancel();
    for (auto& rank : ranks_)
      if (rank.line) rank.line->close();
    meetings_.clear();
  }

 private:
  struct rank_state {
    std::shared_ptr<connection> line;
    std::string host;
    bool left = false;
    bool within_operation = false;  ///< on tensors, when it was asked last
  };

  /// Something has gone wrong, and all are asked whether they are there.
  struct inquest {
    std::shared_ptr<const circle> of;
    std::string why;
    clock::time_point asked;
    std::optional<meeting_id> missed;  ///< by `missing`; otherwise an operation on tensors has failed
    std::vector<int> missing;
  };

  struct open_meeting {
    open_meeting(const executor& events, const part_message& first, std::shared_ptr<const circle> who)
        : of(std::move(who)),
          kind(first.kind),
          root(first.root),
          announced(first.kind == meeting_kind::same ? first.mine : ""),
          parts(of->size()),
          deadline(events) {}

    /// Null: this rank has nothing to do with it.
    [[nodiscard]] const std::optional<std::string>* part_of(int rank) const {
      const auto place = of->place_of(rank);
      return place ? &parts[*place] : nullptr;
    }
    [[nodiscard]] bool has(int rank) const {
      const auto* const part = part_of(rank);
      return part != nullptr && part->has_value();
    }
    [[nodiscard]] bool misses(int rank) const {
      const auto* const part = part_of(rank);
      return part != nullptr && !part->has_value();
    }

    std::shared_ptr<const circle> of;
    meeting_kind kind;
    int root;
    std::string announced;
    clock::time_point begun = clock::now();
    std::vector<std::optional<std::string>> parts;  ///< of the circle's ranks
    std::size_t here = 0;
    clock::time_point due = clock::time_point::max();
    asio::steady_timer deadline;
  };

  /// For both versions of IP, where the machine has both.
  static tcp::acceptor open_acceptor(asio::io_context& events) {
    try {
      return {events, tcp::endpoint(tcp::v6(), 0)};
    } catch (const asio::system_error&) {
      return {events, tcp::endpoint(tcp::v4(), 0)};
    }
  }

  void accept() {
    acceptor_.async_accept([this](const asio::error_code& failed, tcp::socket socket) {
      if (failed == asio::error::operation_aborted || !acceptor_.is_open()) return;
      if (!failed) welcome(std::make_shared<connection>(std::move(socket)));
      accept();
    });
  }

  void welcome(const std::shared_ptr<connection>& line) {
    line->start([this, line = std::weak_ptr(line)](const std::string& message) { introduce(line.lock(), message); },
                [](const std::string&) {});
  }

  /// Whoever does not know the token is turned away without a word.
  void introduce(const std::shared_ptr<connection>& line, const std::string& message) {
    message_reader from(message);
    const bool hello = static_cast<message_kind>(from.byte()) == message_kind::hello && from.text() == token_;
    if (!hello) return line->close();
    const auto rank = from.number();
    const auto world_size = from.number();
    auto host = from.text();
    const auto expected = static_cast<std::int64_t>(ranks_.size());
    if (world_size != expected || rank <= 0 || rank >= expected)
      return turn_away(line,
                       fmt::format("rank {} on '{}' says that there are {} ranks, rank 0 that there are {}; "
                                   "WORLD_SIZE must be the same for all",
                                   rank, host, world_size, expected),
                       {static_cast<int>(rank)});
    auto& one = ranks_[static_cast<std::size_t>(rank)];
    if (one.line)
      return turn_away(line,
                       fmt::format("rank {} is there already, on '{}': a second process, on '{}', has the same "
                                   "RANK",
                                   rank, one.host, host),
                       {static_cast<int>(rank)});
    const auto number = static_cast<int>(rank);
    one.line = line;
    one.host = std::move(host);
    watch_.heard(static_cast<std::size_t>(rank));
    line->listen_to([this, number](const std::string& m) { receive(number, m); },
                    [this, number](const std::string& why) { lost(number, why); });
    if (failure_) line->send(encode(*failure_));
  }

  static void turn_away(const std::shared_ptr<connection>& line, std::string why, std::vector<int> ranks) {
    line->listen_to([](const std::string&) {}, [](const std::string&) {});
    line->send(encode(failure_message{std::move(why), std::move(ranks)}));
    line->when_flushed([line] { line->close(); });
  }

  void take_part(int rank, part_message part) {
    if (failure_) return;  // it knows, or is about to
    const auto who = circle_of(part.circle);
    const auto place = who->place_of(rank);
    if (!place) throw error("it comes to a meeting of other ranks");
    auto& open = meetings_.try_emplace(part.id, acceptor_.get_executor(), part, who).first->second;
    // Whoever has left may have been there before.
    auto gone = those_who_left();
    std::erase_if(gone, [&](int one) { return !open.misses(one); });
    if (!gone.empty())
      return fail({fmt::format("{} left before {}", name_of(gone), description_of(open, part.id)), gone});
    if (open.of != who || open.kind != part.kind || open.root != part.root ||
        (part.kind == meeting_kind::same && open.announced != part.mine)) {
      const open_meeting other(acceptor_.get_executor(), part, who);
      return fail({fmt::format("ranks do different things: rank {} calls {} where others call {}; all ranks must call "
                               "the same operations in the same order",
                               rank, description_of(other, part.id), description_of(open, part.id)),
                   {rank}});
    }
    auto& mine = open.parts[*place];
    if (mine) return;
    mine = std::move(part.mine);
    if (++open.here == open.parts.size()) return complete(part.id);
    const auto due = clock::now() + part.timeout - margin(part.timeout);
    if (due < open.due) set_deadline(open, part.id, due);
  }

  [[nodiscard]] const std::shared_ptr<const circle>& circle_of(std::int64_t number) const {
    if (number < 0 || static_cast<std::size_t>(number) >= circles_.size())
      throw error("it speaks of a group that nobody knows");
    return circles_[static_cast<std::size_t>(number)];
  }

  static milliseconds margin(milliseconds timeout) { return std::min(longest_margin, timeout / 10); }

  void set_deadline(open_meeting& open, const meeting_id& id, clock::time_point due) {
    open.due = due;
    open.deadline.expires_at(due);
    open.deadline.async_wait([this, id](const asio::error_code& cancelled) {
      if (!cancelled) late(id);
    });
  }

  void late(const meeting_id& id) {
    const auto found = meetings_.find(id);
    if (found == meetings_.end() || clock::now() < found->second.due) return;
    auto missing = found->second.of->ranks();
    std::erase_if(missing, [&](int rank) { return !found->second.misses(rank); });
    hold_inquest({found->second.of,
                  fmt::format("did not come to {} within {}", description_of(found->second, id),
                              in_seconds(clock::now() - found->second.begun)),
                  clock::now(), id, std::move(missing)});
  }

  [[nodiscard]] std::string description_of(const open_meeting& open, const meeting_id& id) const {
    const auto among = open.of->size() < ranks_.size() ? " of " + name_of(open.of->ranks()) : "";
    if (open.kind == meeting_kind::same) return open.announced + among;
    const bool rooted = open.kind == meeting_kind::broadcast || open.kind == meeting_kind::gather;
    return fmt::format("the {}{}{}{}", name_of(open.kind), rooted ? fmt::format("({})", open.root) : "",
                       place_of(id.first), among);
  }

  /// Where they are, if all are not on one machine.
  [[nodiscard]] std::string hosts_of(const std::vector<int>& named) const {
    std::vector<std::string> places;
    for (const int rank : named) {
      const auto& host = ranks_[static_cast<std::size_t>(rank)].host;
      if (!host.empty() && host != here_) places.push_back(fmt::format("rank {} is on '{}'", rank, host));
    }
    return places.empty() ? "" : fmt::format("; {}", fmt::join(places, ", "));
  }

  // ---- who answers ----

  void question_all() {
    ranks_[0].within_operation = within_operation_();
    const auto question = message_writer(message_kind::question).take();
    for (const auto& rank : ranks_)
      if (rank.line && !rank.left) rank.line->send(question);
    watch_.heard(0);
  }

  void silent(std::size_t rank, milliseconds limit) {
    const int number = static_cast<int>(rank);
    if (ranks_[rank].left || !ranks_[rank].line) return;
    fail({fmt::format("rank {} has been silent for {}: stopped, or its machine is down or not reached any more{}",
                      number, in_seconds(limit), hosts_of({number})),
          {number}});
  }

  void trouble(int rank, std::shared_ptr<const circle> of, const std::string& why) {
    hold_inquest({std::move(of), fmt::format("rank {}: {}", rank, why), clock::now(), std::nullopt, {}});
  }

  void hold_inquest(inquest about) {
    if (failure_) return;
    if (inquest_) {
      // Those who miss somebody may still get him; an operation that has failed stays so.
      if (inquest_->missed && !about.missed)
        *inquest_ = inquest{about.of, about.why, inquest_->asked, std::nullopt, {}};
      return;
    }
    inquest_ = std::move(about);
    question_all();
    wait_for_answers();
    conclude_if_all_answer();
  }

  void wait_for_answers() {
    const auto until = clock::now() + answer_time;
    inquest_end_.expires_at(until);
    inquest_end_.async_wait([this, until](const asio::error_code& cancelled) {
      if (cancelled) return;
      // This process itself was stopped meanwhile, and has not read the answers yet.
      if (clock::now() - until > answer_time) return wait_for_answers();
      conclude();
    });
  }

  [[nodiscard]] std::vector<int> those_without_answer_to(const inquest& about) const {
    std::vector<int> quiet;
    for (std::size_t rank = 1; rank < ranks_.size(); ++rank)
      if (!ranks_[rank].left && ranks_[rank].line && !watch_.heard_since(rank, about.asked))
        quiet.push_back(static_cast<int>(rank));
    return quiet;
  }

  void conclude_if_all_answer() {
    if (inquest_ && !failure_ && those_without_answer_to(*inquest_).empty()) conclude();
  }

  void conclude() {
    if (failure_ || !inquest_) return;
    const inquest about = *std::exchange(inquest_, std::nullopt);
    inquest_end_.cancel();
    if (about.missed && !meetings_.contains(*about.missed)) return look_for_the_late();  // they have come after all
    auto gone = those_who_left();
    std::erase_if(gone, [&](int rank) { return !about.of->place_of(rank); });
    if (!about.missed && !gone.empty())
      return fail({fmt::format("{} left before an operation on tensors ({})", name_of(gone), about.why), gone});
    if (const auto quiet = those_without_answer_to(about); !quiet.empty())
      return fail({fmt::format("{} {} not answer: stopped, or {} machine is down or not reached any more{} ({} {})",
                               name_of(quiet), quiet.size() == 1 ? "does" : "do", quiet.size() == 1 ? "its" : "their",
                               hosts_of(quiet),
                               about.missed ? name_of(about.missing) : "an operation on tensors failed;", about.why),
                   quiet});
    if (!about.missed)
      return fail({fmt::format("an operation on tensors has failed, although all ranks are there: {}", about.why), {}});
    const auto blamed = those_to_blame(about);
    fail({fmt::format("{} {}; hanging, or busy with something longer than the timeout{}", name_of(blamed), about.why,
                      hosts_of(blamed)),
          blamed});
  }

  void look_for_the_late() {
    const auto now = clock::now();
    const auto found = std::ranges::find_if(meetings_, [&](const auto& open) { return open.second.due <= now; });
    if (found != meetings_.end()) late(meeting_id(found->first));
  }

  /// Of those who are missing the ones that do not wait for others themselves.
  [[nodiscard]] std::vector<int> those_to_blame(const inquest& about) const {
    auto blamed = about.missing;
    std::erase_if(blamed, [&](int one) {
      const auto rank = static_cast<std::size_t>(one);
      // Who has announced something does not wait for it.
      return ranks_[rank].within_operation || std::ranges::any_of(meetings_, [&](const auto& open) {
               return open.second.kind != meeting_kind::same && open.second.has(one);
             });
    });
    return blamed.empty() ? about.missing : blamed;
  }

  void complete(const meeting_id& id) {
    const auto open = meetings_.extract(id);
    const auto& m = open.mapped();
    if (m.kind == meeting_kind::same) return;  // nobody waits for an answer
    if (m.kind == meeting_kind::split) return split(m, id);
    answer_message answer{id, {}};
    if (m.kind == meeting_kind::minimum) {
      auto smallest = std::numeric_limits<std::int64_t>::max();
      for (const auto& part : m.parts) smallest = std::min(smallest, number_in(*part));
      answer.all.push_back(std::to_string(smallest));
    } else if (m.kind == meeting_kind::broadcast) {
      answer.all.push_back(*m.parts.at(m.of->place_of(m.root).value()));
    }
    const auto same_for_all = encode(answer);
    if (m.kind == meeting_kind::all_gather || m.kind == meeting_kind::gather)
      for (const auto& part : m.parts) answer.all.push_back(*part);
    const auto everything = encode(answer);
    if (everything.size() > largest_message)
      return fail({fmt::format("what all ranks bring to {} has {} bytes; at most {} can be sent", description_of(m, id),
                               everything.size(), largest_message),
                   {}});
    for (const int rank : m.of->ranks())
      tell(rank, m.kind == meeting_kind::all_gather || rank == m.root ? everything : same_for_all);
  }

  /// Those who bring the same number are a circle from now on.
  void split(const open_meeting& whole, const meeting_id& id) {
    std::map<std::int64_t, std::vector<int>> parts;
    for (std::size_t place = 0; place < whole.parts.size(); ++place)
      parts[number_in(*whole.parts[place])].push_back(whole.of->ranks()[place]);
    for (auto& [color, ranks] : parts) {
      answer_message answer{id, {std::to_string(circles_.size())}};
      for (const int rank : ranks) answer.all.push_back(std::to_string(rank));
      const auto message = encode(answer);
      circles_.push_back(std::make_shared<const circle>(std::move(ranks)));
      for (const int rank : circles_.back()->ranks()) tell(rank, message);
    }
  }

  void lost(int rank, const std::string& why) {
    auto& one = ranks_[static_cast<std::size_t>(rank)];
    if (!one.left)
      fail({fmt::format("rank {} is gone without a word (connection: {}); killed, crashed, or its machine is down{}",
                        rank, why, hosts_of({rank})),
            {rank}});
    one.left = true;
    tell_if_alone();
  }

  void goodbye(int rank, const std::string& reason) {
    ranks_[static_cast<std::size_t>(rank)].left = true;
    if (!reason.empty()) fail({fmt::format("rank {} has failed: {}", rank, reason), {rank}});
    const auto missed =
        std::ranges::find_if(meetings_, [&](const auto& meeting) { return meeting.second.misses(rank); });
    if (!failure_ && missed != meetings_.end())
      fail({fmt::format("rank {} left before {}", rank, description_of(missed->second, missed->first)), {rank}});
    tell_if_alone();
  }

  [[nodiscard]] std::vector<int> those_who_left() const {
    std::vector<int> gone;
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank)
      if (ranks_[rank].left) gone.push_back(static_cast<int>(rank));
    return gone;
  }

  void fail(failure_message failure) {
    if (failure_) return;
    failure_ = std::move(failure);
    meetings_.clear();
    const auto message = encode(*failure_);
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) tell(static_cast<int>(rank), message);
  }

  void tell(int rank, const std::string& message) {
    const auto& one = ranks_[static_cast<std::size_t>(rank)];
    if (rank == 0)
      to_self_(message);
    else if (one.line)
      one.line->send(message);
  }

  void tell_if_alone() {
    if (!alone_) return;
    for (std::size_t rank = 1; rank < ranks_.size(); ++rank)
      if (!ranks_[rank].left) return;
    std::exchange(alone_, nullptr)();
  }

  tcp::acceptor acceptor_;
  std::string token_;
  std::function<void(const std::string&)> to_self_;
  std::function<bool()> within_operation_;  // rank 0
  const std::string here_ = name_of_this_machine();
  std::vector<rank_state> ranks_;
  std::vector<std::shared_ptr<const circle>> circles_;
  silence_watch watch_;
  std::map<meeting_id, open_meeting> meetings_;
  std::optional<inquest> inquest_;
  asio::steady_timer inquest_end_;
  std::optional<failure_message> failure_;
  std::function<void()> alone_;
};

// ---- every rank's side ---------------------------------------------------------------------------------------------

using answer_receiver = std::function<void(std::exception_ptr, std::vector<std::string>)>;

class member final : public roll_call {
 public:
  member(int rank, int world_size, std::string token, milliseconds silence)
      : rank_(rank),
        world_size_(world_size),
        token_(std::move(token)),
        silence_(silence),
        work_(asio::make_work_guard(events_)),
        watch_(events_, silence, 1),
        inquest_(events_) {}

  ~member() override {
    leave("", milliseconds(0));
    work_.reset();
    events_.stop();
    if (thread_.joinable()) thread_.join();
  }

  void listen() {
    hub_ = std::make_unique<hub>(
        events_, world_size_, token_, silence_, [this](const std::string& message) { hear(message); },
        [this] { return operations_ > 0; });
    port_ = hub_->port();
    run();
  }

  void connect(const std::string& host, std::uint16_t port, milliseconds timeout) {
    const auto until = clock::now() + timeout;
    tcp::socket socket(events_);
    std::string why;
    while (!try_to_connect(socket, host, port, until, why)) {
      if (clock::now() + connect_interval > until)
        throw rank_error(
            fmt::format("rank {} does not reach rank 0 at {}:{}: {}; MASTER_ADDR must be an address of rank 0's "
                        "machine that the other machines reach",
                        rank_, host, port, why),
            {0});
      std::this_thread::sleep_for(connect_interval);
    }
    port_ = port;
    line_ = std::make_shared<connection>(std::move(socket));
    const auto receive = [this](const std::string& message) { hear(message); };
    const auto end = [this](const std::string& reason) { hub_lost(reason); };
    line_->listen_to(receive, end);
    line_->start(receive, end);
    line_->send(message_writer(message_kind::hello)
                    .text(token_)
                    .number(rank_)
                    .number(world_size_)
                    .text(name_of_this_machine())
                    .take());
    watch_.start([] {},
                 [this](std::size_t) {
                   fail({fmt::format("rank 0 has been silent for {}: stopped, or its machine is down or not reached "
                                     "any more",
                                     in_seconds(silence_)),
                         {0}});
                 });
    run();
  }

  [[nodiscard]] std::uint16_t port() const noexcept override { return port_; }

  task<std::vector<std::string>> meet(meeting part) override {
    const executor home = co_await asio::this_coro::executor;
    rondo::detail::absence away(home);
    const auto answer = std::make_shared<outcome_of_meeting>();
    const auto awaited = std::make_shared<const bool>();  // ends with this frame
    const auto receive = [answer, way = away.way()](std::exception_ptr failed, std::vector<std::string> all) {
      answer->failed = std::move(failed);
      answer->all = std::move(all);
      way->call();
    };
    begin(std::move(part), receive, awaited);
    co_await park(away.rest());
    if (answer->failed) std::rethrow_exception(answer->failed);
    co_return std::move(answer->all);
  }

  std::vector<std::string> meet_blocking(meeting part) override {
    auto promise = std::make_shared<std::promise<std::vector<std::string>>>();
    auto future = promise->get_future();
    begin(std::move(part), [promise](std::exception_ptr failed, std::vector<std::string> all) {
      if (failed)
        promise->set_exception(std::move(failed));
      else
        promise->set_value(std::move(all));
    });
    return future.get();
  }

  void give(meeting part) override {
    begin(std::move(part), [](const std::exception_ptr&, const std::vector<std::string>&) {});
  }

  void announce(meeting what) override {
    asio::post(events_, [this, what = std::move(what)]() mutable {
      if (failed_ || gone_) return;
      const auto number = next_number_[what.channel]++;
      tell_hub(
          {{std::move(what.channel), number}, what.circle, meeting_kind::same, 0, what.timeout, std::move(what.mine)});
    });
  }

  void operation_begins() noexcept override { ++operations_; }
  void operation_ends() noexcept override { --operations_; }

  void report(int circle, std::string why) override {
    asio::post(events_, [this, circle, why = std::move(why)] {
      if (failed_ || gone_) return;
      send_to_hub(message_writer(message_kind::trouble).number(circle).text(why).take());
      wait_for_conclusion();
    });
  }

  void on_failure(const void* key, std::function<void(std::exception_ptr)> tell) override {
    std::exception_ptr failed;
    {
      const std::lock_guard lock(watchers_mutex_);
      failed = failed_;
      if (!failed) watchers_.insert_or_assign(key, tell);
    }
    if (failed) tell(failed);
  }

  void forget(const void* key) noexcept override {
    const std::lock_guard lock(watchers_mutex_);
    watchers_.erase(key);
  }

  void leave(const std::string& reason, milliseconds timeout) noexcept override {
    if (left_.exchange(true) || !thread_.joinable()) return;
    try {
      const auto gone = std::make_shared<std::promise<void>>();
      auto done = gone->get_future();
      asio::post(events_, [this, reason, gone] { say_goodbye(reason, [gone] { gone->set_value(); }); });
      const bool wait_for_others = hub_ && reason.empty();
      done.wait_for(wait_for_others ? std::max(timeout, flush_time) : flush_time);
      std::promise<void> closed;
      asio::post(events_, [&] {
        close();
        closed.set_value();
      });
      closed.get_future().wait();
    } catch (const std::exception&) {
      // The connection breaks when the process ends, which says the same.
    }
  }

 private:
  struct outcome_of_meeting {
    std::exception_ptr failed;
    std::vector<std::string> all;
  };

  struct waiting {
    waiting(asio::io_context& events, answer_receiver then, std::weak_ptr<const bool> by)
        : receive(std::move(then)), awaited(std::move(by)), deadline(events) {}
    answer_receiver receive;
    std::weak_ptr<const bool> awaited;  // by a coroutine, as long as there is something
    asio::steady_timer deadline;
  };

  void run() {
    thread_ = rondo::detail::quiet_thread([this] { events_.run(); });
  }

  // The event loop does not run yet.
  bool try_to_connect(tcp::socket& socket, const std::string& host, std::uint16_t port, clock::time_point until,
                      std::string& why) {
    asio::error_code failed;
    tcp::resolver resolver(events_);
    const auto places = resolver.resolve(host, std::to_string(port), failed);
    if (!failed) {
      bool done = false;
      asio::async_connect(socket, places, [&](const asio::error_code& result, const auto&) {
        failed = result;
        done = true;
      });
      while (!done && clock::now() < until) events_.run_one_until(until);
      if (!done) {
        asio::error_code ignored;
        socket.close(ignored);
        while (!done) events_.run_one();
        failed = asio::error::timed_out;
      }
    }
    why = failed.message();
    return !failed;
  }

  // ---- any thread ----

  void begin(meeting part, answer_receiver then, std::weak_ptr<const bool> awaited = {}) {
    asio::post(events_, [this, part = std::move(part), then = std::move(then), awaited = std::move(awaited)]() mutable {
      take_part(std::move(part), std::move(then), std::move(awaited));
    });
  }

  // ---- the thread of the connection ----

  void take_part(meeting part, answer_receiver then, std::weak_ptr<const bool> awaited) {
    if (failed_) return then(failed_, {});
    if (in_use(part.channel))
      return then(
          std::make_exception_ptr(error(fmt::format(
              "rank {}: the {}{} was called while another coroutine waits for one{}; the order of the two "
              "could differ between ranks: give each coroutine a channel of its own, or call one after the other",
              rank_, name_of(part.kind), place_of(part.channel), place_of(part.channel)))),
          {});
    if (gone_) return then(std::make_exception_ptr(rank_error("this rank has left the group", {rank_})), {});
    if (part.mine.size() > largest_message - largest_hello) {
      const auto why = fmt::format("it brings {} bytes to the {}{}; at most {} can be sent", part.mine.size(),
                                   name_of(part.kind), place_of(part.channel), largest_message - largest_hello);
      send_to_hub(message_writer(message_kind::goodbye).text(why).take());
      return then(std::make_exception_ptr(rank_error(why, {rank_})), {});
    }
    const meeting_id id{part.channel, next_number_[part.channel]++};
    auto& mine = waiting_.try_emplace(id, events_, std::move(then), std::move(awaited)).first->second;
    // Rank 0, which knows who is missing, speaks first.
    mine.deadline.expires_after(part.timeout + answer_time_of_first);
    mine.deadline.async_wait([this, id](const asio::error_code& cancelled) {
      if (!cancelled && waiting_.contains(id))
        fail({"rank 0, which must answer, is silent: hanging, stopped, or not reached any more", {0}});
    });
    tell_hub({id, part.circle, part.kind, part.root, part.timeout, std::move(part.mine)});
  }

  // By a coroutine that waits.
  [[nodiscard]] bool in_use(const std::string& channel) const {
    for (auto one = waiting_.lower_bound({channel, 0}); one != waiting_.end() && one->first.first == channel; ++one)
      if (!one->second.awaited.expired()) return true;
    return false;
  }

  void tell_hub(const part_message& part) { send_to_hub(encode(part)); }

  void send_to_hub(std::string message) {
    if (hub_)
      hub_->receive(0, message);
    else
      line_->send(std::move(message));
  }

  void wait_for_conclusion() {
    if (hub_) return;
    const auto until = clock::now() + answer_time_of_first;
    inquest_.expires_at(until);
    inquest_.async_wait([this, until](const asio::error_code& cancelled) {
      if (cancelled || failed_) return;
      if (clock::now() - until > answer_time) return wait_for_conclusion();
      fail({"rank 0, which must answer, is silent: hanging, stopped, or not reached any more", {0}});
    });
  }

  void hear(const std::string& message) {
    watch_.heard(0);
    message_reader from(message);
    switch (static_cast<message_kind>(from.byte())) {
      case message_kind::question:
        return send_to_hub(message_writer(message_kind::here).byte(operations_ > 0 ? 1 : 0).take());
      case message_kind::answer:
        return hear_answer(decode_answer(from));
      case message_kind::failure:
        return fail(decode_failure(from));
      default:
        throw error("an unexpected message");
    }
  }

  void hear_answer(answer_message answer) {
    auto found = waiting_.extract(answer.id);
    if (found) found.mapped().receive(nullptr, std::move(answer.all));
  }

  void hub_lost(const std::string& why) {
    fail({fmt::format("rank 0 is gone without a word (connection: {}); killed, crashed, or its machine is down", why),
          {0}});
  }

  void fail(const failure_message& failure) {
    if (failed_) return;
    const auto failed = std::make_exception_ptr(rank_error(failure.what, failure.ranks));
    std::map<const void*, std::function<void(std::exception_ptr)>> tell;
    {
      const std::lock_guard lock(watchers_mutex_);
      failed_ = failed;
      tell = watchers_;
      for (const auto& [key, one] : tell) one(failed);
      watchers_.clear();
    }
    for (auto& [id, one] : std::exchange(waiting_, {})) one.receive(failed, {});
  }

  void say_goodbye(const std::string& reason, const std::function<void()>& then) {
    gone_ = true;
    const auto message = message_writer(message_kind::goodbye).text(reason).take();
    if (hub_) {
      hub_->receive(0, message);
      if (reason.empty())
        hub_->when_alone(then);
      else
        hub_->when_flushed(then);
    } else {
      line_->send(message);
      line_->when_flushed(then);
    }
  }

  void close() {
    watch_.stop();
    inquest_.cancel();
    if (hub_) hub_->close();
    if (line_) line_->close();
    fail({"this rank has left the group", {rank_}});
  }

  const int rank_;
  const int world_size_;
  const std::string token_;
  const milliseconds silence_;
  asio::io_context events_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  silence_watch watch_;  // over rank 0
  asio::steady_timer inquest_;
  std::uint16_t port_ = 0;
  std::unique_ptr<hub> hub_;
  std::shared_ptr<connection> line_;
  std::map<std::string, std::int64_t> next_number_;
  std::map<meeting_id, waiting> waiting_;
  std::atomic<bool> left_ = false;  // what comes before that is still said
  bool gone_ = false;               // of the connection's thread
  std::atomic<int> operations_ = 0;
  std::recursive_mutex watchers_mutex_;  // whoever is told may forget
  std::map<const void*, std::function<void(std::exception_ptr)>> watchers_;
  std::exception_ptr failed_;  // written on the connection's thread, with the mutex
  std::thread thread_;
};

}  // namespace

std::shared_ptr<roll_call> roll_call::listen(int world_size, std::string token, milliseconds silence) {
  auto made = std::make_shared<member>(0, world_size, std::move(token), silence);
  made->listen();
  return made;
}

std::shared_ptr<roll_call> roll_call::connect(const std::string& host, std::uint16_t port, int rank, int world_size,
                                              std::string token, milliseconds timeout, milliseconds silence) {
  auto made = std::make_shared<member>(rank, world_size, std::move(token), silence);
  made->connect(host, port, timeout);
  return made;
}

}  // namespace rondo::distributed
