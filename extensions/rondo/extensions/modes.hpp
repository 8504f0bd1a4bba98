#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <memory>
#include <optional>
#include <range/v3/range/concepts.hpp>
#include <range/v3/range/traits.hpp>
#include <span>
#include <utility>

#include "rondo/data/stage.hpp"
#include "rondo/data/take.hpp"
#include "rondo/error.hpp"
#include "rondo/loop/options.hpp"

/// Ways to train less in order to find mistakes sooner.
namespace rondo {

namespace extensions {

/// The first elements of epoch 0, in every epoch.
template <data::detail::indexable Base>
class indexed_overfit : public data::detail::indexed_stage<indexed_overfit<Base>, Base> {
  using stage = data::detail::indexed_stage<indexed_overfit<Base>, Base>;

 public:
  indexed_overfit() = default;
  indexed_overfit(Base base, std::int64_t limit) : stage(std::move(base)), limit_(limit) {}

  void set_epoch(std::int64_t) { stage::set_epoch(0); }

  static constexpr const char* stage_name = "overfit_batches";
  template <class Self, class Visitor>
  static void visit_settings(Self& self, Visitor& visitor) {
    visitor.number("limit", self.limit_);
  }

  [[nodiscard]] std::int64_t size() const { return std::min(limit_, data::detail::size_of(this->below())); }
  [[nodiscard]] decltype(auto) element(std::int64_t index) const { return this->below(index); }
  [[nodiscard]] auto gather(std::span<const std::int64_t> positions) const requires data::detail::gatherable<Base> {
    return data::detail::gather(this->below(), positions);
  }

 private:
  std::int64_t limit_ = 0;
};

/// The same of a stream.
template <ranges::input_range Base>
class streamed_overfit : public data::detail::stream_stage<streamed_overfit<Base>, Base, ranges::range_value_t<Base>> {
  using value = ranges::range_value_t<Base>;
  using stage = data::detail::stream_stage<streamed_overfit<Base>, Base, value>;

 public:
  streamed_overfit() = default;
  streamed_overfit(Base base, std::int64_t limit) : stage(std::move(base)), limit_(limit) {}

  void set_epoch(std::int64_t) { stage::set_epoch(0); }

  static constexpr const char* stage_name = "overfit_batches";
  template <class Self, class Visitor>
  static void visit_settings(Self& self, Visitor& visitor) {
    visitor.number("limit", self.limit_);
  }

  [[nodiscard]] std::int64_t size() const requires data::detail::sized<Base> {
    return std::min(limit_, data::detail::size_of(this->below()));
  }

  [[nodiscard]] std::optional<value> produce() {
    if (this->index() >= limit_ || !this->reading().next()) return std::nullopt;
    return this->reading().take();
  }

 private:
  std::int64_t limit_ = 0;
};

struct overfit_function {
  std::int64_t limit;

  template <ranges::input_range Range>
  auto operator()(Range&& range) const {
    using base = data::detail::all_t<Range>;
    if constexpr (data::detail::indexable<base>)
      return indexed_overfit<base>(data::detail::all(std::forward<Range>(range)), limit);
    else
      return streamed_overfit<base>(data::detail::all(std::forward<Range>(range)), limit);
  }
};

}  // namespace extensions

/// `batches | overfit_batches(n)`: every epoch has the first `n` batches of the first epoch and no others, in the same
/// order and with the same augmentation, whatever `data::shuffle` and `data::transform` before it do from epoch to
/// epoch. A model that can learn at all learns these by heart; one that does not shows a mistake. Put it last, and use
/// the same batches for the evaluator. Sized and random access where the range is. Throws `option_error` when `n` is
/// below 1.
[[nodiscard]] inline auto overfit_batches(std::int64_t n) {
  if (n < 1) throw option_error("overfit_batches", fmt::format("{}", n), "1 or more batches");
  return data::detail::make_closure(extensions::overfit_function{n});
}

struct fast_run_options {
  /// Whether this is a fast run at all. If not, nothing is changed, so that a program needs no second path.
  bool enabled = true;
  /// Batches of everything that is limited. At least 1.
  std::int64_t batches = 1;
  /// Where extensions put their files. Default (empty): a new directory among the system's temporary ones, which is
  /// removed with the `fast_run`. With several ranks: name one, the same on each.
  std::filesystem::path out = {};
};

/// Goes through everything that a training does, once, in seconds: one epoch of a batch or a few, with all extensions.
///
///     const fast_run fast({.enabled = quick});
///     loop l(model, optimizer, train | fast.limit(), loss, fast.options({.max_epochs = 100}));
///     l | evaluator(test | fast.limit(), …) | snapshot({.autoload = true});
///
/// Evaluations, logs and snapshots are made as at the end of any epoch, but in a directory of their own: nothing of an
/// earlier training is resumed from or changed. A `fast_run` must outlive the run. Copies share the directory.
class fast_run {
 public:
  /// Throws `option_error` for a number of batches below 1, `io_error` when the directory cannot be made.
  explicit fast_run(fast_run_options options = {});

  [[nodiscard]] bool enabled() const noexcept { return options_.enabled; }
  /// For the end of each pipeline: the first batches, or all if this is no fast run.
  [[nodiscard]] auto limit() const {
    return data::take(options_.enabled ? options_.batches : std::numeric_limits<std::int64_t>::max());
  }
  /// `usual` with one epoch as the only goal and the directory of the fast run; `usual` itself if this is none.
  [[nodiscard]] loop_options options(loop_options usual) const;

 private:
  struct temporary_out;

  fast_run_options options_;
  std::shared_ptr<const temporary_out> temporary_;
};

}  // namespace rondo
