// The commit protocol in every order in which its steps and messages can follow each other, with every loss of ranks
// and messages between them.

#include "rondo/distributed/two_phase_commit.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <asio/co_spawn.hpp>
#include <asio/io_context.hpp>
#include <asio/this_coro.hpp>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "rondo/async/park.hpp"
#include "rondo/distributed/roll_call.hpp"
#include "rondo/distributed/tensor_backend.hpp"
#include "support/catch.hpp"
#include "support/ranks.hpp"

namespace distributed_two_phase_commit_test {

using namespace rondo;
using distributed::commit_report;
using distributed::commit_state;
using distributed::meeting;
using distributed::meeting_kind;
using distributed::rank_error;

namespace {

constexpr int ranks = 3;
constexpr auto rank_count = static_cast<std::size_t>(ranks);

std::size_t index(int rank) { return static_cast<std::size_t>(rank); }

/// What a run begins with.
struct scenario {
  int coordinator = 0;
  std::array<commit_state, rank_count> votes = {};
  int fails_at = 0;  ///< the step of making the whole that throws: 1 or 2; 0 for none
  int losses = 0;    ///< of ranks, connections and patience that may happen
};

/// What is on the disk that all ranks share.
struct disk {
  std::array<bool, rank_count> part = {};
  bool index = false;
  bool named = false;
};

/// Three ranks, their connections to rank 0 and rank 0's decisions about meetings, as in `roll_call`. Nothing happens
/// by itself: `choices()` says what could happen next, and `happen` lets one of it.
class world {
 public:
  explicit world(scenario s) : scenario_(s), losses_left_(s.losses) {
    for (int rank = 0; rank < ranks; ++rank) {
      auto& one = ranks_[index(rank)];
      one.line = std::make_shared<rank_line>(*this, rank);
      asio::co_spawn(events_, body(rank), [&one](std::exception_ptr failed, std::optional<commit_report> report) {
        one.over = true;
        one.report = std::move(report);
        one.failed = std::move(failed);
      });
    }
    settle();
  }
  world(const world&) = delete;
  world& operator=(const world&) = delete;
  ~world() {
    for (auto& one : ranks_) one.rest = {};
  }

  enum class kind { step, hub_hears, rank_hears, hub_dies, death, cut, rank_impatient, hub_impatient };
  struct choice {
    kind what;
    int rank = 0;
    unsigned lost = 0;  ///< which ranks (bit 0 for rank 1) do not get what rank 0 was about to tell them
    [[nodiscard]] bool is_loss() const { return what >= kind::hub_dies; }
    [[nodiscard]] std::string str() const {
      static constexpr std::array<const char*, 8> names{
          "takes a step", "is heard by rank 0", "hears of rank 0",       "dies as rank 0",
          "dies",         "is cut off",         "waits no longer for 0", "waits for nobody any more"};
      return fmt::format("rank {} {}, lost for {}", rank, names[static_cast<std::size_t>(what)], lost);
    }
  };

  [[nodiscard]] std::vector<choice> choices() const {
    std::vector<choice> all;
    for (int rank = 0; rank < ranks; ++rank) {
      const auto& one = ranks_[index(rank)];
      if (one.dead) continue;
      if (one.at_step) all.push_back({kind::step, rank});
      if (!one.to_hub.empty() && !ranks_[0].dead) all.push_back({kind::hub_hears, rank});
      if (!one.from_hub.empty()) all.push_back({kind::rank_hears, rank});
    }
    if (losses_left_ == 0) return all;
    for (unsigned lost = 0; lost < 4 && !ranks_[0].dead; ++lost) all.push_back({kind::hub_dies, 0, lost});
    for (int rank = 1; rank < ranks; ++rank) {
      const auto& one = ranks_[index(rank)];
      if (one.dead || one.over) continue;
      all.push_back({kind::death, rank});
      for (unsigned lost = 0; lost < 2 && !one.cut; ++lost) all.push_back({kind::cut, rank, lost});
      if (one.waits && !one.failed_group) all.push_back({kind::rank_impatient, rank});
    }
    if (!ranks_[0].dead && !failure_ && !meetings_.empty()) all.push_back({kind::hub_impatient});
    return all;
  }

  void happen(const choice& one) {
    story_.push_back(one);
    if (one.is_loss()) --losses_left_;
    switch (one.what) {
      case kind::step:
        take_step(one.rank);
        break;
      case kind::hub_hears:
        hear_at_hub(one.rank);
        break;
      case kind::rank_hears:
        hear_at_rank(one.rank);
        break;
      case kind::hub_dies:
        die_as_hub(one.lost);
        break;
      case kind::death:
        die(one.rank);
        break;
      case kind::cut:
        cut(one.rank, one.lost != 0);
        break;
      case kind::rank_impatient:
        fail_at_rank(one.rank, {"rank 0 is silent", {0}});
        break;
      case kind::hub_impatient:
        fail({"somebody did not come", missing()});
        break;
    }
    settle();
  }

  /// All that the future depends on.
  [[nodiscard]] std::string state() const {
    std::string text;
    const auto add = [&](auto number) { text.push_back(static_cast<char>('0' + static_cast<int>(number))); };
    add(losses_left_);
    add(disk_.index);
    add(disk_.named);
    add(failure_.has_value());
    for (const auto& one : ranks_) {
      add(one.dead);
      add(one.over);
      add(one.cut);
      add(one.left);
      add(one.waits);
      add(one.failed_group.has_value());
      add(one.steps);
      add(one.met);
      add(one.report ? static_cast<int>(one.report->state) : 9);
      for (const auto& message : one.to_hub) add(message.goodbye ? 8 : message.channel_number);
      text += '>';
      for (const auto& message : one.from_hub) add(message.failed ? 8 : message.number);
      text += '|';
    }
    for (const auto& [number, open] : meetings_) {
      add(number);
      for (const auto& part : open) add(part.has_value());
    }
    return text;
  }

  /// Nothing can happen any more: what must be true whatever has happened.
  void judge() const {
    const auto& voted = scenario_.votes;
    const bool all_there = std::ranges::all_of(disk_.part, [](bool there) { return there; });
    if (disk_.named && !(all_there && disk_.index)) wrong("a whole without one of its parts");
    std::optional<commit_state> told;
    for (int rank = 0; rank < ranks; ++rank) {
      const auto& one = ranks_[index(rank)];
      if (one.dead) continue;
      if (!one.over) wrong(fmt::format("rank {} waits for ever", rank));
      if (one.failed) {
        require_rank_error(one.failed);
        if (scenario_.losses == 0) wrong(fmt::format("rank {} complains of a loss, and there was none", rank));
        continue;
      }
      const auto& report = *one.report;
      if (told && *told != report.state) wrong("two outcomes");
      told = report.state;
      if (report.state == commit_state::durable && !disk_.named)
        wrong(fmt::format("rank {} believes in a whole", rank));
      if (report.state != commit_state::durable && disk_.named)
        wrong(fmt::format("rank {} does not know of the whole", rank));
      require_reason(report);
    }
    const auto worst = *std::ranges::max_element(voted);
    if (worst != commit_state::durable && disk_.named) wrong("a whole against the vote of a rank");
    if (losses_left_ < scenario_.losses) return;
    const auto expected = worst != commit_state::durable ? worst
                          : scenario_.fails_at > 0       ? commit_state::failed
                                                         : commit_state::durable;
    if (told != expected) wrong("another outcome than the votes have");
  }

  [[nodiscard]] bool named() const { return disk_.named; }

 private:
  struct failure {
    std::string what;
    std::vector<int> who;
  };
  struct part_of_rank {
    std::int64_t channel_number = 0;
    meeting part;
    bool goodbye = false;
  };
  struct answer {
    std::int64_t number = 0;
    std::vector<std::string> all;
    std::optional<failure> failed;
  };

  /// A rank's side.
  class rank_line final : public distributed::roll_call {
   public:
    rank_line(world& w, int rank) : world_(w), rank_(rank) {}
    [[nodiscard]] std::uint16_t port() const noexcept override { return 1; }
    task<std::vector<std::string>> meet(meeting part) override { return world_.meet(rank_, std::move(part)); }
    std::vector<std::string> meet_blocking(meeting) override { throw std::logic_error("the protocol must not block"); }
    void give(meeting) override { throw std::logic_error("nobody gives"); }
    void announce(meeting) override { throw std::logic_error("nobody announces"); }
    void operation_begins() noexcept override {}
    void operation_ends() noexcept override {}
    void report(int, std::string) override {}
    void on_failure(const void*, std::function<void(std::exception_ptr)>) override {}
    void forget(const void*) noexcept override {}
    void leave(const std::string&, std::chrono::milliseconds) noexcept override {}

   private:
    world& world_;
    int rank_;
  };

  struct rank_state {
    std::shared_ptr<rank_line> line;
    continuation<> rest;   ///< of the coroutine, while it takes a step or waits
    bool at_step = false;  ///< which it is about to take
    int steps = 0;
    std::int64_t met = 0;
    bool waits = false;
    bool dead = false;
    bool cut = false;
    bool over = false;
    bool left = false;  ///< with an error
    std::optional<failure> failed_group;
    std::vector<std::string> answer;
    std::deque<part_of_rank> to_hub;
    std::deque<world::answer> from_hub;
    std::optional<commit_report> report;
    std::exception_ptr failed;
  };

  [[noreturn]] void wrong(const std::string& what) const {
    std::string story;
    for (const auto& one : story_) story += one.str() + "\n";
    FAIL(story << what);
    throw std::logic_error(what);
  }

  // ---- what a rank does

  task<std::optional<commit_report>> body(int rank) {
    co_await step(rank);
    const auto vote = scenario_.votes[index(rank)];
    if (vote == commit_state::durable) disk_.part[index(rank)] = true;
    commit_report mine{vote, fmt::format("text of {}", rank)};
    const auto make_whole = [this, rank](std::vector<std::string> texts) { return whole(rank, std::move(texts)); };
    distributed::rank_group group(ranks_[index(rank)].line, nullptr, testing::launch_of(rank, ranks, 1), {});
    auto committing =
        distributed::two_phase_commit(std::move(group), scenario_.coordinator, std::move(mine), make_whole);
    auto report = co_await std::move(committing);
    co_return report;
  }

  task<> whole(int rank, std::vector<std::string> texts) {
    if (rank != scenario_.coordinator) wrong(fmt::format("rank {} is not the coordinator", rank));
    for (int i = 0; i < ranks; ++i)
      if (texts.at(index(i)) != fmt::format("text of {}", i)) wrong(fmt::format("not the text of rank {}", i));
    co_await step(rank);
    if (scenario_.fails_at == 1) throw std::runtime_error("no index");
    disk_.index = true;
    co_await step(rank);
    if (scenario_.fails_at == 2) throw std::runtime_error("no name");
    disk_.named = true;
  }

  task<> step(int rank) {
    auto& one = ranks_[index(rank)];
    one.at_step = true;
    co_await park(one.rest);
  }

  void take_step(int rank) {
    auto& one = ranks_[index(rank)];
    one.at_step = false;
    ++one.steps;
    std::exchange(one.rest, {})();
  }

  task<std::vector<std::string>> meet(int rank, meeting part) {
    auto& one = ranks_[index(rank)];
    if (!one.failed_group) {
      one.to_hub.push_back({one.met++, std::move(part), false});
      one.waits = true;
      co_await park(one.rest);
      one.waits = false;
    }
    if (one.failed_group) throw rank_error(one.failed_group->what, one.failed_group->who);
    co_return std::exchange(one.answer, {});
  }

  // ---- messages and rank 0's decisions

  void hear_at_hub(int rank) {
    auto message = std::move(ranks_[index(rank)].to_hub.front());
    ranks_[index(rank)].to_hub.pop_front();
    if (failure_) return;
    if (message.goodbye) return fail({"a rank has failed", {rank}});
    auto& open = meetings_.try_emplace(message.channel_number).first->second;
    open[index(rank)] = message.part;
    if (!std::ranges::all_of(open, [](const auto& part) { return part.has_value(); })) return;
    complete(message.channel_number, open);
    meetings_.erase(message.channel_number);
  }

  void complete(std::int64_t number, const std::array<std::optional<meeting>, rank_count>& open) {
    const auto root = index(open[0]->root);
    for (std::size_t rank = 0; rank < rank_count; ++rank) {
      answer told{number, {}, {}};
      if (open[0]->kind == meeting_kind::broadcast) told.all.push_back(open[root]->mine);
      if (open[0]->kind == meeting_kind::gather && rank == root)
        for (const auto& part : open) told.all.push_back(part->mine);
      if (!ranks_[rank].dead && !ranks_[rank].cut) ranks_[rank].from_hub.push_back(std::move(told));
    }
  }

  void hear_at_rank(int rank) {
    auto& one = ranks_[index(rank)];
    auto told = std::move(one.from_hub.front());
    one.from_hub.pop_front();
    if (told.failed) return fail_at_rank(rank, *told.failed);
    if (!one.waits || one.failed_group) return;
    one.answer = std::move(told.all);
    std::exchange(one.rest, {})();
  }

  void fail_at_rank(int rank, const failure& why) {
    auto& one = ranks_[index(rank)];
    if (one.failed_group) return;
    one.failed_group = why;
    if (one.waits) std::exchange(one.rest, {})();
  }

  void fail(failure why) {
    if (failure_) return;
    failure_ = why;
    meetings_.clear();
    for (auto& one : ranks_)
      if (!one.dead && !one.cut) one.from_hub.push_back({0, {}, why});
  }

  [[nodiscard]] std::vector<int> missing() const {
    std::vector<int> all;
    for (int rank = 0; rank < ranks; ++rank)
      if (!meetings_.begin()->second[index(rank)]) all.push_back(rank);
    return all;
  }

  void die(int rank) {
    stop(ranks_[index(rank)]);
    fail({"a rank is gone", {rank}});
  }

  void die_as_hub(unsigned lost) {
    stop(ranks_[0]);
    for (int rank = 1; rank < ranks; ++rank) lose_hub(rank, (lost >> (rank - 1) & 1U) != 0);
  }

  static void stop(rank_state& one) {
    one.dead = true;
    one.waits = false;
    one.at_step = false;
    one.rest = {};
    one.to_hub.clear();
    one.from_hub.clear();
  }

  /// What was on its way to rank 0 is lost: had it arrived, the connection would have broken later.
  void cut(int rank, bool lost) {
    ranks_[index(rank)].cut = true;
    lose_hub(rank, lost);
    fail({"a rank is gone", {rank}});
  }

  void lose_hub(int rank, bool lost) {
    auto& one = ranks_[index(rank)];
    one.to_hub.clear();
    if (lost) one.from_hub.clear();
    if (!one.dead) one.from_hub.push_back({0, {}, failure{"rank 0 is gone", {0}}});
  }

  /// Until everybody waits.
  void settle() {
    events_.restart();
    events_.poll();
    for (auto& one : ranks_)
      if (one.failed && !one.dead && !one.cut && !std::exchange(one.left, true)) one.to_hub.push_back({0, {}, true});
  }

  void require_rank_error(const std::exception_ptr& failed) const {
    try {
      std::rethrow_exception(failed);
    } catch (const rank_error&) {
    } catch (const std::exception& e) {
      wrong(fmt::format("not a rank_error: {}", e.what()));
    }
  }

  void require_reason(const commit_report& report) const {
    const auto& votes = scenario_.votes;
    if (report.state == commit_state::durable) return;
    if (votes[index(report.rank)] == report.state) {
      if (report.text != fmt::format("text of {}", report.rank))
        wrong(fmt::format("the reason of another rank: {}", report.text));
    } else if (report.rank != scenario_.coordinator || report.text.substr(0, 3) != "no ") {
      wrong("nobody has said " + report.text);
    }
  }

  scenario scenario_;
  int losses_left_;
  asio::io_context events_{1};
  std::array<rank_state, rank_count> ranks_;
  std::map<std::int64_t, std::array<std::optional<meeting>, rank_count>> meetings_;
  std::optional<failure> failure_;
  disk disk_;
  std::vector<choice> story_;
};

struct tally {
  std::size_t states = 0;
  std::size_t ends = 0;
  std::size_t named = 0;
};

/// Depth first; a world cannot be copied, so each path is walked from its beginning.
tally explore(const scenario& s) {
  tally found;
  std::set<std::string> seen;
  std::vector<std::vector<world::choice>> paths{{}};
  while (!paths.empty()) {
    const auto path = std::move(paths.back());
    paths.pop_back();
    world w(s);
    for (const auto& taken : path) w.happen(taken);
    if (!seen.insert(w.state()).second) continue;
    const auto choices = w.choices();
    const bool at_rest = std::ranges::all_of(choices, [](const auto& one) { return one.is_loss(); });
    if (at_rest) {
      w.judge();
      ++found.ends;
      found.named += w.named() ? 1 : 0;
    }
    for (const auto& next : choices) {
      paths.push_back(path);
      paths.back().push_back(next);
    }
  }
  found.states = seen.size();
  return found;
}

/// How many losses are looked at; RONDO_TEST_LOSSES says otherwise (see tools/test --long). All of them take a while: a
/// sanitizer, under which it is ten times as long, sees what is `important`, an ordinary build what is `usual`.
int losses_in_test(bool important, bool usual = true) {
  if (const char* const wanted = std::getenv("RONDO_TEST_LOSSES")) return std::stoi(wanted);
#ifdef __SANITIZE_ADDRESS__
  usual = important;
#endif
  return important || usual ? 1 : 0;
}

std::vector<std::array<commit_state, rank_count>> all_votes() {
  std::vector<std::array<commit_state, rank_count>> all;
  const std::array<commit_state, 3> kinds{commit_state::durable, commit_state::left_out, commit_state::failed};
  for (const auto a : kinds)
    for (const auto b : kinds)
      for (const auto c : kinds) all.push_back({a, b, c});
  return all;
}

}  // namespace

TEST_CASE("whoever is lost when, a commit has one outcome and no part is missing", "[distributed][commit]") {
  const int coordinator = GENERATE(0, 1);
  const int fails_at = GENERATE(0, 1, 2);
  scenario s;
  s.coordinator = coordinator;
  s.fails_at = fails_at;
  s.losses = losses_in_test(coordinator == 1 && fails_at == 0);
  const auto found = explore(s);
  INFO(fmt::format("coordinator {}, step {} fails: {} states, {} ends, {} of them with a whole", coordinator, fails_at,
                   found.states, found.ends, found.named));
  if (s.losses > 0) CHECK(found.states > (s.losses == 1 ? 500 : 5'000));
  if (s.losses > 0) CHECK(found.ends > 100);
  CHECK((found.named > 0) == (fails_at == 0));
}

TEST_CASE("a vote against it decides, whoever is lost", "[distributed][commit]") {
  for (const auto& votes : all_votes()) {
    scenario s;
    s.coordinator = 2;
    s.votes = votes;
    s.losses = losses_in_test(false, std::ranges::count(votes, commit_state::left_out) == 0);
    const auto found = explore(s);
    const bool against = std::ranges::any_of(votes, [](auto vote) { return vote != commit_state::durable; });
    CHECK((found.named == 0) == against);
  }
}

}  // namespace distributed_two_phase_commit_test
