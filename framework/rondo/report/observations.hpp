#pragma once

#include <ATen/core/Tensor.h>

#include <concepts>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "rondo/error.hpp"

namespace rondo {

/// Asked for an observation that nobody has reported. `what()` lists what has been.
class observation_error : public error {
 public:
  observation_error(std::string key, const std::string& problem);
  [[nodiscard]] const std::string& key() const noexcept { return key_; }

 private:
  std::string key_;
};

/// A name for an observation together with the type it is read as: `inline constexpr observable<double> loss{"loss"};`
template <class T>
struct observable {
  std::string_view name;
};

class observations;

/// One reported number. A device tensor stays on its device, unsynchronised, until somebody reads it.
class observation {
 public:
  observation() = default;
  observation(double number, double weight) : value_(number), weight_(weight) {}
  observation(at::Tensor scalar, double weight) : value_(std::move(scalar)), weight_(weight) {}

  /// The number. Waits for the device when it is a device tensor.
  [[nodiscard]] double value() const;
  /// Weight in averages, normally the number of samples behind the number.
  [[nodiscard]] double weight() const noexcept { return weight_; }
  /// The tensor if the number has not come to the host yet, else nullptr.
  [[nodiscard]] const at::Tensor* on_device() const noexcept;

 private:
  friend class observations;
  std::variant<double, at::Tensor> value_ = 0.0;
  double weight_ = 1.0;
};

/// What has been reported in the current iteration (ppe: `manager.observation`). Training thread only.
class observations {
 public:
  /// Reports `value` under `key` (with the prefixes of the open scopes before it). A key that is already there is
  /// replaced. Without a `weight` it has that of `weigh_by`.
  template <class V>
    requires std::is_arithmetic_v<V>
  void report(std::string_view key, V value, std::optional<double> weight = std::nullopt) {
    auto& place = slot(key);
    place.value = observation(static_cast<double>(value), weight.value_or(weight_));
    place.weighed = weight.has_value();
  }
  /// The same for a tensor of one element. A device tensor is copied on its device and not waited for; one on the CPU is
  /// read at once. Throws `observation_error` when it has more elements.
  void report(std::string_view key, const at::Tensor& scalar, std::optional<double> weight = std::nullopt);

  /// What numbers weigh from now on that are reported without a weight: the samples of the present batch. At first 1.
  void weigh_by(double weight) noexcept { weight_ = weight; }
  /// The same, and what has been reported without a weight in this iteration before.
  void weigh_all_by(double weight) noexcept;

  /// nullptr when `key` has not been reported in this iteration.
  [[nodiscard]] const observation* find(std::string_view key) const noexcept;
  /// Throws `observation_error` naming `key` and the keys that are there.
  [[nodiscard]] const observation& at(std::string_view key) const;

  /// `f(key, observation)` for everything reported in this iteration, in the order in which it was (first) reported.
  template <std::invocable<const std::string&, const observation&> F>
  void for_each(F&& f) const {
    for (std::size_t i = 0; i < present_; ++i) f(std::as_const(entries_[i].key), std::as_const(entries_[i].value));
  }

  /// Forgets the numbers. Called by the loop at the beginning of each iteration.
  void clear() noexcept { present_ = 0; }

  /// While it lives, every reported key gets `prefix` in front.
  class scope {
   public:
    scope(observations& where, std::string_view prefix);
    ~scope();
    scope(const scope&) = delete;
    scope& operator=(const scope&) = delete;

   private:
    observations& where_;
    std::size_t outer_;
  };

  /// While it lives, what had been reported before it is put aside: the observations begin empty, and are what they were
  /// when it goes. For whoever lets somebody else report and looks at the result first, such as an evaluator.
  class aside;

 private:
  struct entry {
    std::string key;
    observation value;
    bool weighed = false;  ///< by who has reported it
  };

  entry& slot(std::string_view key);

  // Few keys, as a rule the same ones in the same order each time: kept between iterations, found by a scan. The first
  // ones are those of this iteration.
  std::vector<entry> entries_;
  std::size_t present_ = 0;
  double weight_ = 1.0;
  std::string prefix_;
};

class observations::aside {
 public:
  explicit aside(observations& where) : where_(where), before_(std::exchange(where, {})) {}
  ~aside() { where_ = std::move(before_); }
  aside(const aside&) = delete;
  aside& operator=(const aside&) = delete;

  /// What has been reported since.
  [[nodiscard]] observations& current() noexcept { return where_; }

 private:
  observations& where_;
  observations before_;
};

}  // namespace rondo
