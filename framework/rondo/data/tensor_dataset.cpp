#include "rondo/data/tensor_dataset.hpp"

#include <ATen/Functions.h>
#include <fmt/format.h>

#include <cstddef>
#include <cstring>
#include <string>

#include "rondo/error.hpp"

namespace rondo::data {

namespace {

std::int64_t leading_dimension(const char* option, const at::Tensor& tensor) {
  if (!tensor.defined()) throw option_error(option, "an undefined tensor", "a tensor with one row per example");
  if (tensor.dim() == 0) throw option_error(option, "a tensor without dimensions", "a tensor with one row per example");
  return tensor.size(0);
}

/// A copy of row `index`. Of small rows, most of the time of `select` and `clone` is their own.
at::Tensor copy_of_row(const at::Tensor& rows, std::int64_t index) {
  const bool is_plain = rows.layout() == at::kStrided && rows.device().is_cpu() && rows.is_contiguous() &&
                        !rows.is_quantized() && !rows.is_conj() && !rows.is_neg() && !rows.requires_grad();
  if (!is_plain) return rows.select(0, index).clone();
  auto row = at::empty(rows.sizes().slice(1), rows.options());
  if (const auto bytes = row.nbytes(); bytes != 0)
    std::memcpy(row.data_ptr(), static_cast<const char*>(rows.data_ptr()) + static_cast<std::size_t>(index) * bytes,
                bytes);
  return row;
}

}  // namespace

tensor_dataset::tensor_dataset(at::Tensor data, at::Tensor target)
    : tensors_(std::move(data), std::move(target)), size_(leading_dimension("data", tensors_.data)) {
  const auto targets = leading_dimension("target", tensors_.target);
  if (targets != size_)
    throw option_error("target", fmt::format("a tensor with {} rows", targets),
                       fmt::format("{} rows, as in data", size_));
}

example tensor_dataset::operator[](std::int64_t index) const {
  TORCH_CHECK_INDEX(index >= 0 && index < size_, "example ", index, " of a data set with ", size_, " examples");
  return {copy_of_row(tensors_.data, index), copy_of_row(tensors_.target, index)};
}

example tensor_dataset::gather(std::span<const std::int64_t> positions) const {
  // LibTorch has no tensor over const memory; index_select only reads it.
  const auto index = at::from_blob(const_cast<std::int64_t*>(positions.data()),
                                   {static_cast<std::int64_t>(positions.size())}, at::TensorOptions().dtype(at::kLong));
  const auto select = [&](const at::Tensor& tensor) { return tensor.index_select(0, index.to(tensor.device())); };
  if (size_ == 0 && positions.empty()) return tensors_;
  return {select(tensors_.data), select(tensors_.target)};
}

}  // namespace rondo::data
