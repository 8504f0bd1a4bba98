#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/core/GradMode.h>
#include <torch/nn/module.h>

#include <memory>
#include <range/v3/range/concepts.hpp>
#include <type_traits>
#include <utility>
#include <vector>

#include "rondo/data/example.hpp"
#include "rondo/data/stage.hpp"
#include "rondo/loop/supervised.hpp"

namespace rondo {

namespace extensions {

/// While it lives, `module` is in training mode and its batch normalisation gathers statistics anew, with the same
/// weight for each batch; modes and momenta are given back at the end.
class fresh_statistics {
 public:
  explicit fresh_statistics(torch::nn::Module& module);
  fresh_statistics(const fresh_statistics&) = delete;
  fresh_statistics& operator=(const fresh_statistics&) = delete;
  ~fresh_statistics();

  /// Whether there is no batch normalisation with statistics.
  [[nodiscard]] bool empty() const noexcept;
  [[nodiscard]] c10::Device device() const noexcept { return device_; }

 private:
  struct memory;
  std::unique_ptr<memory> before_;
  c10::Device device_;
};

}  // namespace extensions

/// Makes the running statistics of all batch normalisation in `model` anew, as the mean over these batches: needed
/// after weights were averaged (`swa`), as `torch.optim.swa_utils.update_bn`. `batches` have `data`; they are moved to
/// where the model's first parameter is. Modes and momenta are afterwards what they were, also after an error;
/// parameters are not touched. Does nothing where there is no batch normalisation. Blocks; the calling thread. `model`
/// is a module with a name, a `shared_ptr` to one or a module holder.
template <detail::model_argument Model, ranges::range Batches>
void update_batch_norm(Model&& model, Batches&& batches) {
  auto pointer = detail::model_pointer(std::forward<Model>(model));
  const extensions::fresh_statistics fresh(*pointer);
  if (fresh.empty()) return;
  const c10::AutoGradMode no_gradients(false);
  auto view = data::detail::all(std::forward<Batches>(batches));
  data::set_epoch(view, 0);
  for (auto&& element : view)
    static_cast<void>(
        detail::call_forward(pointer, data::to_device(std::decay_t<decltype(element)>(element), fresh.device()).data));
}

}  // namespace rondo
