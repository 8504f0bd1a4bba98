#include "rondo/distributed/roll_call.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

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
#include <cstring>
#include <deque>
#include <future>
#include <map>
#include <mutex>
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

// A larger message comes from somebody who is no rank.
constexpr std::uint64_t largest_message = std::uint64_t{1} << 32;
// What a rank waits longer than rank 0, whose word comes in time if it comes at all.
constexpr milliseconds longest_margin{500};
constexpr milliseconds connect_interval{50};
constexpr std::int64_t most_ranks = 1 << 20;
constexpr milliseconds flush_time{2000};

// ---- messages ------------------------------------------------------------------------------------------------------

enum class message_kind : std::uint8_t { hello, part, answer, failure, goodbye };

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
  meeting_kind kind = meeting_kind::barrier;
  int root = 0;
  milliseconds timeout{};
  std::string mine;
};

std::string encode(const part_message& part) {
  return message_writer(message_kind::part)
      .text(part.id.first)
      .number(part.id.second)
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
  static constexpr std::array<const char*, 5> names = {"barrier", "agree", "broadcast", "all_gather", "gather"};
  const auto index = static_cast<std::size_t>(kind);
  return index < names.size() ? names[index] : "something unknown";
}

std::string name_of(const std::vector<int>& ranks) {
  return ranks.size() == 1 ? fmt::format("rank {}", ranks[0]) : fmt::format("ranks {}", fmt::join(ranks, ", "));
}

std::string place_of(const std::string& channel) { return channel.empty() ? "" : fmt::format(" of '{}'", channel); }

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
  void listen_to(receiver receive, ending end) {
    receive_ = std::move(receive);
    end_ = std::move(end);
  }

  void send(std::string message) {
    if (closed_) return;
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
                       if (size > largest_message)
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
                        if (failed) return self->ended(failed.message());
                        self->outgoing_.pop_front();
                        if (!self->outgoing_.empty()) return self->write();
                        self->tell_flushed();
                      });
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
  bool closed_ = false;
};

// ---- rank 0's side -------------------------------------------------------------------------------------------------

/// Decides how every meeting ends. Belongs to the thread of its event loop.
class hub {
 public:
  /// Rank 0 itself has no connection: what it is told goes to `to_self`.
  hub(asio::io_context& events, int world_size, std::string token, std::function<void(const std::string&)> to_self)
      : acceptor_(open_acceptor(events)),
        token_(std::move(token)),
        to_self_(std::move(to_self)),
        ranks_(static_cast<std::size_t>(world_size)) {
    accept();
  }

  [[nodiscard]] std::uint16_t port() const { return acceptor_.local_endpoint().port(); }

  void receive(int rank, const std::string& message) {
    message_reader from(message);
    switch (static_cast<message_kind>(from.byte())) {
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
    for (auto& rank : ranks_)
      if (rank.line) rank.line->close();
    meetings_.clear();
  }

 private:
  struct rank_state {
    std::shared_ptr<connection> line;
    bool left = false;
  };

  struct open_meeting {
    open_meeting(const executor& events, const part_message& first, std::size_t world_size)
        : kind(first.kind), root(first.root), parts(world_size), deadline(events) {}
    meeting_kind kind;
    int root;
    std::vector<std::optional<std::string>> parts;
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

  /// Whoever does not know the token, or is nobody who is expected, is turned away without a word.
  void introduce(const std::shared_ptr<connection>& line, const std::string& message) {
    message_reader from(message);
    const bool hello = static_cast<message_kind>(from.byte()) == message_kind::hello && from.text() == token_;
    const auto rank = hello ? from.number() : 0;
    const bool expected = hello && rank > 0 && rank < static_cast<std::int64_t>(ranks_.size());
    if (!expected || ranks_[static_cast<std::size_t>(rank)].line) {
      line->close();
      return;
    }
    const auto number = static_cast<int>(rank);
    ranks_[static_cast<std::size_t>(rank)].line = line;
    line->listen_to([this, number](const std::string& m) { receive(number, m); },
                    [this, number](const std::string& why) { lost(number, why); });
    if (failure_) line->send(encode(*failure_));
  }

  void take_part(int rank, part_message part) {
    if (failure_) return;  // it knows, or is about to
    if (const auto gone = those_who_left(); !gone.empty())
      return fail(
          {fmt::format("{} left before the {}{}", name_of(gone), name_of(part.kind), place_of(part.id.first)), gone});
    auto& open = meetings_.try_emplace(part.id, acceptor_.get_executor(), part, ranks_.size()).first->second;
    if (open.kind != part.kind || open.root != part.root)
      return fail(
          {fmt::format("ranks do different things{}: rank {} calls {}({}) where others call {}({}); all ranks "
                       "must call the same operations in the same order",
                       place_of(part.id.first), rank, name_of(part.kind), part.root, name_of(open.kind), open.root),
           {rank}});
    auto& mine = open.parts[static_cast<std::size_t>(rank)];
    if (mine) return;
    mine = std::move(part.mine);
    if (++open.here == ranks_.size()) return complete(part.id);
    const auto due = clock::now() + part.timeout - margin(part.timeout);
    if (due < open.due) set_deadline(open, part.id, due);
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
    std::vector<int> missing;
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank)
      if (!found->second.parts[rank]) missing.push_back(static_cast<int>(rank));
    fail({fmt::format("{} did not come to the {}{} in time; hanging, stopped, or busy with something longer than the "
                      "timeout",
                      name_of(missing), name_of(found->second.kind), place_of(id.first)),
          missing});
  }

  void complete(const meeting_id& id) {
    const auto open = meetings_.extract(id);
    const auto& m = open.mapped();
    answer_message answer{id, {}};
    if (m.kind == meeting_kind::agree) {
      const bool all = std::ranges::all_of(m.parts, [](const auto& part) { return *part == "1"; });
      answer.all.emplace_back(all ? "1" : "0");
    } else if (m.kind == meeting_kind::broadcast) {
      answer.all.push_back(*m.parts.at(static_cast<std::size_t>(m.root)));
    }
    const auto same_for_all = encode(answer);
    if (m.kind == meeting_kind::all_gather || m.kind == meeting_kind::gather)
      for (const auto& part : m.parts) answer.all.push_back(*part);
    const auto everything = encode(answer);
    for (std::size_t rank = 0; rank < ranks_.size(); ++rank) {
      const bool wants_all = m.kind == meeting_kind::all_gather || static_cast<int>(rank) == m.root;
      tell(static_cast<int>(rank), wants_all ? everything : same_for_all);
    }
  }

  void lost(int rank, const std::string& why) {
    auto& one = ranks_[static_cast<std::size_t>(rank)];
    if (!one.left)
      fail({fmt::format("rank {} is gone without a word (connection: {}); killed, crashed, or its machine is down",
                        rank, why),
            {rank}});
    one.left = true;
    tell_if_alone();
  }

  void goodbye(int rank, const std::string& reason) {
    ranks_[static_cast<std::size_t>(rank)].left = true;
    if (!reason.empty()) fail({fmt::format("rank {} has failed: {}", rank, reason), {rank}});
    const auto missed = std::ranges::find_if(
        meetings_, [&](const auto& meeting) { return !meeting.second.parts[static_cast<std::size_t>(rank)]; });
    if (!failure_ && missed != meetings_.end())
      fail({fmt::format("rank {} left before the {}{}", rank, name_of(missed->second.kind),
                        place_of(missed->first.first)),
            {rank}});
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
  std::vector<rank_state> ranks_;
  std::map<meeting_id, open_meeting> meetings_;
  std::optional<failure_message> failure_;
  std::function<void()> alone_;
};

// ---- every rank's side ---------------------------------------------------------------------------------------------

using answer_receiver = std::function<void(std::exception_ptr, std::vector<std::string>)>;

class member final : public roll_call {
 public:
  member(int rank, int world_size, std::string token)
      : rank_(rank), world_size_(world_size), token_(std::move(token)), work_(asio::make_work_guard(events_)) {}

  ~member() override {
    leave("", milliseconds(0));
    work_.reset();
    events_.stop();
    if (thread_.joinable()) thread_.join();
  }

  void listen() {
    hub_ = std::make_unique<hub>(events_, world_size_, token_, [this](const std::string& message) { hear(message); });
    port_ = hub_->port();
    run();
  }

  void connect(const std::string& host, std::uint16_t port, milliseconds timeout) {
    const auto until = clock::now() + timeout;
    tcp::socket socket(events_);
    std::string why;
    while (!try_to_connect(socket, host, port, why)) {
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
    line_->start([this](const std::string& message) { hear(message); },
                 [this](const std::string& reason) { hub_lost(reason); });
    line_->send(message_writer(message_kind::hello).text(token_).number(rank_).take());
    run();
  }

  [[nodiscard]] std::uint16_t port() const noexcept override { return port_; }

  task<std::vector<std::string>> meet(meeting part) override {
    const executor home = co_await asio::this_coro::executor;
    rondo::detail::absence away(home);
    const auto answer = std::make_shared<outcome_of_meeting>();
    begin(std::move(part), [answer, way = away.way()](std::exception_ptr failed, std::vector<std::string> all) {
      answer->failed = std::move(failed);
      answer->all = std::move(all);
      way->call();
    });
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
    waiting(asio::io_context& events, answer_receiver then) : receive(std::move(then)), deadline(events) {}
    answer_receiver receive;
    asio::steady_timer deadline;
  };

  void run() {
    thread_ = rondo::detail::quiet_thread([this] { events_.run(); });
  }

  bool try_to_connect(tcp::socket& socket, const std::string& host, std::uint16_t port, std::string& why) {
    asio::error_code failed;
    tcp::resolver resolver(events_);
    const auto places = resolver.resolve(host, std::to_string(port), failed);
    if (!failed) asio::connect(socket, places, failed);
    why = failed.message();
    return !failed;
  }

  // ---- any thread ----

  void begin(meeting part, answer_receiver then) {
    asio::post(events_, [this, part = std::move(part), then = std::move(then)]() mutable {
      take_part(std::move(part), std::move(then));
    });
  }

  // ---- the thread of the connection ----

  void take_part(meeting part, answer_receiver then) {
    if (failed_) return then(failed_, {});
    if (left_) return then(std::make_exception_ptr(rank_error("this rank has left the group", {rank_})), {});
    const meeting_id id{part.channel, next_number_[part.channel]++};
    auto& mine = waiting_.try_emplace(id, events_, std::move(then)).first->second;
    mine.deadline.expires_after(part.timeout);
    mine.deadline.async_wait([this, id](const asio::error_code& cancelled) {
      if (!cancelled && waiting_.contains(id))
        fail({"rank 0, which must answer, is silent: hanging, stopped, or not reached any more", {0}});
    });
    tell_hub({id, part.kind, part.root, part.timeout, std::move(part.mine)});
  }

  void tell_hub(const part_message& part) {
    if (hub_)
      hub_->receive(0, encode(part));
    else
      line_->send(encode(part));
  }

  void hear(const std::string& message) {
    message_reader from(message);
    switch (static_cast<message_kind>(from.byte())) {
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
    if (hub_) hub_->close();
    if (line_) line_->close();
    fail({"this rank has left the group", {rank_}});
  }

  const int rank_;
  const int world_size_;
  const std::string token_;
  asio::io_context events_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  std::uint16_t port_ = 0;
  std::unique_ptr<hub> hub_;
  std::shared_ptr<connection> line_;
  std::map<std::string, std::int64_t> next_number_;
  std::map<meeting_id, waiting> waiting_;
  std::atomic<bool> left_ = false;
  std::recursive_mutex watchers_mutex_;  // whoever is told may forget
  std::map<const void*, std::function<void(std::exception_ptr)>> watchers_;
  std::exception_ptr failed_;  // written on the connection's thread, with the mutex
  std::thread thread_;
};

}  // namespace

std::shared_ptr<roll_call> roll_call::listen(int world_size, std::string token) {
  auto made = std::make_shared<member>(0, world_size, std::move(token));
  made->listen();
  return made;
}

std::shared_ptr<roll_call> roll_call::connect(const std::string& host, std::uint16_t port, int rank, int world_size,
                                              std::string token, std::chrono::milliseconds timeout) {
  auto made = std::make_shared<member>(rank, world_size, std::move(token));
  made->connect(host, port, timeout);
  return made;
}

}  // namespace rondo::distributed
