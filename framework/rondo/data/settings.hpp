#pragma once

#include <c10/core/Device.h>

#include <concepts>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/state/value.hpp"

/// What goes down through all stages of a pipeline: the epoch, the device, and the state of its settings.
namespace rondo::data {

namespace detail {

// An lvalue, never a copy of the base.
template <class Range>
concept adapts_one_range = requires(Range& range) {
  range.base();
  requires std::is_lvalue_reference_v<decltype(range.base())>;
};

template <class Range>
concept has_settings = requires(const Range& saved, Range& loaded, const state::value& stored) {
  { saved.state_dict() } -> std::convertible_to<state::value>;
  loaded.load_state_dict(stored);
};

/// The state of a range that has no settings, and its check.
[[nodiscard]] state::dict source_state();
void check_source_state(const state::value& stored);

}  // namespace detail

/// Tells a range which epoch comes next: calls its member `set_epoch(epoch)`, or goes on to the range below when it is
/// a range-v3 adaptor of one range; does nothing to any other range. Call it between two epochs only. Adaptors that
/// remember where they begin, such as `filter` and `drop_while`, do not notice that the elements below have changed:
/// their place is before `shuffle`, over a range that is the same in every epoch and no stream.
template <class Range>
void set_epoch(Range& range, std::int64_t epoch) {
  if constexpr (requires { range.set_epoch(epoch); })
    range.set_epoch(epoch);
  else if constexpr (detail::adapts_one_range<Range>)
    rondo::data::set_epoch(range.base(), epoch);
}

/// Tells a range on which device its elements will be used: calls its member `set_device(device)`, or goes on as
/// `set_epoch` does. Elements stay where they are; a stage may prepare the copy (`prefetch` pins memory for CUDA).
/// Call it between two epochs only.
template <class Range>
void set_device(Range& range, c10::Device device) {
  if constexpr (requires { range.set_device(device); })
    range.set_device(device);
  else if constexpr (detail::adapts_one_range<Range>)
    rondo::data::set_device(range.base(), device);
}

/// The settings of a pipeline that decide which elements it gives: {"stage": name, what the stage was made with,
/// "below": the same of the range below}, from the last stage down to the data set, which is {"stage": "source"}. A
/// data set with members `state_dict() const` and `load_state_dict(const state::value&)` gives its own state instead.
/// Adaptors of range-v3 have no level. Takes constant time; the position is not in it (see `pass`).
template <class Range>
[[nodiscard]] state::value state_dict(const Range& range) {
  if constexpr (detail::has_settings<Range>)
    return range.state_dict();
  else if constexpr (detail::adapts_one_range<const Range>)
    return rondo::data::state_dict(range.base());
  else
    return detail::source_state();
}

/// Gives a pipeline what `state_dict` returned. Seeds are taken over: where one differs, the stored one counts from now
/// on, and a warning names both. Numbers such as the size of a batch stay as they are; where one differs, a warning
/// names both. Throws `state_error` with the path of the level when the stored pipeline has other stages; the pipeline
/// is then unchanged. Call it between two epochs only.
template <class Range>
void load_state_dict(Range& range, const state::value& stored) {
  if constexpr (detail::has_settings<Range>)
    range.load_state_dict(stored);
  else if constexpr (detail::adapts_one_range<Range>)
    rondo::data::load_state_dict(range.base(), stored);
  else
    detail::check_source_state(stored);
}

namespace detail {

/// Collects the settings of one stage.
class settings_saver {
 public:
  explicit settings_saver(const char* stage) : level_{{"stage", stage}} {}

  void seed(const char* name, std::uint64_t value) { level_[name] = static_cast<std::int64_t>(value); }
  void number(const char* name, std::int64_t value) { level_[name] = value; }

  [[nodiscard]] state::dict over(state::value below) && {
    level_["below"] = std::move(below);
    return std::move(level_);
  }

 private:
  state::dict level_;
};

/// Compares the settings of one stage with stored ones, and changes them when all has been compared.
class settings_loader {
 public:
  /// Throws `state_error` when `stored`, which must live as long as this, is not the state of a stage of that name.
  settings_loader(const char* stage, const state::value& stored);

  void seed(const char* name, std::uint64_t& value);
  void number(const char* name, std::int64_t value);

  /// The stored state of the range below. Throws `state_error` when settings are stored that were not asked for.
  [[nodiscard]] const state::value& below() const;
  /// Takes the seeds over and warns of everything that differs.
  void apply() const;

 private:
  struct changed_seed {
    const char* name;
    std::uint64_t* present;
    std::uint64_t stored;
  };
  struct changed_number {
    const char* name;
    std::int64_t present;
    std::int64_t stored;
  };

  const char* stage_;
  const state::value& stored_;
  std::vector<std::string> known_;
  std::vector<changed_seed> seeds_;
  std::vector<changed_number> numbers_;
};

/// The state of a stage over `base`. A stage has a name, `static constexpr const char* stage_name`, and lists its
/// settings in `template <class Self, class Visitor> static void visit_settings(Self& self, Visitor& visitor)` by calls
/// of `visitor.seed(name, self.seed_)` and `visitor.number(name, self.limit_)`.
template <class Stage, class Base>
state::dict save_settings(const Stage& stage, const Base& base) {
  settings_saver saved(Stage::stage_name);
  Stage::visit_settings(stage, saved);
  return std::move(saved).over(rondo::data::state_dict(base));
}

/// The levels are compared from the top down, then changed from the bottom up: an error leaves all of them unchanged.
template <class Stage, class Base>
void load_settings(Stage& stage, Base& base, const state::value& stored) {
  settings_loader loader(Stage::stage_name, stored);
  Stage::visit_settings(stage, loader);
  const state::value& below = loader.below();
  try {
    rondo::data::load_state_dict(base, below);
  } catch (const state_error& e) {
    throw e.under("below");
  }
  loader.apply();
}

}  // namespace detail

}  // namespace rondo::data
