#include "rondo/data/prefetch.hpp"

#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <pthread.h>
#include <signal.h>

#include <asio/system_error.hpp>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iterator>
#include <limits>
#include <list>
#include <memory>
#include <optional>
#include <range/v3/range/concepts.hpp>
#include <range/v3/view/iota.hpp>
#include <range/v3/view/take.hpp>
#include <range/v3/view/transform.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "rondo/data/batch.hpp"
#include "rondo/data/pass.hpp"
#include "rondo/data/random.hpp"
#include "rondo/data/sample_error.hpp"
#include "rondo/data/shuffle.hpp"
#include "rondo/data/take.hpp"
#include "rondo/data/tensor_dataset.hpp"
#include "rondo/data/transform.hpp"
#include "rondo/error.hpp"
#include "support/abandon.hpp"
#include "support/catch.hpp"
#include "support/gate.hpp"
#include "support/messages.hpp"

namespace data_prefetch_test {

using namespace rondo;
using rondo::testing::contains;
using rondo::testing::gate;
using rondo::testing::message_of;
using support::tracked;
using support::world;

namespace {

template <class Range>
auto read(Range&& range) {
  std::vector<std::remove_cvref_t<decltype(*range.begin())>> elements;
  for (auto&& e : range) elements.push_back(e);
  return elements;
}

std::vector<int> counting(int n) {
  std::vector<int> numbers;
  for (int i = 0; i < n; ++i) numbers.push_back(i);
  return numbers;
}

/// A gate that stops nobody and counts who passes.
class turnstile : public gate {
 public:
  turnstile() { open(); }
};

/// Numbers of a program's own, read one after the other, that know where they are.
class tape {
 public:
  explicit tape(std::int64_t length) : length_(length) {}

  class iterator {
   public:
    using value_type = std::int64_t;
    using difference_type = std::ptrdiff_t;
    using iterator_category = std::input_iterator_tag;
    using reference = std::int64_t;
    using pointer = void;
    iterator() = default;
    explicit iterator(tape* from) : from_(from) {}
    std::int64_t operator*() const { return from_->at_ * from_->at_; }
    iterator& operator++() {
      ++from_->at_;
      ++from_->steps;
      return *this;
    }
    void operator++(int) { ++*this; }
    friend bool operator==(const iterator& i, ranges::default_sentinel_t) { return i.from_->at_end(); }

   private:
    tape* from_ = nullptr;
  };

  iterator begin() {
    at_ = std::exchange(sought_, 0);
    return iterator(this);
  }
  [[nodiscard]] ranges::default_sentinel_t end() const { return {}; }
  [[nodiscard]] std::int64_t tell() const { return at_; }
  void seek(std::int64_t position) { sought_ = position; }
  [[nodiscard]] bool at_end() const { return at_ >= length_; }

  int steps = 0;

 private:
  std::int64_t length_;
  std::int64_t at_ = 0;
  std::int64_t sought_ = 0;
};

/// While it lives, LibTorch uses so many threads.
class torch_threads {
 public:
  explicit torch_threads(int number) : before_(at::get_num_threads()) { at::set_num_threads(number); }
  torch_threads(const torch_threads&) = delete;
  torch_threads& operator=(const torch_threads&) = delete;
  ~torch_threads() { at::set_num_threads(before_); }

 private:
  int before_;
};

int threads_of_the_process() {
  std::ifstream status("/proc/self/status");
  std::string word;
  while (status >> word)
    if (word == "Threads:") break;
  int number = 0;
  status >> number;
  return number;
}

bool same(const data::example& a, const data::example& b) { return a.data.equal(b.data) && a.target.equal(b.target); }

}  // namespace

TEST_CASE("prefetched elements are those of the range, whatever depth, workers and epoch", "[data][prefetch]") {
  const data::tensor_dataset set(at::arange(37 * 12, at::kFloat).reshape({37, 3, 4}), at::arange(37));
  auto plain = set | data::shuffle(3) | data::transform([](data::example e, data::place at) {
                 data::random_sequence random(data::sample_seed(7, at.epoch, at.index));
                 e.data.mul_(random.uniform());
                 return e;
               }) |
               data::batch(4) | data::transform([](data::example b) {
                 b.data = b.data.div(b.data.sum());
                 return b;
               });
  for (const std::int64_t workers : {0, 1, 2, 4}) {
    for (const std::int64_t depth : {1, 2, 3, 7, 10, 1000}) {
      auto ahead = plain | data::prefetch(depth, workers);
      REQUIRE(ahead.size() == 10);
      for (const std::int64_t epoch : {0, 1, 5}) {
        data::set_epoch(plain, epoch);
        data::set_epoch(ahead, epoch);
        std::int64_t k = 0;
        for (const auto& b : ahead) REQUIRE(same(b, plain.begin()[k++]));
        REQUIRE(k == 10);
      }
    }
  }
}

TEST_CASE("a prefetched stream has the elements of the stream", "[data][prefetch]") {
  const std::list<int> numbers{4, 1, 3, 9, 2, 8, 6, 5, 7};
  auto plain = numbers | data::shuffle(2) | data::transform([](int n, data::place at) {
                 return static_cast<double>(n + 100 * at.epoch) + 0.1 * static_cast<double>(at.index);
               }) |
               data::batch(2);
  for (const std::int64_t workers : {0, 1}) {
    for (const std::int64_t depth : {1, 2, 5, 100}) {
      auto ahead = plain | data::prefetch(depth, workers);
      REQUIRE(ahead.size() == 5);
      for (const std::int64_t epoch : {0, 1, 5}) {
        data::set_epoch(plain, epoch);
        data::set_epoch(ahead, epoch);
        const auto expected = read(plain);
        REQUIRE(read(ahead) == expected);
        REQUIRE(read(ahead) == expected);
      }
    }
  }
}

TEST_CASE("a prefetched range is a stream that is sized when the range is", "[data][prefetch]") {
  auto ahead = counting(3) | data::prefetch(2);
  using view = decltype(ahead);
  static_assert(ranges::view_<view>);
  static_assert(ranges::input_range<view>);
  static_assert(!ranges::forward_range<view>);
  static_assert(data::detail::sized<view>);
  REQUIRE(ahead.size() == 3);
  auto endless = ranges::views::iota(5) | data::prefetch(4);
  static_assert(!data::detail::sized<decltype(endless)>);
  REQUIRE(read(endless | ranges::views::take(3)) == std::vector{5, 6, 7});
  REQUIRE(read(std::vector<int>() | data::prefetch(4, 2)).empty());
  REQUIRE(read(std::list<int>() | data::prefetch(4)).empty());
}

TEST_CASE("stages over a prefetched range, and prefetching twice", "[data][prefetch]") {
  const auto twice = [](int n) { return 2 * n; };
  const auto expected = read(counting(20) | data::transform(twice) | data::batch(3));
  for (const std::int64_t workers : {0, 1, 3}) {
    auto once = counting(20) | data::transform(twice) | data::prefetch(4, workers) | data::batch(3);
    REQUIRE(read(once) == expected);
    auto both = counting(20) | data::transform(twice) | data::prefetch(4, workers) | data::batch(3) | data::prefetch(2);
    REQUIRE(read(both) == expected);
    auto it = both.begin();
    ++it;
    REQUIRE(*it == expected[1]);
    auto copy = both;
    REQUIRE(read(copy) == expected);
    REQUIRE(*++it == expected[2]);
  }
}

TEST_CASE("elements that can only be moved are prefetched", "[data][prefetch]") {
  const auto own = [](int n) { return std::make_unique<int>(n); };
  for (const std::int64_t workers : {0, 1}) {
    int expected = 0;
    for (auto& p : counting(5) | data::transform(own) | data::prefetch(2, workers)) REQUIRE(*p == expected++);
    for (auto& p : std::list<int>{5, 6} | data::transform(own) | data::prefetch(2, workers)) REQUIRE(*p == expected++);
    REQUIRE(expected == 7);
  }
}

TEST_CASE("elements come in order, in whatever order they are finished", "[data][prefetch]") {
  gate first_held;
  turnstile others;
  auto ahead = counting(12) | data::transform([&](int n) {
                 if (n == 0)
                   first_held.pass();
                 else if (n < 5)
                   others.pass();
                 return n;
               }) |
               data::prefetch(5, 2);
  auto it = ahead.begin();
  others.await_arrival(4);  // the elements after the first one have all been begun by the other worker
  REQUIRE(ahead.ready().has_value());
  first_held.open();
  for (int n = 0; n < 12; ++n, ++it) REQUIRE(*it == n);
  REQUIRE(it == ahead.end());
}

TEST_CASE("never more elements than the depth are ahead", "[data][prefetch]") {
  for (const int depth : {1, 2, 5}) {
    for (const int workers : {1, 4}) {
      std::atomic<int> reading{0};  // elements that have been read or are about to be
      std::atomic<int> furthest{0};
      turnstile begun;
      auto ahead = counting(300) | data::transform([&](int n) {
                     const int distance = n + 1 - reading;
                     int before = furthest;
                     while (before < distance && !furthest.compare_exchange_weak(before, distance)) {
                     }
                     begun.pass();
                     return n;
                   }) |
                   data::prefetch(depth, workers);
      auto it = ahead.begin();
      begun.await_arrival(depth);  // so far they go without a reader
      for (int n = 0; n < 300; ++n) {
        ++reading;
        REQUIRE(*it == n);
        ++it;
      }
      REQUIRE(furthest == depth);
    }
  }
}

TEST_CASE("going on does not wait", "[data][prefetch]") {
  gate held;
  auto ahead = counting(2) | data::transform([&](int n) {
                 if (n == 1) held.pass();
                 return n;
               }) |
               data::prefetch(1);
  auto it = ahead.begin();
  REQUIRE(*it == 0);
  ++it;
  held.await_arrival();
  REQUIRE(ahead.ready().has_value());
  held.open();
  REQUIRE(*it == 1);
}

TEST_CASE("what making an element threw comes at its turn", "[data][prefetch]") {
  const auto fail_at_5 = [](int n) {
    if (n == 5) throw std::domain_error("five");
    if (n == 7) throw std::runtime_error("seven");
    return n;
  };
  const auto check = [](auto ahead) {
    data::set_epoch(ahead, 3);
    for (int round = 0; round < 2; ++round) {
      auto it = ahead.begin();
      for (int n = 0; n < 5; ++n, ++it) REQUIRE(*it == n);
      REQUIRE(it != ahead.end());
      bool thrown = false;
      try {
        static_cast<void>(*it);
      } catch (const data::sample_error& e) {
        thrown = true;
        CHECK(e.epoch() == 3);
        CHECK(e.index() == 5);
        CHECK(contains(e.what(), "five"));
        CHECK_THROWS_AS(std::rethrow_exception(e.cause()), std::domain_error);
        CHECK_THROWS_AS(e.rethrow_nested(), std::domain_error);
      }
      REQUIRE(thrown);
      REQUIRE(it == ahead.end());
      REQUIRE_FALSE(ahead.ready().has_value());
      REQUIRE_THROWS_AS(*it, rondo::error);
      ++it;
      REQUIRE(it == ahead.end());
    }
  };
  const auto numbers = counting(10);
  const std::list<int> list(numbers.begin(), numbers.end());
  for (const std::int64_t workers : {0, 1, 2, 4}) {
    for (const std::int64_t depth : {1, 3, 20}) {
      check(numbers | data::transform(fail_at_5) | data::prefetch(depth, workers));
      check(numbers | ranges::views::transform(fail_at_5) | data::prefetch(depth, workers));
      if (workers > 1) continue;
      check(list | data::transform(fail_at_5) | data::prefetch(depth, workers));
      check(list | ranges::views::transform(fail_at_5) | data::prefetch(depth, workers));
    }
  }
}

TEST_CASE("an element that fails first but comes later does not hide the elements before it", "[data][prefetch]") {
  gate first_held;
  gate failing;
  failing.open();
  auto ahead = counting(4) | data::transform([&](int n) {
                 if (n == 0) first_held.pass();
                 if (n == 1) {
                   failing.pass();
                   throw std::domain_error("one");
                 }
                 return n;
               }) |
               data::prefetch(4, 2);
  auto it = ahead.begin();
  failing.await_arrival();
  first_held.open();
  REQUIRE(*it == 0);
  ++it;
  REQUIRE_THROWS_AS(*it, data::sample_error);
}

TEST_CASE("nothing is made after an element that failed", "[data][prefetch]") {
  std::atomic<int> calls{0};
  {
    auto ahead = counting(1000) | data::transform([&](int n) {
                   ++calls;
                   if (n == 5) throw std::domain_error("five");
                   return n;
                 }) |
                 data::prefetch(1000);
    auto it = ahead.begin();
    for (int n = 0; n < 5; ++n) ++it;
    REQUIRE_THROWS_AS(*it, data::sample_error);
  }
  REQUIRE(calls == 6);
}

TEST_CASE("what beginning to read a stream threw comes at its first element", "[data][prefetch]") {
  for (const std::int64_t workers : {0, 1}) {
    auto ahead = std::list<int>{1, 2} | data::transform([](int n) {
                   if (n == 2) throw std::domain_error("two");
                   return n;
                 }) |
                 data::shuffle(1) | data::prefetch(2, workers);
    auto it = ahead.begin();
    REQUIRE(contains(message_of<data::sample_error>([&] { static_cast<void>(*it); }), "two"));
    REQUIRE(it == ahead.end());
  }
}

// ---- interruption ----

namespace {

/// What a pass gives from where it is to the end of epoch `last`.
template <class Pass>
auto rest(Pass& pass, std::int64_t epoch, std::int64_t last) {
  std::vector<typename Pass::value> elements;
  for (;;) {
    for (; !pass.exhausted(); pass.advance()) elements.push_back(pass.take());
    if (epoch == last) return elements;
    pass.begin(++epoch);
  }
}

/// Interrupts `before` at every element of epoch 1, and lets `after` go on; both must give what `whole` gives.
template <class Whole, class Before, class After>
void interrupt_everywhere(Whole whole, Before before, After after) {
  data::pass reference(whole);
  reference.begin(1);
  const auto expected = rest(reference, 1, 2);
  data::pass counted(whole);
  counted.begin(1);
  std::size_t length = 0;
  for (; !counted.exhausted(); counted.advance()) ++length;
  REQUIRE(expected.size() == 2 * length);
  for (std::size_t position = 0; position <= length; ++position) {
    data::pass interrupted(before);
    interrupted.begin(1);
    data::pass plain(whole);
    plain.begin(1);
    for (std::size_t i = 0; i < position; ++i) {
      REQUIRE(interrupted.take() == expected[i]);
      interrupted.advance();
      static_cast<void>(plain.take());
      plain.advance();
    }
    for (const bool looked : {false, true}) {
      if (looked) REQUIRE(interrupted.exhausted() == plain.exhausted());
      const auto state = state::value(interrupted.state_dict());
      REQUIRE(state::equal(state, state::value(plain.state_dict())));
      data::pass resumed(after);
      resumed.load_state_dict(state);
      REQUIRE(resumed.position() == static_cast<std::int64_t>(position));
      const auto found = rest(resumed, 1, 2);
      REQUIRE(found == std::vector(expected.begin() + static_cast<std::ptrdiff_t>(position), expected.end()));
    }
  }
}

}  // namespace

TEST_CASE("a prefetched pass that was interrupted goes on with the same elements, with other workers, too",
          "[data][prefetch]") {
  const auto noisy = [](int n, data::place at) {
    data::random_sequence random(data::sample_seed(1, at.epoch, at.index));
    return n + random.uniform();
  };
  auto plain = counting(11) | data::shuffle(4) | data::transform(noisy) | data::batch(2);
  interrupt_everywhere(plain, plain | data::prefetch(3, 2), plain | data::prefetch(2, 1));
  interrupt_everywhere(plain, plain | data::prefetch(3, 1), plain | data::prefetch(100, 4));
  interrupt_everywhere(plain, plain | data::prefetch(1, 2), plain | data::prefetch(1, 0));
  interrupt_everywhere(plain, plain | data::prefetch(1, 0), plain);
  interrupt_everywhere(plain, plain, plain | data::prefetch(7, 2));
}

TEST_CASE("a prefetched stream that was interrupted goes on with the same elements", "[data][prefetch]") {
  const auto noisy = [](std::int64_t n, data::place at) {
    data::random_sequence random(data::sample_seed(1, at.epoch, at.index));
    return static_cast<double>(n) + random.uniform();
  };
  SECTION("without positions") {
    const std::list<int> numbers{3, 1, 4, 1, 5, 9, 2};
    auto plain = numbers | data::transform(noisy);
    interrupt_everywhere(plain, plain | data::prefetch(3), plain | data::prefetch(2));
    interrupt_everywhere(plain, plain | data::prefetch(3), plain | data::prefetch(1, 0));
    interrupt_everywhere(plain, plain, plain | data::prefetch(3));
  }
  SECTION("in memory") {
    const std::list<int> numbers{3, 1, 4, 1, 5, 9, 2};
    auto plain = numbers | data::shuffle(5) | data::transform(noisy) | data::batch(2);
    interrupt_everywhere(plain, plain | data::prefetch(3), plain | data::prefetch(2));
    interrupt_everywhere(plain, plain | data::prefetch(3), plain);
  }
  SECTION("with positions of its own, each pass on a tape of its own") {
    tape of_whole(9);
    tape of_before(9);
    tape of_after(9);
    const auto stages = data::transform(noisy) | data::batch(2);
    interrupt_everywhere(of_whole | stages, of_before | stages | data::prefetch(3),
                         of_after | stages | data::prefetch(2));
    interrupt_everywhere(of_whole | stages, of_before | stages, of_after | stages | data::prefetch(2));
    interrupt_everywhere(of_whole | stages, of_before | stages | data::prefetch(3, 0), of_after | stages);
  }
  SECTION("endless, with an index") {
    auto plain = ranges::views::iota(10);
    data::pass first(plain | data::prefetch(3));
    first.begin(0);
    for (int i = 0; i < 5; ++i) first.advance();
    REQUIRE(first.take() == 15);
    data::pass second(plain | data::prefetch(2));
    second.load_state_dict(state::value(first.state_dict()));
    REQUIRE(second.take() == 15);
  }
}

TEST_CASE("going to a position reads nothing before it", "[data][prefetch]") {
  SECTION("random access") {
    std::atomic<int> smallest{std::numeric_limits<int>::max()};
    for (const std::int64_t workers : {0, 1, 2}) {
      data::pass pass(ranges::views::iota(0, 1'000'000) | data::transform([&](int n) {
                        int before = smallest;
                        while (n < before && !smallest.compare_exchange_weak(before, n)) {
                        }
                        return n;
                      }) |
                      data::prefetch(3, workers));
      pass.begin(0, 900'000);
      REQUIRE(pass.take() == 900'000);
      REQUIRE(smallest == 900'000);
    }
  }
  SECTION("a seekable stream") {
    tape from(1000);
    tape to(1000);
    data::pass first(from | data::batch(2) | data::prefetch(3));
    first.begin(0);
    for (int i = 0; i < 400; ++i) {
      static_cast<void>(first.take());
      first.advance();
    }
    const auto expected = first.take();
    {
      data::pass second(to | data::batch(2) | data::prefetch(3));
      second.load_state_dict(state::value(first.state_dict()));
      REQUIRE(second.take() == expected);
    }
    REQUIRE(to.steps < 20);
  }
}

TEST_CASE("state passes through prefetch without a trace", "[data][prefetch]") {
  auto plain = counting(9) | data::shuffle(4) | data::batch(2);
  auto ahead = counting(9) | data::shuffle(4) | data::prefetch(2, 2) | data::batch(2) | data::prefetch(3);
  REQUIRE(state::equal(data::state_dict(plain), data::state_dict(ahead)));
  const auto other = counting(9) | data::shuffle(8) | data::batch(2);
  auto it = ahead.begin();
  REQUIRE(state::equal(data::state_dict(plain), data::state_dict(ahead)));  // while it is being read, too
  data::load_state_dict(ahead, data::state_dict(other));
  REQUIRE(it == ahead.end());
  REQUIRE(read(ahead) == read(other));
  REQUIRE_THROWS_AS(data::load_state_dict(ahead, data::state_dict(counting(9) | data::batch(2))), state_error);
}

// ---- ending a pass ----

TEST_CASE("breaking off waits for the elements that are being made, and makes no more", "[data][prefetch]") {
  enum class way { destroy, set_epoch, set_device, begin, assign_copy, assign_move, move_away };
  for (const way how : {way::destroy, way::set_epoch, way::set_device, way::begin, way::assign_copy, way::assign_move,
                        way::move_away}) {
    auto kept = std::make_shared<std::atomic<int>>(0);  // not const, so that moving the function moves it
    auto held = std::make_shared<gate>();
    std::atomic<int> making{0};
    auto made_with = [&, kept, held](int n) {
      if (*kept == 0 && n >= 2) {
        ++making;
        held->pass();
        --making;
      }
      return n;
    };
    const auto make = [&] { return counting(30) | data::transform(made_with) | data::prefetch(4, 2); };
    auto ahead = std::make_optional(make());
    using view = std::remove_cvref_t<decltype(*ahead)>;
    std::optional<view> moved;
    const view other = make();
    const auto users = kept.use_count();
    auto it = ahead->begin();
    REQUIRE(*it == 0);
    held->await_arrival(2);
    // The gate opens at some time while the pass ends.
    std::thread opener([&] { held->open(); });
    switch (how) {
      case way::destroy:
        ahead.reset();
        break;
      case way::set_epoch:
        data::set_epoch(*ahead, 1);
        break;
      case way::set_device:
        data::set_device(*ahead, at::kCPU);
        break;
      case way::begin:
        *kept = 1;
        it = ahead->begin();
        break;
      case way::assign_copy:
        *ahead = other;
        break;
      case way::assign_move:
        *ahead = make();
        break;
      case way::move_away:
        moved.emplace(std::move(*ahead));
        break;
    }
    const int still_making = making;
    const auto users_left = kept.use_count();
    opener.join();
    REQUIRE(still_making == 0);
    if (how != way::begin) REQUIRE(users_left <= users);  // the copies of the workers are gone
    *kept = 1;
    if (how == way::move_away) REQUIRE(read(*moved) == counting(30));
    if (how != way::destroy && how != way::move_away) REQUIRE(read(*ahead) == counting(30));
  }
}

TEST_CASE("an iterator of a pass that has ended finds nothing", "[data][prefetch]") {
  auto ahead = counting(5) | data::prefetch(2);
  auto it = ahead.begin();
  REQUIRE(*it == 0);
  data::set_epoch(ahead, 1);
  REQUIRE(it == ahead.end());
  REQUIRE_THROWS_AS(*it, rondo::error);
  ++it;
  REQUIRE(it == ahead.end());
}

TEST_CASE("a new epoch in the middle of one begins with its own elements", "[data][prefetch]") {
  auto plain = counting(50) | data::shuffle(1);
  for (const std::int64_t workers : {0, 1, 3}) {
    auto ahead = plain | data::prefetch(8, workers);
    for (std::int64_t epoch = 0; epoch < 20; ++epoch) {
      data::set_epoch(plain, epoch);
      data::set_epoch(ahead, epoch);
      auto it = ahead.begin();
      for (std::int64_t k = 0; k < epoch; ++k, ++it) REQUIRE(*it == plain.begin()[k]);
    }
  }
}

TEST_CASE("a copy of a view that is being read begins anew, and the original goes on", "[data][prefetch]") {
  const auto check = [](auto ahead, const std::vector<int>& expected) {
    auto it = ahead.begin();
    REQUIRE(*it == expected[0]);
    ++it;
    auto copy = ahead;
    REQUIRE(read(copy) == expected);
    REQUIRE(*it == expected[1]);
    copy = ahead;
    REQUIRE(read(copy) == expected);
    for (std::size_t k = 1; k < expected.size(); ++k, ++it) REQUIRE(*it == expected[k]);
    REQUIRE(it == ahead.end());
    auto moved = std::move(copy);
    REQUIRE(read(moved) == expected);
    copy = std::move(moved);
    REQUIRE(read(copy) == expected);
  };
  const std::list<int> numbers{5, 3, 8, 1};
  check(numbers | data::prefetch(2), {5, 3, 8, 1});
  check(numbers | data::transform([](int n) { return n + 1; }) | data::prefetch(2), {6, 4, 9, 2});
  check(numbers | data::shuffle(0) | data::prefetch(2, 0), read(numbers | data::shuffle(0)));
  check(counting(6) | data::prefetch(2, 2), counting(6));
}

TEST_CASE("copying a stream waits until it rests", "[data][prefetch]") {
  struct changing {
    explicit changing(gate& stop) : held(&stop) {}
    changing(const changing& other) : held(other.held), calls(other.calls) {
      if (other.middle) throw std::logic_error("copied in the middle of a call");
    }
    changing& operator=(const changing&) = default;
    int operator()(int n) {
      middle = true;
      held->pass();
      ++calls;
      middle = false;
      return n;
    }
    gate* held;
    int calls = 0;
    bool middle = false;
  };
  gate held;
  auto ahead = std::list<int>{1, 2, 3} | data::transform(changing(held)) | data::prefetch(2);
  auto it = ahead.begin();
  held.await_arrival();
  std::atomic<bool> copying{false};
  std::thread opener([&] {
    for (int i = 0; i < 1000 || !copying; ++i) std::this_thread::yield();
    held.open();
  });
  copying = true;
  auto copy = ahead;
  opener.join();
  REQUIRE(read(copy) == std::vector{1, 2, 3});
  REQUIRE(*it == 1);
}

TEST_CASE("what copying a function throws leaves a view that can be used", "[data][prefetch]") {
  struct fragile {
    explicit fragile(std::shared_ptr<int> left) : copies_left(std::move(left)) {}
    fragile(const fragile& other) : copies_left(other.copies_left) {
      if ((*copies_left)-- == 0) throw std::domain_error("no more copies");
    }
    fragile& operator=(const fragile&) = default;
    int operator()(int n) const { return n; }
    std::shared_ptr<int> copies_left;
  };
  const auto left = std::make_shared<int>(1000);
  auto ahead = counting(5) | data::transform(fragile(left)) | data::prefetch(2, 3);
  for (const int allowed : {0, 1, 2}) {
    *left = allowed;
    REQUIRE_THROWS_AS(ahead.begin(), std::domain_error);
  }
  *left = 3;
  REQUIRE(read(ahead) == counting(5));
}

// ---- a coroutine reads ----

namespace {

/// Reads a pass to its end without ever blocking.
template <class Pass>
task<std::vector<typename Pass::value>> gather(Pass& pass) {
  std::vector<typename Pass::value> elements;
  for (;;) {
    std::optional<task<>> waiting = pass.ready();
    if (waiting) co_await *std::move(waiting);
    if (pass.exhausted()) co_return elements;
    elements.push_back(pass.take());
    pass.advance();
  }
}

auto held_at(int index, gate& held) {
  return counting(6) | data::transform([index, &held](int n) {
           if (n == index) held.pass();
           return n;
         });
}

}  // namespace

TEST_CASE("a coroutine awaits the elements while its event loop goes on", "[data][prefetch][async]") {
  for (const std::int64_t workers : {0, 1, 2}) {
    world w;
    data::pass pass(counting(500) | data::prefetch(3, workers));
    pass.begin(0);
    data::pass stream(std::list<int>{1, 2, 3} | data::prefetch(1, workers == 0 ? 0 : 1));
    stream.begin(0);
    auto body = [&]() -> task<> {
      const auto found = co_await gather(pass);
      CHECK(found == counting(500));
      const auto listed = co_await gather(stream);
      CHECK(listed == std::vector{1, 2, 3});
    };
    support::run(w, body);
  }
}

TEST_CASE("waiting is over when the element has arrived", "[data][prefetch][async]") {
  gate held;
  data::pass pass(held_at(1, held) | data::prefetch(2));
  pass.begin(0);
  world w;
  std::vector<int> found;
  auto body = [&]() -> task<> { found = co_await gather(pass); };
  support::started root(w, body);
  held.await_arrival();
  w.loop.poll();
  CHECK_FALSE(root.finished());
  CHECK(pass.position() == 1);
  held.open();
  w.loop.run();
  root.rethrow();
  CHECK(found == counting(6));
}

TEST_CASE("waiting is not necessary where the element or the end is there", "[data][prefetch][async]") {
  auto made_here = counting(2) | data::prefetch(2, 0);
  CHECK_FALSE(made_here.ready().has_value());
  auto here = made_here.begin();
  CHECK_FALSE(made_here.ready().has_value());
  CHECK(*here == 0);
  auto ahead = counting(2) | data::prefetch(2);
  CHECK_FALSE(ahead.ready().has_value());
  auto it = ahead.begin();
  REQUIRE(it != ahead.end());  // waits
  CHECK_FALSE(ahead.ready().has_value());
  CHECK(*it == 0);
  CHECK_FALSE(ahead.ready().has_value());
  ++it;
  ++it;
  CHECK_FALSE(ahead.ready().has_value());
  CHECK(it == ahead.end());
}

TEST_CASE("a coroutine that is cancelled while it waits leaves the pass as it is", "[data][prefetch][async]") {
  gate held;
  data::pass pass(held_at(2, held) | data::prefetch(3));
  pass.begin(0);
  for (int round = 0; round < 3; ++round) {
    world w;
    auto body = [&]() -> task<> {
      const tracked here;
      const auto found = co_await gather(pass);
      FAIL("nobody opened the gate");
    };
    support::started root(w, body);
    held.await_arrival();
    w.loop.poll();
    CHECK_FALSE(root.finished());
    root.cancel();
    w.loop.run();
    REQUIRE(root.finished());
    bool aborted = false;
    try {
      root.rethrow();
    } catch (const asio::system_error& e) {
      aborted = e.code() == asio::error::operation_aborted;
    }
    CHECK(aborted);
    CHECK(tracked::live == 0);
    CHECK(pass.position() == 2);
  }
  held.open();
  std::vector<int> left;
  for (; !pass.exhausted(); pass.advance()) left.push_back(pass.take());
  CHECK(left == std::vector{2, 3, 4, 5});
}

TEST_CASE("an event loop that is destroyed while it waits is not missed", "[data][prefetch][async][abandon]") {
  gate held;
  data::pass pass(held_at(2, held) | data::prefetch(3));
  pass.begin(0);
  {
    world w;
    auto body = [&]() -> task<> {
      const tracked here;
      const auto found = co_await gather(pass);
      FAIL("the event loop came back");
    };
    support::started root(w, body);
    held.await_arrival();
    w.loop.poll();
    CHECK(tracked::live == 1);
  }
  CHECK(tracked::live == 0);
  held.open();
  world w;
  auto body = [&]() -> task<> {
    const auto left = co_await gather(pass);
    CHECK(left == std::vector{2, 3, 4, 5});
  };
  support::run(w, body);
}

TEST_CASE("the element may arrive while the event loop is being destroyed", "[data][prefetch][async][abandon]") {
  for (int round = 0; round < 100; ++round) {
    gate held;
    auto ahead = held_at(0, held) | data::prefetch(2);
    auto it = ahead.begin();
    std::thread opener;
    {
      world w;
      auto body = [&]() -> task<> {
        const tracked here;
        std::optional<task<>> waiting = ahead.ready();
        if (waiting) co_await *std::move(waiting);
      };
      support::started root(w, body);
      held.await_arrival();
      w.loop.poll();
      opener = std::thread([&] { held.open(); });
    }
    REQUIRE(tracked::live == 0);
    opener.join();
    REQUIRE(*it == 0);
  }
}

TEST_CASE("abandoning a coroutine that reads", "[data][prefetch][async][abandon]") {
  const int places = support::abandon_everywhere([](world& w) -> task<> {
    const tracked here;
    // Held by the frame that is abandoned, as a loop holds its batches.
    data::pass pass(counting(6) | data::prefetch(1));
    pass.begin(0);
    gate held;
    auto ahead = held_at(0, held) | data::prefetch(1);
    auto it = ahead.begin();
    std::optional<task<>> waiting = ahead.ready();
    held.open();
    co_await *std::move(waiting);
    CHECK(*it == 0);
    const auto found = co_await gather(pass);
    CHECK(found == counting(6));
    static_cast<void>(w);
  });
  CHECK(places > 1);
}

TEST_CASE("whoever waits goes on when the pass ends", "[data][prefetch][async]") {
  gate held;
  auto ahead = held_at(0, held) | data::prefetch(2);
  auto it = ahead.begin();
  held.await_arrival();
  world w;
  bool done = false;
  auto body = [&]() -> task<> {
    std::optional<task<>> waiting = ahead.ready();
    REQUIRE(waiting.has_value());
    co_await *std::move(waiting);
    done = true;
  };
  support::started root(w, body);
  w.loop.poll();
  std::thread opener([&] { held.open(); });
  data::set_epoch(ahead, 1);
  opener.join();
  w.loop.run();
  root.rethrow();
  CHECK(done);
  CHECK(it == ahead.end());
}

TEST_CASE("whoever waits goes on when the pass ends before the element was begun", "[data][prefetch][async]") {
  auto ahead = counting(3) | data::prefetch(2);
  for (int round = 0; round < 200; ++round) {
    auto it = ahead.begin();
    world w;
    auto body = [&]() -> task<> {
      std::optional<task<>> waiting = ahead.ready();
      if (waiting) co_await *std::move(waiting);
    };
    support::started root(w, body);
    w.loop.poll();
    data::set_epoch(ahead, round);
    REQUIRE(it == ahead.end());
    w.loop.run_for(std::chrono::seconds(60));
    REQUIRE(root.finished());
    root.rethrow();
  }
}

// ---- the threads ----

TEST_CASE("elements are made under the same conditions on every thread, and nothing changes elsewhere",
          "[data][prefetch][threads]") {
  const torch_threads four(4);
  const auto big = at::ones({4'000'000});
  const auto parallel = big + 1;  // the team of the training thread exists from here on
  struct conditions {
    bool signals_blocked;
    bool faults_blocked;
    bool gradients;
    int torch_threads;
    int new_threads;
    std::string name;
    std::thread::id thread;
  };
  const auto look = [&](int) {
    const int before = threads_of_the_process();
    const auto sum = big + 1;
    sigset_t blocked;
    ::pthread_sigmask(SIG_BLOCK, nullptr, &blocked);
    char name[16] = {};
    ::pthread_getname_np(::pthread_self(), name, sizeof name);
    return conditions{::sigismember(&blocked, SIGTERM) == 1 && ::sigismember(&blocked, SIGUSR1) == 1,
                      ::sigismember(&blocked, SIGSEGV) == 1,
                      c10::GradMode::is_enabled(),
                      at::get_num_threads(),
                      threads_of_the_process() - before,
                      name,
                      std::this_thread::get_id()};
  };
  for (const std::int64_t workers : {0, 1}) {
    for (const auto& found : counting(2) | data::transform(look) | data::prefetch(1, workers)) {
      CHECK(found.torch_threads == 1);
      CHECK(found.new_threads == 0);
      CHECK_FALSE(found.gradients);
      CHECK_FALSE(found.faults_blocked);
      CHECK(found.signals_blocked == (workers > 0));
      CHECK((found.thread == std::this_thread::get_id()) == (workers == 0));
      if (workers > 0) CHECK(found.name == "rondo-data-0");
      CHECK(at::get_num_threads() == 4);
      CHECK(c10::GradMode::is_enabled());
    }
  }
  int elsewhere = 0;
  std::thread([&] { elsewhere = at::get_num_threads(); }).join();
  CHECK(elsewhere == 4);
}

TEST_CASE("sums have the same bits whoever makes them", "[data][prefetch][threads]") {
  const torch_threads four(4);
  const auto numbers = at::arange(3'000'000, at::kFloat).mul(0.37).sin();
  const auto sum = [&](int n) { return numbers.narrow(0, n, 2'999'000).sum().item<float>(); };
  const auto expected = read(counting(8) | data::transform(sum) | data::prefetch(1, 0));
  REQUIRE(read(counting(8) | data::transform(sum) | data::prefetch(2, 1)) == expected);
  REQUIRE(read(counting(8) | data::transform(sum) | data::prefetch(4, 3)) == expected);
}

// ---- options ----

TEST_CASE("options of prefetch that make no sense are refused", "[data][prefetch]") {
  REQUIRE_THROWS_AS(data::prefetch(0), option_error);
  REQUIRE_THROWS_AS(data::prefetch(1, -1), option_error);
  const std::list<int> numbers{1};
  REQUIRE_THROWS_AS(numbers | data::prefetch(2, 2), option_error);
  REQUIRE(contains(message_of<option_error>([&] { static_cast<void>(numbers | data::prefetch(2, 2)); }),
                   "prefetch a random access range"));
  REQUIRE_NOTHROW(counting(1) | data::prefetch(2, 2));
  REQUIRE_NOTHROW(counting(5) | data::prefetch(std::numeric_limits<std::int64_t>::max(), 2) | data::batch(2));
  REQUIRE(read(counting(5) | data::prefetch(std::numeric_limits<std::int64_t>::max(), 2)) == counting(5));
}

namespace {

/// Pins itself, as far as this test is concerned.
struct parcel {
  bool pinned = false;
};
parcel pin_memory(parcel) { return {.pinned = true}; }

}  // namespace

TEST_CASE("memory is pinned for a CUDA device, or when asked for", "[data][prefetch][pin]") {
  const auto make = [](int) { return parcel(); };
  const auto pinned = [&](std::int64_t workers, data::prefetch_options options, std::optional<at::Device> device) {
    auto random = counting(3) | data::transform(make) | data::prefetch(2, workers, options);
    auto stream = std::list<int>{1, 2, 3} | data::transform(make) | data::prefetch(2, workers, options);
    if (device) {
      data::set_device(random, *device);
      data::set_device(stream, *device);
    }
    int number = 0;
    for (const auto& p : random) number += p.pinned ? 1 : 0;
    for (const auto& p : stream) number += p.pinned ? 1 : 0;
    return number;
  };
  for (const std::int64_t workers : {0, 1}) {
    CHECK(pinned(workers, {}, std::nullopt) == 0);
    CHECK(pinned(workers, {}, at::kCPU) == 0);
    CHECK(pinned(workers, {}, at::Device("cuda:0")) == 6);
    CHECK(pinned(workers, {.pin_memory = false}, at::Device("cuda:0")) == 0);
  }
  if (at::hasCUDA()) {
    auto ahead = data::tensor_dataset(at::ones({4, 2}), at::ones({4})) | data::batch(2) |
                 data::prefetch(2, 1, {.pin_memory = true});
    for (const auto& b : ahead) CHECK((b.data.is_pinned() && b.target.is_pinned()));
  } else {
    const auto said = message_of<option_error>([] { static_cast<void>(data::prefetch(2, 1, {.pin_memory = true})); });
    CHECK(contains(said, "pin_memory"));
    CHECK(contains(said, "no CUDA device"));
    CHECK(contains(said, "or nothing"));
    // Tensors of the types that are known are pinned, which only CUDA can do.
    auto ahead = data::tensor_dataset(at::ones({4, 2}), at::ones({4})) | data::batch(2) | data::prefetch(2);
    data::set_device(ahead, at::kCUDA);
    auto it = ahead.begin();
    CHECK_THROWS_AS(*it, data::sample_error);
  }
}

}  // namespace data_prefetch_test
