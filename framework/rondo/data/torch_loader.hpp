#pragma once

#include <concepts>
#include <cstdint>
#include <memory>
#include <optional>
#include <range/v3/range/access.hpp>
#include <range/v3/view/facade.hpp>
#include <utility>

#include "rondo/data/stage.hpp"
#include "rondo/state/random.hpp"
#include "rondo/state/value.hpp"

namespace rondo::data {

namespace detail {

/// `torch::data::StatelessDataLoader` and `StatefulDataLoader`.
template <class T>
concept torch_loader_type = requires(T& loader) {
  typename T::BatchType;
  { loader.begin() == loader.end() } -> std::convertible_to<bool>;
  loader.options();
};

template <torch_loader_type Loader>
class torch_loader_view : public ranges::view_facade<torch_loader_view<Loader>, ranges::unknown> {
 public:
  using streamed_value = typename Loader::BatchType;

  torch_loader_view() = default;
  explicit torch_loader_view(std::shared_ptr<Loader> loader) : loader_(std::move(loader)) {}

  void set_epoch(std::int64_t epoch) { epoch_ = epoch; }
  [[nodiscard]] state::dict state_dict() const {
    return {{"stage", "torch_loader"}, {"epoch", begun_.epoch}, {"random", begun_.random}};
  }
  void load_state_dict(const state::value& stored) {
    if (stored.get<std::string>("stage") != "torch_loader")
      throw state_error("stage", "is not that of a DataLoader of LibTorch");
    sought_ = beginning{stored.get<std::int64_t>("epoch"), stored.at("random")};
  }

 private:
  friend ranges::range_access;
  friend stream_cursor<torch_loader_view>;
  using iterator = decltype(std::declval<Loader&>().begin());

  /// The generators from which the sampler draws the order of an epoch.
  struct beginning {
    std::int64_t epoch = -1;
    state::value random = {};
  };

  [[nodiscard]] auto begin_cursor() {
    drain();
    const auto known = std::exchange(sought_, std::nullopt);
    if (known && known->epoch == epoch_ && known->random.template is<state::dict>())
      state::load_random_state(known->random);
    begun_ = {epoch_, state::random_state()};
    at_->emplace(loader_->begin());
    return stream_cursor<torch_loader_view>(this);
  }
  [[nodiscard]] ranges::default_sentinel_t end_cursor() const { return {}; }
  [[nodiscard]] streamed_value& current() { return ***at_; }
  [[nodiscard]] bool exhausted() { return **at_ == loader_->end(); }
  void produce_next() { ++**at_; }

  /// LibTorch allows no second iterator beside one that is not at its end.
  void drain() {
    if (!at_->has_value()) return;
    while (!exhausted()) produce_next();
    at_->reset();
  }

  std::shared_ptr<Loader> loader_;
  std::int64_t epoch_ = 0;
  beginning begun_;
  std::optional<beginning> sought_;
  left_behind<iterator> at_;
};

}  // namespace detail

/// The batches of a DataLoader of LibTorch (`torch::data::make_data_loader`), for a loop or an evaluator:
///
///     auto loader = torch::data::make_data_loader(std::move(dataset), torch::data::DataLoaderOptions(64).workers(2));
///     rondo::loop loop(model, optimizer, data::torch_loader(*loader), loss, {.max_epochs = 10});
///
/// A stream of unknown length. A resumed run gives the epoch the order that it had, because the state keeps LibTorch's
/// generators as they were when the epoch began; the batches before the position are made again and dropped. That is
/// exact if nothing but the sampler draws from LibTorch's default generator: not where transforms draw from it in
/// several workers. Waiting for a batch blocks the thread, signals and timers included: Rondo's own pipelines do not.
///
/// A loader that is given as it is is not owned and must outlive the view; a `unique_ptr` or `shared_ptr` is kept.
/// Copies share the loader, of which LibTorch allows one iterator at a time.
template <detail::torch_loader_type Loader>
[[nodiscard]] auto torch_loader(Loader& loader) {
  return detail::torch_loader_view<Loader>(std::shared_ptr<Loader>(std::shared_ptr<void>(), &loader));
}
template <detail::torch_loader_type Loader>
[[nodiscard]] auto torch_loader(std::shared_ptr<Loader> loader) {
  return detail::torch_loader_view<Loader>(std::move(loader));
}
template <detail::torch_loader_type Loader>
[[nodiscard]] auto torch_loader(std::unique_ptr<Loader> loader) {
  return detail::torch_loader_view<Loader>(std::shared_ptr<Loader>(std::move(loader)));
}

}  // namespace rondo::data
