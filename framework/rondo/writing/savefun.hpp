#pragma once

#include <concepts>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "rondo/error.hpp"
#include "rondo/writing/file_system.hpp"

namespace at {
class Tensor;
}
namespace rondo::checkpoint {
class file_format;
}
namespace rondo::state {
template <class Tensor>
class basic_value;
using value = basic_value<at::Tensor>;
}  // namespace rondo::state

namespace rondo::writing {

/// Reads the state in a file; throws when that is not sound.
using loadfun = std::function<state::value(const path& file)>;

/// A format of the user's own (pytorch-pfn-extras: a writer's `savefun`): any function that writes `state` to a file at
/// `temporary`, a path at which nothing exists, and leaves it there closed. The file is then synced and given its name
/// as any other.
///
/// It runs where its writer works. The state is one instant; its tensors may refer to the writer's memory, so they are
/// valid during the call, and are neither kept nor changed. What it throws is the snapshot's error: as it is if it is
/// one of Rondo's, else within a savefun_error.
class savefun {
 public:
  using function = std::function<void(const path& temporary, const state::value& state)>;

  savefun() = default;
  savefun(std::nullptr_t) {}
  template <class F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, savefun> &&
             std::is_invocable_v<std::remove_cvref_t<F>&, const path&, const state::value&>)
  savefun(F&& save) : save_(std::forward<F>(save)) {}
  /// Together with its inverse, so that nobody has to name that one again.
  template <class Load>
  savefun(function save, Load&& inverse)
      : save_(std::move(save)), inverse_(std::make_shared<const loadfun>(std::forward<Load>(inverse))) {}

  [[nodiscard]] explicit operator bool() const noexcept { return has_function() || format_.get() != nullptr; }
  /// A template, so that it needs a whole at::Tensor only where it is called.
  template <std::same_as<state::value> State>
  void operator()(const path& temporary, const State& state) const {
    save_(temporary, state);
  }
  /// The name under which helper processes know it (see register_savefun); empty when they do not.
  [[nodiscard]] const std::string& name() const noexcept { return name_; }
  [[nodiscard]] savefun named(std::string name) const {
    savefun result = *this;
    result.name_ = std::move(name);
    return result;
  }
  /// Reads what it has written; nullptr when nobody has said how.
  [[nodiscard]] const loadfun* inverse() const noexcept { return inverse_.get(); }
  /// One that writes just this format: from staging memory it is then written without calling the function, which may
  /// be missing, so that every helper process can do it.
  [[nodiscard]] savefun in_format(std::shared_ptr<const checkpoint::file_format> format) const {
    savefun result = *this;
    result.format_ = std::move(format);
    return result;
  }
  [[nodiscard]] bool has_function() const noexcept { return static_cast<bool>(save_); }
  /// nullptr when nobody has said so.
  [[nodiscard]] const std::shared_ptr<const checkpoint::file_format>& format() const noexcept { return format_; }

 private:
  function save_;
  std::shared_ptr<const loadfun> inverse_;  // not a member itself, for whoever does not see a whole at::Tensor
  std::shared_ptr<const checkpoint::file_format> format_;
  std::string name_;
};

/// What a savefun threw, with the file that it was to save.
class savefun_error : public error {
 public:
  using error::error;
};

/// A savefun for a checkpoint in staging memory whose checksums nobody has computed.
using image_savefun = std::function<void(const path& target, const path& temporary, std::span<const std::byte> image)>;

}  // namespace rondo::writing
