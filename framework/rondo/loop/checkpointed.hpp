#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <concepts>
#include <functional>
#include <memory>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "rondo/state/stateful.hpp"

namespace rondo {

namespace detail {

using tensor_list = std::vector<at::Tensor>;
using recomputation = std::function<tensor_list(const tensor_list& inputs)>;

/// `module`, which may be null, is where batch normalisation is looked for.
[[nodiscard]] tensor_list run_checkpointed(recomputation block, const tensor_list& inputs,
                                           std::shared_ptr<torch::nn::Module> module);

inline tensor_list listed(const at::Tensor& one) { return {one}; }
inline tensor_list listed(tensor_list all) { return all; }
template <class... T>
tensor_list listed(const std::tuple<T...>& all) {
  return std::apply([](const auto&... one) { return tensor_list{one...}; }, all);
}

template <class Result>
Result unlisted(const tensor_list& all) {
  if constexpr (std::same_as<Result, at::Tensor>) {
    return all.at(0);
  } else if constexpr (std::same_as<Result, tensor_list>) {
    return all;
  } else {
    return [&]<std::size_t... I>(std::index_sequence<I...>) { return Result(all.at(I)...); }
    (std::make_index_sequence<std::tuple_size_v<Result>>());
  }
}

template <class F, class... Inputs>
auto checkpointed_call(F call, std::shared_ptr<torch::nn::Module> module, const Inputs&... inputs) {
  using result = std::decay_t<std::invoke_result_t<F&, const Inputs&...>>;
  recomputation block = [call = std::move(call)](const tensor_list& all) mutable -> tensor_list {
    return [&]<std::size_t... I>(std::index_sequence<I...>) { return listed(call(all[I]...)); }
    (std::index_sequence_for<Inputs...>());
  };
  return unlisted<result>(run_checkpointed(std::move(block), {inputs...}, std::move(module)));
}

}  // namespace detail

/// `block->forward(inputs...)`, without keeping what it computes in between for `backward`, which computes it again:
/// time for memory, as `torch.utils.checkpoint` (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).
///
///     x = checkpointed(block, x);
///
/// Inputs are tensors; the block returns a tensor, a `std::vector` or a `std::tuple` of them. Outputs and gradients
/// have the same bits as without, for a block that is used once: random numbers (dropout) and autocast are those of the
/// first time, on the CPU and on CUDA, and the running statistics of `torch::nn::BatchNorm` in the block are updated
/// once. (Where one is used several times, sums of its gradients may be rounded in another order.) Gradients for
/// parameters alone, where no input needs one, work too. Use `backward()` as a whole: not `torch::autograd::grad`, nor
/// `backward` for chosen inputs, nor gradients of gradients. The inputs must not be changed in place meanwhile
/// (LibTorch notices that), nor the parameters.
template <state::module_holder Holder, std::same_as<at::Tensor>... Inputs>
auto checkpointed(const Holder& block, const Inputs&... inputs) {
  auto call = [module = block.ptr()](const auto&... in) mutable { return module->forward(in...); };
  return detail::checkpointed_call(std::move(call), block.ptr(), inputs...);
}
/// For any callable that depends on its inputs alone. Batch normalisation inside is not known as such, and counts each
/// batch twice: give the module itself.
template <class F, std::same_as<at::Tensor>... Inputs>
  requires(!state::module_holder<F> && std::invocable<F&, const Inputs&...>)
auto checkpointed(F block, const Inputs&... inputs) {
  return detail::checkpointed_call(std::move(block), nullptr, inputs...);
}

}  // namespace rondo
