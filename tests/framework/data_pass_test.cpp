#include "rondo/data/pass.hpp"

#include <ATen/Functions.h>

#include <cstdint>
#include <list>
#include <range/v3/range/concepts.hpp>
#include <range/v3/view/iota.hpp>
#include <range/v3/view/take_while.hpp>
#include <range/v3/view/transform.hpp>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "rondo/data/batch.hpp"
#include "rondo/data/prefetch.hpp"
#include "rondo/data/random.hpp"
#include "rondo/data/sample_error.hpp"
#include "rondo/data/shuffle.hpp"
#include "rondo/data/take.hpp"
#include "rondo/data/tensor_dataset.hpp"
#include "rondo/data/transform.hpp"
#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/pipelines.hpp"

namespace data_pass_test {

using namespace rondo;
using rondo::testing::contains;
using rondo::testing::message_of;
using rondo::testing::no_reads;
using rondo::testing::number_set;
using rondo::testing::number_stream;
using rondo::testing::require_same_after_every_interruption;
using rondo::testing::rest_of;
using rondo::testing::seekable_stream;
using rondo::testing::wide_stream;

namespace {

using numbers = std::vector<std::int64_t>;

std::list<std::int64_t> list_of(std::int64_t n) {
  std::list<std::int64_t> result;
  for (std::int64_t i = 0; i < n; ++i) result.push_back(i);
  return result;
}

at::Tensor mark(std::int64_t n, data::place at) { return at::tensor({n, at.epoch, at.index}, at::kLong); }
at::Tensor noise(std::int64_t n, data::random_sequence& random) {
  return at::randn({3}, data::torch_generator(random)) + static_cast<double>(n);
}
const auto count_items = [](const auto& batch, data::place at) {
  return at::tensor({data::item_count(batch), at.index}, at::kLong);
};

/// The numbers 5 to 1, with a size that says how many are left.
class stack : public ranges::view_facade<stack, ranges::unknown> {
 public:
  [[nodiscard]] std::int64_t size() const { return left_; }

 private:
  friend ranges::range_access;
  struct cursor {
    using single_pass = std::true_type;
    stack* from = nullptr;
    [[nodiscard]] std::int64_t read() const { return from->left_; }
    [[nodiscard]] bool equal(ranges::default_sentinel_t) const { return from->left_ == 0; }
    void next() { --from->left_; }
  };
  cursor begin_cursor() {
    left_ = 5;
    return {this};
  }
  [[nodiscard]] ranges::default_sentinel_t end_cursor() const { return {}; }
  std::int64_t left_ = 5;
};

/// Every stage and many of their combinations, over what `source` makes.
template <class Source>
void require_resumable(Source source) {
  const auto check = [&](auto stages) { require_same_after_every_interruption([&] { return source() | stages; }); };
  SECTION("transform") { check(data::transform(&mark)); }
  SECTION("random transform") { check(data::transform(&noise, 5)); }
  SECTION("batch") { check(data::batch(3)); }
  SECTION("batch of full ones") { check(data::batch(3, {.drop_last = true})); }
  SECTION("batch of one") { check(data::batch(1)); }
  SECTION("batch of all") { check(data::batch(100)); }
  SECTION("shuffle") { check(data::shuffle(4)); }
  SECTION("take") { check(data::take(5)); }
  SECTION("take all") { check(data::take(100)); }
  SECTION("take none") { check(data::take(0)); }
  SECTION("shuffle, transform, batch") { check(data::shuffle(4) | data::transform(&noise, 5) | data::batch(3)); }
  SECTION("transform, batch, transform, take") {
    check(data::transform(&mark) | data::batch(2) | data::transform(count_items) | data::take(4));
  }
  SECTION("batch, transform") { check(data::batch(2) | data::transform(count_items)); }
  SECTION("take, shuffle, take, batch") { check(data::take(9) | data::shuffle(1) | data::take(7) | data::batch(2)); }
  SECTION("batch of batches") { check(data::batch(2) | data::batch(2)); }
  SECTION("batch, shuffle, transform") { check(data::batch(2) | data::shuffle(8) | data::transform(count_items)); }
  SECTION("shuffle twice") { check(data::shuffle(1) | data::shuffle(2)); }
}

/// For kinds of sources that differ from one of those only in how they find a place again: each stage once.
template <class Source>
void require_resumable_stages(Source source) {
  const auto check = [&](auto stages) { require_same_after_every_interruption([&] { return source() | stages; }); };
  SECTION("transform") { check(data::transform(&mark)); }
  SECTION("batch of full ones") { check(data::batch(3, {.drop_last = true})); }
  SECTION("shuffle, transform, batch") { check(data::shuffle(4) | data::transform(&noise, 5) | data::batch(3)); }
  SECTION("batch, transform, take") { check(data::batch(2) | data::transform(count_items) | data::take(4)); }
}

/// What a resumed pass asks its source for until it has its first element.
template <class Stages>
std::int64_t reads_after_load(std::int64_t position, Stages stages) {
  const auto state = [&] {
    data::pass first(seekable_stream(position * 10) | stages);
    first.begin(0);
    for (std::int64_t i = 0; i < position; ++i) {
      REQUIRE_FALSE(first.exhausted());
      first.advance();
    }
    return state::clone(first.state_dict());
  }();
  const auto reads = no_reads();
  data::pass resumed(seekable_stream(position * 10, reads) | stages);
  resumed.load_state_dict(state);
  static_cast<void>(resumed.take());
  return *reads;
}

}  // namespace

TEST_CASE("a pass walks over a pipeline, epoch after epoch", "[data][pass]") {
  data::pass pass(number_set(5) | data::batch(2));
  REQUIRE(pass.size() == 3);
  for (const std::int64_t epoch : {0, 1, 7}) {
    pass.begin(epoch);
    REQUIRE(pass.position() == 0);
    const auto base = 1000 * epoch;
    REQUIRE(rest_of(pass) == std::vector<numbers>{{base, base + 1}, {base + 2, base + 3}, {base + 4}});
    REQUIRE(pass.position() == 3);
    REQUIRE(pass.exhausted());
    REQUIRE_FALSE(pass.ready());
  }
}

TEST_CASE("a pass knows the size where the range does", "[data][pass]") {
  REQUIRE(data::pass(number_set(5)).size() == 5);
  REQUIRE(data::pass(list_of(5) | data::take(3)).size() == 3);
  REQUIRE_FALSE(data::pass(number_stream(5)).size());
  REQUIRE_FALSE(data::pass(ranges::views::iota(0)).size());
}

TEST_CASE("a size that shrinks while the range is read is not taken for the number of elements", "[data][pass]") {
  data::pass pass{stack()};
  data::pass batches(stack() | data::batch(2));
  for (const std::int64_t epoch : {0, 1}) {
    pass.begin(epoch);
    REQUIRE(rest_of(pass) == numbers{5, 4, 3, 2, 1});
    batches.begin(epoch);
    REQUIRE(rest_of(batches) == std::vector<numbers>{{5, 4}, {3, 2}, {1}});
  }
}

TEST_CASE("a pass goes over empty ranges", "[data][pass]") {
  const auto check = [](auto view) {
    data::pass pass(std::move(view));
    pass.begin(0);
    REQUIRE(pass.exhausted());
    REQUIRE_THROWS_AS(pass.take(), error);
  };
  check(number_set(0));
  check(number_set(0) | data::batch(2));
  check(number_stream(0));
  check(number_stream(0) | data::shuffle(1) | data::batch(2));
  check(seekable_stream(0) | data::take(3));
  check(data::tensor_dataset() | data::batch(2));
}

// ---- interruption ----

TEST_CASE("a random access pipeline goes on after every interruption", "[data][pass]") {
  require_resumable([] { return number_set(11); });
}
TEST_CASE("a pipeline over a list goes on after every interruption", "[data][pass]") {
  require_resumable_stages([] { return list_of(11) | data::transform([](std::int64_t n) { return n; }); });
}
TEST_CASE("a pipeline over a stream without positions goes on after every interruption", "[data][pass]") {
  require_resumable([] { return number_stream(11); });
}
TEST_CASE("a pipeline over a stream with a number as position goes on after every interruption", "[data][pass]") {
  require_resumable([] { return seekable_stream(11); });
}
TEST_CASE("a pipeline over a stream with several numbers as position goes on after every interruption",
          "[data][pass]") {
  require_resumable_stages([] { return wide_stream(11); });
}
TEST_CASE("a pipeline over a taken endless range goes on after every interruption", "[data][pass]") {
  require_resumable_stages([] { return ranges::views::iota(std::int64_t{0}) | data::take(11); });
}
TEST_CASE("a pipeline over range-v3's own views goes on after every interruption", "[data][pass]") {
  require_resumable_stages([] {
    return seekable_stream(14) | ranges::views::transform([](std::int64_t n) { return 2 * n; }) |
           ranges::views::take_while([](std::int64_t n) { return n % 1000 < 22; });
  });
}

TEST_CASE("stages over prefetched elements go on after every interruption", "[data][pass]") {
  SECTION("of a random access range") {
    require_resumable_stages([] { return number_set(11) | data::prefetch(3, 2); });
  }
  SECTION("of a stream without positions") {
    require_resumable_stages([] { return number_stream(11) | data::prefetch(3); });
  }
  SECTION("of a seekable stream") {
    require_resumable_stages([] { return seekable_stream(11) | data::prefetch(3); });
  }
}
TEST_CASE("prefetched stages go on after every interruption", "[data][pass]") {
  const auto stages = data::shuffle(4) | data::transform(&noise, 5) | data::batch(3);
  require_same_after_every_interruption([&] { return number_set(11) | stages | data::prefetch(2, 2); });
  require_same_after_every_interruption([&] { return number_stream(11) | stages | data::prefetch(2); });
  const auto in_order = data::transform(&mark) | data::batch(3) | data::transform(count_items);
  require_same_after_every_interruption([&] { return seekable_stream(11) | in_order | data::prefetch(2); });
  require_same_after_every_interruption(
      [&] { return wide_stream(11) | data::prefetch(4) | in_order | data::prefetch(1); });
}
TEST_CASE("a pipeline goes on after every interruption with or without prefetching", "[data][pass]") {
  const auto stages = data::shuffle(4) | data::transform(&noise, 5) | data::batch(3);
  const auto plain = [&] { return number_set(11) | stages; };
  const auto ahead = [&] { return number_set(11) | stages | data::prefetch(2, 2); };
  require_same_after_every_interruption(plain, ahead, 2);
  require_same_after_every_interruption(ahead, plain, 2);
  const auto in_order = data::transform(&mark) | data::batch(3);
  const auto plain_stream = [&] { return seekable_stream(11) | in_order; };
  const auto stream_ahead = [&] { return seekable_stream(11) | in_order | data::prefetch(2); };
  require_same_after_every_interruption(plain_stream, stream_ahead, 2);
  require_same_after_every_interruption(stream_ahead, plain_stream, 2);
}

TEST_CASE("a pass over a range without any stage goes on after every interruption", "[data][pass]") {
  const auto check = [](auto make) { require_same_after_every_interruption(make); };
  check([] { return number_set(7); });
  check([] { return number_stream(7); });
  check([] { return seekable_stream(7); });
  check([] { return wide_stream(7); });
  const auto list = list_of(7);
  check([&] { return data::detail::all(list); });
  check([&] { return data::detail::all(list_of(7)); });
  const numbers container{4, 5, 6};
  check([&] { return data::detail::all(container); });
}

TEST_CASE("examples of a tensor data set go on after every interruption, bit by bit", "[data][pass]") {
  const data::tensor_dataset set(at::arange(46, at::kFloat).reshape({23, 2}).sin(), at::arange(23));
  const auto flip = [](data::example e, data::random_sequence& random) {
    if (random.below(2) == 1) e.data = e.data.flip(0);
    e.data += at::rand({1}, data::torch_generator(random));
    return e;
  };
  require_same_after_every_interruption(
      [&] { return set | data::shuffle(3) | data::transform(flip, 9) | data::batch(4); });
  require_same_after_every_interruption([&] { return set | data::shuffle(3) | data::batch(4); });
}

TEST_CASE("a stream that is no view and belongs to nobody else can seek", "[data][pass]") {
  struct tape : seekable_stream {
    using seekable_stream::seekable_stream;
    tape(const tape&) = delete;
    tape(tape&&) = default;
    tape& operator=(const tape&) = delete;
    tape& operator=(tape&&) = default;
  };
  static_assert(!ranges::view_<tape>);
  SECTION("taken over") {
    const auto make = [] { return tape(9) | data::batch(2); };
    static_assert(data::detail::seekable<decltype(make())>);
    require_same_after_every_interruption(make);
  }
  SECTION("referred to") {
    std::list<tape> tapes;
    const auto make = [&] { return tapes.emplace_back(9) | data::batch(2); };
    static_assert(data::detail::seekable<decltype(make())>);
    require_same_after_every_interruption(make);
  }
}

TEST_CASE("elements that can only be moved go through a pass", "[data][pass]") {
  const auto make = [] {
    return seekable_stream(4) | data::transform([](std::int64_t n) { return std::make_unique<std::int64_t>(n); });
  };
  data::pass pass(make());
  pass.begin(0);
  pass.advance();
  REQUIRE_FALSE(pass.exhausted());
  auto resumed = data::pass(make());
  resumed.load_state_dict(pass.state_dict());
  for (std::int64_t i = 1; i < 4; ++i, resumed.advance()) REQUIRE(*resumed.take() == i);
  REQUIRE(resumed.exhausted());
}

// ---- what going somewhere costs ----

TEST_CASE("a random access pipeline goes anywhere and reads only what it gives", "[data][pass]") {
  const auto reads = no_reads();
  data::pass pass(number_set(100000, reads) | data::shuffle(1) | data::transform(&noise, 2) | data::batch(10) |
                  data::take(9000));
  for (const std::int64_t position : {0, 1, 100, 8999}) {
    *reads = 0;
    pass.begin(3, position);
    const state::value state = pass.state_dict();
    REQUIRE(*reads == 0);
    const auto expected = pass.take();
    REQUIRE(*reads == 10);
    pass.begin(0);
    pass.load_state_dict(state);
    REQUIRE_FALSE(pass.exhausted());
    REQUIRE(*reads == 10);
    REQUIRE(testing::same(pass.take(), expected));
    REQUIRE(*reads == 20);
  }
}

TEST_CASE("a seekable stream goes on at any place with the same reads", "[data][pass]") {
  const auto check = [](auto stages, std::int64_t expected) {
    for (const std::int64_t position : {1, 2, 10, 300}) {
      CAPTURE(position);
      REQUIRE(reads_after_load(position, stages) == expected);
    }
  };
  // The element before the current one was the last that was looked at, so it is made again; batch reads no further
  // than it must.
  check(data::transform(&mark), 2);
  check(data::batch(5), 10);
  check(data::transform(&mark) | data::batch(5) | data::transform(count_items), 10);
  check(data::take(400), 2);
}

TEST_CASE("a stream that was looked at goes on with that very element", "[data][pass]") {
  data::pass first(seekable_stream(1000) | data::batch(5));
  first.begin(0);
  for (int i = 0; i < 100; ++i) {
    REQUIRE_FALSE(first.exhausted());
    first.advance();
  }
  REQUIRE_FALSE(first.exhausted());
  const auto reads = no_reads();
  data::pass resumed(seekable_stream(1000, reads) | data::batch(5));
  resumed.load_state_dict(first.state_dict());
  REQUIRE(resumed.take() == numbers{500, 501, 502, 503, 504});
  REQUIRE(*reads == 5);
}

TEST_CASE("an endless random access range goes anywhere at once", "[data][pass]") {
  std::int64_t calls = 0;
  data::pass pass(ranges::views::iota(std::int64_t{0}) | data::transform([&](std::int64_t n, data::place at) {
                    ++calls;
                    return n + at.index;
                  }) |
                  data::batch(2));
  pass.begin(0, 1000000000);
  REQUIRE(pass.take() == numbers{4000000000, 4000000002});
  REQUIRE(calls == 2);
  const state::value state = pass.state_dict();
  REQUIRE(state.at("stream").is_null());
  pass.begin(0);
  calls = 0;
  pass.load_state_dict(state);
  REQUIRE(pass.take() == numbers{4000000000, 4000000002});
  REQUIRE(calls == 2);
}

TEST_CASE("a stream without positions reads the elements before again", "[data][pass]") {
  data::pass first(number_stream(100) | data::batch(5));
  first.begin(0, 7);
  const state::value state = first.state_dict();
  REQUIRE(state.at("stream").is_null());
  const auto reads = no_reads();
  data::pass resumed(number_stream(100, reads) | data::batch(5));
  resumed.load_state_dict(state);
  REQUIRE(resumed.take().front() == 35);
  REQUIRE(*reads == 40);
}

TEST_CASE("skipping is walking over what is skipped, also beyond the end", "[data][pass]") {
  const auto check = [](auto make) {
    data::pass pass(make());
    pass.begin(2);
    const auto all = rest_of(pass);
    for (std::size_t skip = 0; skip <= all.size() + 2; ++skip) {
      CAPTURE(skip);
      pass.begin(2, static_cast<std::int64_t>(skip));
      REQUIRE(pass.position() == static_cast<std::int64_t>(skip));
      const auto first = all.begin() + static_cast<std::ptrdiff_t>(std::min(skip, all.size()));
      REQUIRE(testing::same(rest_of(pass), {first, all.end()}));
    }
  };
  check([] { return number_set(11) | data::shuffle(1) | data::batch(2); });
  check([] { return number_stream(11) | data::shuffle(1) | data::batch(2); });
  check([] { return number_stream(11) | data::batch(2); });
  check([] { return seekable_stream(11) | data::batch(2); });
  check([] { return list_of(11) | data::batch(2); });
  check([] { return list_of(11) | data::shuffle(4) | data::transform(&mark); });
}

// ---- when elements are made ----

TEST_CASE("a pass makes no element before it is asked for", "[data][pass]") {
  SECTION("random access: when it is taken") {
    const auto reads = no_reads();
    data::pass pass(number_set(3, reads) | data::batch(1));
    pass.begin(0);
    REQUIRE_FALSE(pass.exhausted());
    REQUIRE(*reads == 0);
    static_cast<void>(pass.take());
    pass.advance();
    static_cast<void>(pass.state_dict());
    REQUIRE(*reads == 1);
  }
  SECTION("a stream that knows its size: when it is taken") {
    int calls = 0;
    data::pass pass(list_of(3) | data::transform([&](std::int64_t n) {
                      ++calls;
                      return n;
                    }));
    pass.begin(0);
    static_cast<void>(pass.take());
    pass.advance();
    REQUIRE_FALSE(pass.exhausted());
    static_cast<void>(pass.state_dict());
    REQUIRE(calls == 1);
    REQUIRE(pass.take() == 1);
  }
  SECTION("a stream that does not: when somebody asks whether there is one") {
    const auto reads = no_reads();
    data::pass pass(number_stream(3, reads));
    pass.begin(0);
    static_cast<void>(pass.take());
    pass.advance();
    static_cast<void>(pass.state_dict());
    REQUIRE(*reads == 1);
    REQUIRE_FALSE(pass.exhausted());
    REQUIRE(*reads == 2);
  }
}

TEST_CASE("a resumed pass draws from the default generator when an unbroken one does", "[data][pass]") {
  const auto check = [](auto make) {
    at::manual_seed(3);
    data::pass whole(make());
    whole.begin(0);
    std::vector<at::Tensor> expected;
    std::vector<std::pair<state::value, at::Tensor>> moments;
    while (!whole.exhausted()) {
      expected.push_back(whole.take());
      whole.advance();
      if (whole.exhausted()) break;
      moments.emplace_back(state::clone(whole.state_dict()), at::detail::getDefaultCPUGenerator().get_state());
    }
    for (const auto& [state, random] : moments) {
      auto position = static_cast<std::size_t>(state.at("position").template as<std::int64_t>());
      data::pass resumed(make());
      resumed.load_state_dict(state);
      const bool is_made = !resumed.size();
      REQUIRE_FALSE(resumed.exhausted());
      auto generator = at::detail::getDefaultCPUGenerator();
      generator.set_state(random);
      if (is_made) {  // before the state was saved, from what the generator gave then
        resumed.advance();
        ++position;
      }
      for (; !resumed.exhausted(); resumed.advance()) REQUIRE(testing::same(resumed.take(), expected.at(position++)));
      REQUIRE(position == expected.size());
    }
  };
  const auto draw = data::transform([](std::int64_t n) { return at::rand({2}) + n; });
  SECTION("random access") {
    check([&] { return number_set(6) | draw; });
  }
  SECTION("a stream of known size") {
    check([&] { return list_of(6) | draw; });
  }
  SECTION("a shuffled stream of known size") {
    check([&] { return list_of(6) | data::shuffle(1) | draw; });
  }
  SECTION("a stream of unknown size") {
    check([&] { return number_stream(6) | draw; });
  }
  SECTION("a seekable stream") {
    check([&] { return seekable_stream(6) | draw; });
  }
}

// ---- states ----

TEST_CASE("the state of a pass says where it is and what it walks over", "[data][pass]") {
  data::pass pass(seekable_stream(20) | data::transform(&mark) | data::batch(4));
  pass.begin(2);
  pass.advance();
  REQUIRE_FALSE(pass.exhausted());
  const state::value state = pass.state_dict();
  const state::dict stages{{"stage", "batch"},
                           {"batch_size", 4},
                           {"drop_last", 0},
                           {"below", state::dict{{"stage", "transform"}, {"below", state::dict{{"stage", "source"}}}}}};
  REQUIRE(state::equal(
      state, state::dict{{"epoch", 2}, {"position", 1}, {"stream", state::list{1, 47, 4}}, {"stages", stages}}));
}

TEST_CASE("pipelines whose positions follow from the index store no other", "[data][pass]") {
  const auto check = [](auto view) {
    data::pass pass(std::move(view));
    pass.begin(0);
    static_cast<void>(pass.take());
    pass.advance();
    static_cast<void>(pass.exhausted());
    REQUIRE(state::value(pass.state_dict()).at("stream").is_null());
  };
  check(number_set(5) | data::batch(2));
  check(seekable_stream(5) | data::shuffle(2) | data::batch(2));
  check(number_stream(5) | data::batch(2));
}

TEST_CASE("a position of another kind of stream is found by counting", "[data][pass]") {
  data::pass first(seekable_stream(9));
  first.begin(0);
  for (int i = 0; i < 4; ++i, first.advance()) static_cast<void>(first.take());
  const state::value state = first.state_dict();
  REQUIRE_FALSE(state.at("stream").is_null());
  const auto check = [&](auto view) {
    data::pass pass(std::move(view));
    pass.load_state_dict(state);
    REQUIRE(rest_of(pass) == numbers{4, 5, 6, 7, 8});
  };
  check(number_set(9));
  check(number_stream(9));
  check(wide_stream(9));
}

TEST_CASE("a pass takes over settings without going anywhere", "[data][pass]") {
  data::pass stored(number_set(20) | data::shuffle(5));
  stored.begin(1, 6);
  data::pass pass(number_set(20) | data::shuffle(5));
  pass.load_settings(stored.state_dict());
  pass.begin(0);
  REQUIRE(pass.position() == 0);
  REQUIRE(rest_of(pass).size() == 20);
}

TEST_CASE("what is no state of a pass is refused with its path, and changes nothing", "[data][pass]") {
  data::pass pass(seekable_stream(9) | data::batch(2));
  pass.begin(0);
  static_cast<void>(pass.take());
  pass.advance();
  static_cast<void>(pass.exhausted());
  const state::value good = state::clone(pass.state_dict());
  const auto key_of = [&](const char* key, state::value v) -> std::string {
    state::value bad = state::clone(good);
    bad.as<state::dict>()[key] = std::move(v);
    try {
      pass.load_state_dict(bad);
    } catch (const state_error& e) {
      REQUIRE(state::equal(pass.state_dict(), good));
      return e.key();
    }
    return "nothing";
  };
  REQUIRE(key_of("epoch", -1) == "epoch");
  REQUIRE(key_of("epoch", "two") == "epoch");
  REQUIRE(key_of("position", -1) == "position");
  REQUIRE(key_of("position", nullptr) == "position");
  REQUIRE(key_of("stream", 3) == "stream");
  REQUIRE(key_of("stream", state::list{2, 7}) == "stream");
  REQUIRE(key_of("stream", state::list{-1, 7}) == "stream");
  REQUIRE(key_of("stream", state::list{1, "x"}) == "stream");
  REQUIRE(key_of("stages", state::dict{{"stage", "shuffle"}}) == "stages");
  REQUIRE(key_of("stages", 3) == "stages");
  REQUIRE_THROWS_AS(pass.load_state_dict(state::dict{{"epoch", 1}}), state_error);
  REQUIRE(pass.take() == numbers{2, 3});
}

// ---- errors ----

TEST_CASE("a pass has to begin before it is read, and again after a move", "[data][pass]") {
  data::pass pass(number_set(3) | data::batch(1));
  const auto refuses = [](auto& p) {
    REQUIRE(contains(message_of<error>([&] { static_cast<void>(p.take()); }), "begin"));
    REQUIRE_THROWS_AS(p.exhausted(), error);
    REQUIRE_THROWS_AS(p.advance(), error);
  };
  refuses(pass);
  pass.begin(0);
  pass.advance();
  auto moved = std::move(pass);
  refuses(moved);
  moved.begin(0, 1);
  REQUIRE(moved.take() == numbers{1});
}

TEST_CASE("what making an element of a stream throws comes when it is taken, and again until the next begin",
          "[data][pass]") {
  bool fails = true;
  const auto check = [&](auto view) {
    data::pass pass(std::move(view));
    pass.begin(1);
    REQUIRE(pass.take() == 1000);
    pass.advance();
    for (int i = 0; i < 2; ++i) {
      REQUIRE_FALSE(pass.exhausted());
      try {
        static_cast<void>(pass.take());
        FAIL("no error");
      } catch (const data::sample_error& e) {
        REQUIRE(e.epoch() == 1);
        REQUIRE(e.index() == 1);
      }
      pass.advance();
      REQUIRE(pass.position() == 1);
    }
    const state::value state = pass.state_dict();
    fails = false;
    pass.begin(1);
    REQUIRE(rest_of(pass).size() == 3);
    pass.load_state_dict(state);
    REQUIRE(rest_of(pass) == numbers{1001, 1002});
  };
  const auto fail = data::transform([&](std::int64_t n) {
    if (fails && n % 1000 == 1) throw std::runtime_error("broken");
    return n;
  });
  SECTION("without positions") { check(number_stream(3) | fail); }
  SECTION("with positions") { check(seekable_stream(3) | fail); }
}

TEST_CASE("an element that fails in a random access pipeline does not stop the others", "[data][pass]") {
  data::pass pass(number_set(3) | data::transform([](std::int64_t n) {
                    if (n == 1) throw std::runtime_error("broken");
                    return n;
                  }));
  pass.begin(0);
  REQUIRE(pass.take() == 0);
  pass.advance();
  REQUIRE_THROWS_AS(pass.take(), data::sample_error);
  pass.advance();
  REQUIRE(pass.take() == 2);
}

TEST_CASE("what beginning throws comes when the first element is taken", "[data][pass]") {
  data::pass pass(number_stream(3) | data::transform([](std::int64_t n) -> std::int64_t {
                    throw std::runtime_error("broken " + std::to_string(n));
                  }));
  pass.begin(0);
  REQUIRE_FALSE(pass.exhausted());
  REQUIRE(contains(message_of<data::sample_error>([&] { static_cast<void>(pass.take()); }), "broken 0"));
}

}  // namespace data_pass_test
