#pragma once

#include <ATen/Functions.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <range/v3/view/facade.hpp>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

#include "rondo/data/example.hpp"
#include "rondo/data/pass.hpp"
#include "rondo/data/stage.hpp"
#include "rondo/state/value.hpp"
#include "support/catch.hpp"

namespace rondo::testing {

/// How many elements a source was asked for, by all its copies together, on any thread.
using read_count = std::shared_ptr<std::atomic<std::int64_t>>;

inline read_count no_reads() { return std::make_shared<std::atomic<std::int64_t>>(0); }

/// Random access to the numbers 1000 * epoch + 0, 1, …
class number_set : public ranges::view_facade<number_set, ranges::finite> {
 public:
  number_set() = default;
  explicit number_set(std::int64_t size, read_count reads = no_reads()) : size_(size), reads_(std::move(reads)) {}

  void set_epoch(std::int64_t epoch) { epoch_ = epoch; }
  [[nodiscard]] std::int64_t size() const { return size_; }

 private:
  friend ranges::range_access;
  friend data::detail::index_cursor<number_set>;

  [[nodiscard]] std::int64_t element(std::int64_t index) const {
    ++*reads_;
    return 1000 * epoch_ + index;
  }
  [[nodiscard]] auto begin_cursor() const { return data::detail::index_cursor<number_set>(this, 0); }
  [[nodiscard]] auto end_cursor() const { return data::detail::index_cursor<number_set>(this, size_); }

  std::int64_t size_ = 0;
  std::int64_t epoch_ = 0;
  read_count reads_;
};

/// The same numbers one after the other, how many is not known, and no way to begin anywhere else.
class number_stream : public ranges::view_facade<number_stream, ranges::unknown> {
 public:
  number_stream() = default;
  explicit number_stream(std::int64_t size, read_count reads = no_reads()) : size_(size), reads_(std::move(reads)) {}

  void set_epoch(std::int64_t epoch) { epoch_ = epoch; }

 protected:
  std::int64_t from_ = 0;
  std::int64_t at_ = 0;

 private:
  friend ranges::range_access;

  class cursor {
   public:
    using single_pass = std::true_type;

    cursor() = default;
    explicit cursor(number_stream* stream) : stream_(stream) {}

    [[nodiscard]] std::int64_t read() const { return 1000 * stream_->epoch_ + stream_->at_; }
    [[nodiscard]] bool equal(ranges::default_sentinel_t) const { return stream_->at_ >= stream_->size_; }
    void next() {
      ++stream_->at_;
      ++*stream_->reads_;
    }

   private:
    number_stream* stream_ = nullptr;
  };

  cursor begin_cursor() {
    at_ = std::exchange(from_, 0);
    ++*reads_;
    return cursor(this);
  }
  [[nodiscard]] ranges::default_sentinel_t end_cursor() const { return {}; }

  std::int64_t size_ = 0;
  std::int64_t epoch_ = 0;
  read_count reads_;
};

/// One that can begin anywhere, with positions as a file of lines of ten bytes has them.
class seekable_stream : public number_stream {
 public:
  using number_stream::number_stream;

  [[nodiscard]] std::int64_t tell() const { return 10 * at_ + 7; }
  void seek(std::int64_t position) {
    if (position % 10 != 7) throw std::logic_error("no element begins here");
    from_ = position / 10;
  }
};

/// One whose position has two numbers, as that of a line in one of several files has.
class wide_stream : public number_stream {
 public:
  using number_stream::number_stream;

  static constexpr std::size_t position_fields = 2;
  [[nodiscard]] std::array<std::int64_t, 2> tell() const { return {at_ / 4, at_ % 4}; }
  void seek(const std::array<std::int64_t, 2>& position) { from_ = 4 * position[0] + position[1]; }
};

inline bool same(std::int64_t a, std::int64_t b) { return a == b; }
inline bool same(const at::Tensor& a, const at::Tensor& b) { return state::equal(a, b); }
inline bool same(const data::example& a, const data::example& b) {
  return same(a.data, b.data) && same(a.target, b.target);
}
template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (!same(a[i], b[i])) return false;
  return true;
}

/// All elements that a pass still gives in this epoch.
template <class View>
auto rest_of(data::pass<View>& pass) {
  std::vector<typename data::pass<View>::value> elements;
  for (; !pass.exhausted(); pass.advance()) elements.push_back(pass.take());
  return elements;
}

inline state::value value_of(std::int64_t n) { return n; }
inline state::value value_of(const at::Tensor& tensor) { return tensor; }
inline state::value value_of(const data::example& e) { return state::dict{{"data", e.data}, {"target", e.target}}; }
template <class T>
state::value value_of(const std::vector<T>& elements) {
  state::list all;
  for (const auto& element : elements) all.push_back(value_of(element));
  return all;
}

/// A pass over a pipeline of any type, so that what tests do with passes is compiled once.
class any_pass {
 public:
  any_pass() = default;
  any_pass(const any_pass&) = delete;
  any_pass& operator=(const any_pass&) = delete;
  virtual ~any_pass() = default;

  virtual void begin(std::int64_t epoch) = 0;
  virtual bool exhausted() = 0;
  virtual state::value take() = 0;
  virtual void advance() = 0;
  [[nodiscard]] virtual std::int64_t position() const = 0;
  [[nodiscard]] virtual state::value state() const = 0;
  virtual void load(const state::value& state) = 0;
};

template <class View>
class pass_over final : public any_pass {
 public:
  explicit pass_over(View view) : pass_(std::move(view)) {}

  void begin(std::int64_t epoch) override { pass_.begin(epoch); }
  bool exhausted() override { return pass_.exhausted(); }
  state::value take() override { return value_of(pass_.take()); }
  void advance() override { pass_.advance(); }
  [[nodiscard]] std::int64_t position() const override { return pass_.position(); }
  [[nodiscard]] state::value state() const override { return state::clone(pass_.state_dict()); }
  void load(const state::value& state) override { pass_.load_state_dict(state); }

 private:
  data::pass<View> pass_;
};

using pass_maker = std::function<std::unique_ptr<any_pass>()>;

template <class Make>
pass_maker passes_over(Make make) {
  return [make]() -> std::unique_ptr<any_pass> {
    return std::make_unique<pass_over<std::decay_t<decltype(make())>>>(make());
  };
}

/// All elements that a pass still gives in this epoch.
inline std::vector<state::value> rest_of(any_pass& pass) {
  std::vector<state::value> elements;
  for (; !pass.exhausted(); pass.advance()) elements.push_back(pass.take());
  return elements;
}

/// A walk over a pipeline, and everything that it could have been interrupted at.
struct recorded_walk {
  struct moment {
    std::size_t epoch;
    std::size_t index;
    state::value state;
  };
  std::vector<std::vector<state::value>> epochs;
  std::vector<moment> moments;
};

/// Three moments for each element: before it is asked for, when it is known to be there, and when it has been taken.
inline recorded_walk record(any_pass& pass, std::int64_t epochs) {
  recorded_walk walk;
  for (std::int64_t epoch = 0; epoch < epochs; ++epoch) {
    auto& elements = walk.epochs.emplace_back();
    const auto keep = [&] { walk.moments.push_back({static_cast<std::size_t>(epoch), elements.size(), pass.state()}); };
    pass.begin(epoch);
    keep();
    for (; !pass.exhausted(); pass.advance(), keep()) {
      keep();
      auto element = pass.take();
      keep();
      elements.push_back(std::move(element));
    }
    keep();
  }
  return walk;
}

/// Whether what `pass` still gives in this epoch is what `all` holds from `first` on, bit by bit.
inline bool goes_on_as(any_pass& pass, const std::vector<state::value>& all, std::size_t first) {
  const auto rest = rest_of(pass);
  if (rest.size() != all.size() - first) return false;
  for (std::size_t i = 0; i < rest.size(); ++i)
    if (!state::equal(rest[i], all[first + i])) return false;
  return true;
}

inline void require_same_passes(const pass_maker& make, const pass_maker& remake, std::int64_t epochs) {
  const auto walk = record(*make(), epochs);
  for (const auto& moment : walk.moments) {
    CAPTURE(moment.epoch, moment.index);
    const auto pass = remake();
    pass->load(moment.state);
    REQUIRE(pass->position() == static_cast<std::int64_t>(moment.index));
    REQUIRE(state::equal(pass->state(), moment.state));
    REQUIRE(goes_on_as(*pass, walk.epochs[moment.epoch], moment.index));
    for (std::size_t epoch = moment.epoch + 1; epoch < walk.epochs.size(); ++epoch) {
      pass->begin(static_cast<std::int64_t>(epoch));
      REQUIRE(goes_on_as(*pass, walk.epochs[epoch], 0));
    }
  }
}

/// Interrupts the pipeline that `make` builds at every moment, takes it up again with one that `remake` builds, and
/// requires that the rest of the walk is the same, element by element, over `epochs` epochs.
template <class Make, class Remake>
void require_same_after_every_interruption(Make make, Remake remake, std::int64_t epochs) {
  require_same_passes(passes_over(make), passes_over(remake), epochs);
}

template <class Make>
void require_same_after_every_interruption(Make make, std::int64_t epochs = 3) {
  const auto maker = passes_over(make);
  require_same_passes(maker, maker, epochs);
}

}  // namespace rondo::testing
