#include "rondo/async/trace.hpp"

#include <algorithm>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.hpp"

namespace trace_test {

using namespace rondo;

namespace {

std::vector<trace::record> drained(trace::collector& from) {
  std::vector<trace::record> all;
  CHECK(from.drain(all) == 0);
  return all;
}

}  // namespace

TEST_CASE("a span is recorded while somebody collects, and only then", "[trace]") {
  CHECK_FALSE(trace::on());
  { const trace::span unseen("before"); }
  trace::collector spans;
  CHECK(trace::on());
  {
    const trace::span outer("outer");
    const trace::span inner(trace::intern("inner", "test", "about", "number"), 7);
  }
  spans.pause();
  CHECK_FALSE(trace::on());
  { const trace::span unseen("after"); }
  spans.resume();
  { const trace::span later("later"); }
  const auto all = drained(spans);
  REQUIRE(all.size() == 1);
  CHECK(all[0].what->name == "later");
  CHECK(all[0].what->category == "user");
}

TEST_CASE("spans come in the order of their ends, with times, numbers and threads", "[trace]") {
  trace::collector spans;
  {
    const trace::span outer("outer");
    const trace::span inner(trace::intern("inner", "test", "about", "number"), 7);
  }
  std::thread([] {
    trace::name_this_thread("helper");
    const trace::span there("there");
  }).join();
  const auto all = drained(spans);
  REQUIRE(all.size() == 3);
  CHECK(all[0].what == &trace::intern("inner", "test", "about", "number"));
  CHECK(all[0].argument == 7);
  CHECK(all[1].what->name == "outer");
  CHECK(all[1].argument == trace::no_argument);
  CHECK(all[1].begin <= all[0].begin);
  CHECK(all[0].begin <= all[0].end);
  CHECK(all[0].end <= all[1].end);
  CHECK(all[0].nested);
  CHECK(all[1].nested);
  CHECK(all[2].thread != all[0].thread);
  REQUIRE(spans.threads().size() == 2);
  CHECK(spans.threads()[1].id == all[2].thread);
  CHECK(spans.threads()[1].name == "helper");
  CHECK(drained(spans).empty());
}

TEST_CASE("spans that do not lie inside of each other say so", "[trace]") {
  trace::collector spans;
  std::optional<trace::span> first(std::in_place, "first");
  std::optional<trace::span> second(std::in_place, "second");
  auto beside = trace::span::apart(trace::intern("beside"));
  first.reset();
  second.reset();
  beside.end();
  const auto all = drained(spans);
  REQUIRE(all.size() == 3);
  CHECK_FALSE(all[0].nested);
  CHECK(all[1].nested);
  CHECK_FALSE(all[2].nested);
}

TEST_CASE("a span that is moved is recorded once", "[trace]") {
  trace::collector spans;
  {
    trace::span one("one");
    trace::span moved(std::move(one));
    moved.next(trace::intern("two"));
    moved = trace::span();
  }
  const auto all = drained(spans);
  REQUIRE(all.size() == 2);
  CHECK(all[0].what->name == "one");
  CHECK(all[1].what->name == "two");
}

TEST_CASE("every collector gets everything, and the oldest spans of a full ring are lost", "[trace]") {
  trace::collector early;
  { const trace::span one("one"); }
  trace::collector late;
  const auto& many = trace::intern("many", "test", "", "number");
  constexpr std::int64_t more = 100;
  const auto count = static_cast<std::int64_t>(trace::ring_capacity) + more;
  for (std::int64_t i = 0; i < count; ++i) const trace::span here(many, i);
  std::vector<trace::record> all;
  const auto lost = early.drain(all);
  CHECK(lost + all.size() == static_cast<std::size_t>(count) + 1);
  CHECK(lost >= static_cast<std::uint64_t>(more));
  CHECK(all.size() >= trace::ring_capacity - 1);
  CHECK(all.back().argument == count - 1);
  for (std::size_t i = 1; i < all.size(); ++i) CHECK_FALSE(all[i].argument != all[i - 1].argument + 1);
  all.clear();
  CHECK(late.drain(all) == lost - 1);
}

TEST_CASE("spans of many threads are read while they are written", "[trace]") {
  trace::collector spans;
  constexpr int threads = 3;
  constexpr std::int64_t each = 30'000;
  std::vector<std::thread> writers;
  for (int t = 0; t < threads; ++t)
    writers.emplace_back([] {
      const auto& label = trace::intern("work", "test", "", "number");
      for (std::int64_t i = 0; i < each; ++i) const trace::span here(label, i);
    });
  std::vector<trace::record> all;
  std::uint64_t lost = 0;
  for (int i = 0; i < 50; ++i) lost += spans.drain(all);
  for (auto& one : writers) one.join();
  lost += spans.drain(all);
  CHECK(all.size() + lost == threads * each);
  const bool sound = std::all_of(all.begin(), all.end(), [](const trace::record& r) {
    return r.what->name == "work" && r.begin <= r.end && r.argument >= 0 && r.argument < each;
  });
  CHECK(sound);
}

}  // namespace trace_test
