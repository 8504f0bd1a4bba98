#include "rondo/data/settings.hpp"

#include <cstdint>
#include <limits>
#include <list>
#include <memory>
#include <range/v3/view/iota.hpp>
#include <range/v3/view/transform.hpp>
#include <string>
#include <utility>
#include <vector>

#include "rondo/data/batch.hpp"
#include "rondo/data/pass.hpp"
#include "rondo/data/random.hpp"
#include "rondo/data/shuffle.hpp"
#include "rondo/data/take.hpp"
#include "rondo/data/transform.hpp"
#include "rondo/error.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/pipelines.hpp"

namespace data_state_test {

using namespace rondo;
using rondo::testing::captured_stderr;
using rondo::testing::contains;
using rondo::testing::number_set;
using rondo::testing::number_stream;
using rondo::testing::require_same_after_every_interruption;
using rondo::testing::rest_of;
using rondo::testing::seekable_stream;

namespace {

using numbers = std::vector<std::int64_t>;

const state::dict source{{"stage", "source"}};

state::dict stage(const char* name, state::dict settings, state::dict below) {
  state::dict level{{"stage", name}};
  for (const auto& [key, value] : settings) level[key] = value;
  level["below"] = std::move(below);
  return level;
}

std::int64_t same_number(std::int64_t n) { return n; }
std::int64_t add_noise(std::int64_t n, data::random_sequence& random) {
  return n + static_cast<std::int64_t>(random.below(1000000));
}

template <class View>
auto first_epoch(View view) {
  data::pass pass(std::move(view));
  pass.begin(0);
  return rest_of(pass);
}

/// The state of a pipeline that differs from the present one.
template <class View>
state::value state_of(const View& view) {
  return state::clone(data::state_dict(view));
}

template <class View>
std::string key_of_refusal(View& view, const state::value& stored) {
  try {
    data::load_state_dict(view, stored);
  } catch (const state_error& e) {
    return e.key();
  }
  return "accepted";
}

/// A data set with a state of its own.
class revision_set : public ranges::view_facade<revision_set, ranges::finite> {
 public:
  explicit revision_set(std::int64_t revision = 0) : revision_(revision) {}

  [[nodiscard]] std::int64_t size() const { return 4; }
  [[nodiscard]] std::int64_t revision() const { return revision_; }
  [[nodiscard]] state::dict state_dict() const { return {{"revision", revision_}}; }
  void load_state_dict(const state::value& stored) { revision_ = stored.get<std::int64_t>("revision"); }

 private:
  friend ranges::range_access;
  friend data::detail::index_cursor<revision_set>;

  [[nodiscard]] std::int64_t element(std::int64_t index) const { return 100 * revision_ + index; }
  [[nodiscard]] auto begin_cursor() const { return data::detail::index_cursor<revision_set>(this, 0); }
  [[nodiscard]] auto end_cursor() const { return data::detail::index_cursor<revision_set>(this, 4); }

  std::int64_t revision_;
};

}  // namespace

TEST_CASE("the state of a pipeline lists its stages and what they were made with", "[data][state]") {
  const auto expected =
      stage("transform", {{"seed", 8}},
            stage("batch", {{"batch_size", 2}, {"drop_last", 1}},
                  stage("take", {{"limit", 5}}, stage("transform", {}, stage("shuffle", {{"seed", 7}}, source)))));
  const auto check = [&](auto range) {
    const auto view = std::move(range) | data::shuffle(7) | data::transform(&same_number) | data::take(5) |
                      data::batch(2, {.drop_last = true}) |
                      data::transform([](numbers n, data::random_sequence&) { return n; }, 8);
    REQUIRE(state::equal(data::state_dict(view), expected));
  };
  check(number_set(9));
  check(number_stream(9));
  check(seekable_stream(9));
  check(std::list<std::int64_t>{1, 2, 3});
}

TEST_CASE("adaptors of range-v3 and containers have no level of their own", "[data][state]") {
  const auto expected = stage("batch", {{"batch_size", 2}, {"drop_last", 0}}, stage("shuffle", {{"seed", 7}}, source));
  std::vector<int> container{1, 2, 3};
  auto referring = container | data::shuffle(7) | ranges::views::transform([](int n) { return n; }) | data::batch(2);
  REQUIRE(state::equal(data::state_dict(referring), expected));
  data::load_state_dict(referring, expected);
  auto owning = std::vector<int>{1, 2, 3} | data::shuffle(7) | data::batch(2);
  REQUIRE(state::equal(data::state_dict(owning), expected));
  data::load_state_dict(owning, expected);
  REQUIRE(state::equal(data::state_dict(container), source));
  data::load_state_dict(container, source);
}

TEST_CASE("a state that was loaded is the state", "[data][state]") {
  const captured_stderr quiet;
  const auto check = [](auto make) {
    auto stored = make(std::uint64_t{1}, std::uint64_t{2});
    auto present = make(std::uint64_t{3}, std::numeric_limits<std::uint64_t>::max());
    REQUIRE_FALSE(state::equal(data::state_dict(present), data::state_dict(stored)));
    data::load_state_dict(present, data::state_dict(stored));
    REQUIRE(state::equal(data::state_dict(present), data::state_dict(stored)));
    data::load_state_dict(stored, state_of(make(std::uint64_t{3}, std::numeric_limits<std::uint64_t>::max())));
    REQUIRE(first_epoch(stored) == first_epoch(make(3, std::numeric_limits<std::uint64_t>::max())));
    REQUIRE(first_epoch(present) == first_epoch(make(1, 2)));
  };
  check([](std::uint64_t a, std::uint64_t b) {
    return number_set(9) | data::shuffle(a) | data::transform(&add_noise, b) | data::batch(4);
  });
  check([](std::uint64_t a, std::uint64_t b) {
    return number_stream(9) | data::shuffle(a) | data::transform(&add_noise, b) | data::batch(4);
  });
  check([](std::uint64_t a, std::uint64_t b) {
    return seekable_stream(9) | data::transform(&add_noise, a) | data::batch(4) | data::shuffle(b);
  });
}

TEST_CASE("a pipeline with other seeds goes on with the stored ones after every interruption", "[data][state]") {
  const captured_stderr quiet;
  const auto random_access = [](std::uint64_t seed) {
    return number_set(9) | data::shuffle(seed) | data::transform(&add_noise, seed + 1) | data::batch(2);
  };
  require_same_after_every_interruption([&] { return random_access(1); }, [&] { return random_access(50); }, 2);
  const auto stream = [](std::uint64_t seed) {
    return seekable_stream(9) | data::transform(&add_noise, seed + 1) | data::batch(2);
  };
  require_same_after_every_interruption([&] { return stream(1); }, [&] { return stream(50); }, 2);
}

TEST_CASE("a seed that is taken over is worth a warning with both", "[data][state]") {
  auto view = number_set(5) | data::shuffle(18446744073709551615U);
  captured_stderr messages;
  data::load_state_dict(view, state_of(number_set(5) | data::shuffle(18446744073709551615U)));
  REQUIRE(messages.text().empty());
  data::load_state_dict(view, state_of(number_set(5) | data::shuffle(41)));
  const auto text = messages.text();
  REQUIRE(contains(text, "data::shuffle: seed is 18446744073709551615 here and 41 in the loaded state"));
  REQUIRE(contains(text, "the loaded one is used"));
  data::load_state_dict(view, state_of(number_set(5) | data::shuffle(41)));
  REQUIRE(messages.text() == text);
}

TEST_CASE("sizes stay as they are, and a warning says so", "[data][state]") {
  const auto make = [](std::int64_t size, std::int64_t limit) {
    return number_set(20) | data::take(limit) | data::batch(size);
  };
  data::pass stored(make(2, 20));
  stored.begin(0, 3);
  data::pass pass(make(5, 12));
  captured_stderr messages;
  pass.load_state_dict(stored.state_dict());
  const auto text = messages.text();
  REQUIRE(contains(text, "data::batch: batch_size is 5 here and 2 in the loaded state; the present one is used"));
  REQUIRE(contains(text, "data::take: limit is 12 here and 20 in the loaded state; the present one is used"));
  REQUIRE(pass.size() == 3);
  REQUIRE(pass.exhausted());
  REQUIRE(state::equal(state::value(pass.state_dict()).at("stages"), data::state_dict(make(5, 12))));
}

TEST_CASE("a stream of batches of another size goes on where the next element begins", "[data][state]") {
  const captured_stderr quiet;
  data::pass stored(seekable_stream(20) | data::batch(2));
  stored.begin(0);
  for (int i = 0; i < 3; ++i, stored.advance()) static_cast<void>(stored.take());
  REQUIRE_FALSE(stored.exhausted());
  data::pass pass(seekable_stream(20) | data::batch(5));
  pass.load_state_dict(stored.state_dict());
  REQUIRE(pass.position() == 3);
  REQUIRE(pass.take() == numbers{6, 7, 8, 9, 10});
}

TEST_CASE("other stages are refused with their path, and nothing has changed then", "[data][state]") {
  auto view = number_set(20) | data::shuffle(1) | data::take(9) | data::transform(&add_noise, 2) | data::batch(3);
  const auto before = state_of(view);
  const auto elements = first_epoch(view);
  captured_stderr messages;
  const auto key = [&](const state::value& stored) {
    auto result = key_of_refusal(view, stored);
    REQUIRE(state::equal(data::state_dict(view), before));
    REQUIRE(first_epoch(view) == elements);
    return result;
  };
  const auto set = number_set(20);
  REQUIRE(key(state_of(set | data::shuffle(5))).empty());
  REQUIRE(key(state_of(set | data::shuffle(5) | data::batch(3))) == "below");
  REQUIRE(key(state_of(set | data::shuffle(5) | data::take(9) | data::transform(&same_number) | data::batch(3))) ==
          "below.seed");
  REQUIRE(key(state_of(set | data::shuffle(5) | data::transform(&add_noise, 6) | data::batch(3))) == "below.below");
  REQUIRE(key(state_of(set | data::take(9) | data::transform(&add_noise, 6) | data::batch(3))) == "below.below.below");
  REQUIRE(key(state_of(set | data::shuffle(4) | data::shuffle(5) | data::take(9) | data::transform(&add_noise, 6) |
                       data::batch(3))) == "below.below.below.below");
  REQUIRE(key(nullptr).empty());
  REQUIRE(key(state::dict{{"stage", 5}}).empty());
  REQUIRE(key(state::dict{{"stage", "batch"}, {"batch_size", 3}, {"drop_last", 0}}) == "below");
  REQUIRE(key(state::dict{{"stage", "batch"}, {"drop_last", 0}, {"below", source}}) == "batch_size");
  REQUIRE(key(state::dict{{"stage", "batch"}, {"batch_size", "3"}, {"drop_last", 0}, {"below", source}}) ==
          "batch_size");
  REQUIRE(key(state::dict{{"stage", "batch"}, {"batch_size", 3}, {"drop_last", 0}, {"size", 1}, {"below", source}}) ==
          "size");
  REQUIRE(messages.text().empty());
}

TEST_CASE("a refusal says what was expected, what was found and what to do", "[data][state]") {
  auto view = number_set(20) | data::shuffle(1) | data::batch(3);
  const auto stored = state_of(number_set(20) | data::take(1) | data::batch(3));
  const auto text = testing::message_of<state_error>([&] { data::load_state_dict(view, stored); });
  REQUIRE(contains(text, "below"));
  REQUIRE(contains(text, "'shuffle'"));
  REQUIRE(contains(text, "'take'"));
  REQUIRE(contains(text, "build the pipeline with the stages that it had"));
}

TEST_CASE("a pass names the path from its own state on", "[data][state]") {
  data::pass stored(number_set(20) | data::take(1) | data::batch(3));
  stored.begin(0);
  data::pass pass(number_set(20) | data::shuffle(1) | data::batch(3));
  const state::value state = stored.state_dict();
  for (const bool only_settings : {false, true}) {
    try {
      if (only_settings)
        pass.load_settings(state);
      else
        pass.load_state_dict(state);
      FAIL("accepted");
    } catch (const state_error& e) {
      REQUIRE(e.key() == "stages.below");
    }
  }
}

TEST_CASE("a data set keeps a state of its own below the stages", "[data][state]") {
  const auto expected = stage("shuffle", {{"seed", 1}}, state::dict{{"revision", 3}});
  SECTION("a view") {
    auto view = revision_set(3) | data::shuffle(1);
    REQUIRE(state::equal(data::state_dict(view), expected));
    auto other = revision_set(5) | data::shuffle(1);
    data::load_state_dict(other, expected);
    REQUIRE(first_epoch(other) == first_epoch(view));
  }
  SECTION("one that is referred to") {
    struct held : revision_set {
      using revision_set::revision_set;
      held(const held&) = delete;
      held& operator=(const held&) = delete;
    };
    held set(5);
    auto view = set | data::shuffle(1);
    data::load_state_dict(view, expected);
    REQUIRE(set.revision() == 3);
    REQUIRE(state::equal(data::state_dict(view), expected));
  }
  SECTION("what it throws carries the path, and comes before anything changes") {
    auto view = revision_set(5) | data::shuffle(7);
    const captured_stderr quiet;
    REQUIRE(key_of_refusal(view, stage("shuffle", {{"seed", 1}}, state::dict{{"version", 3}})) == "below.revision");
    REQUIRE(state::value(data::state_dict(view)).get<std::int64_t>("seed") == 7);
  }
  SECTION("and is not taken for one without") {
    auto without = number_set(4) | data::shuffle(1);
    REQUIRE(key_of_refusal(without, expected) == "below");
    auto with = revision_set(5) | data::shuffle(1);
    REQUIRE(key_of_refusal(with, stage("shuffle", {{"seed", 1}}, source)) == "below.revision");
  }
}

TEST_CASE("the settings of a view that is being read are told without disturbing it", "[data][state]") {
  auto view = seekable_stream(4) | data::transform(&same_number);
  auto it = view.begin();
  ++it;
  REQUIRE(state::equal(data::state_dict(view), stage("transform", {}, source)));
  REQUIRE(*it == 1);
}

}  // namespace data_state_test
