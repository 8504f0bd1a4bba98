#include "elements.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "outcome.hpp"
#include "text.hpp"

namespace rondo::tool {

namespace {

constexpr std::uint64_t free_repetition = std::uint64_t{1} << 30;  // bytes
constexpr std::uint64_t most_repetitions = 16;

void refuse_repetition(const checkpoint::tensor_descriptor& tensor) {
  const auto shown = numel(tensor);
  const auto stored = static_cast<std::uint64_t>(tensor.storage_numel);
  if (byte_size(tensor) <= free_repetition || shown / most_repetitions <= stored) return;
  throw unusable_error(fmt::format(
      "a tensor shows {} stored elements as {} elements ({}), again and again; it is not written out, because no "
      "training makes such a tensor",
      grouped(stored), grouped(shown), human_size(byte_size(tensor))));
}

template <std::size_t Size>
void copy_strided(std::byte* to, const std::byte* from, std::uint64_t count, std::uint64_t stride) {
  for (std::uint64_t i = 0; i < count; ++i) std::memcpy(to + i * Size, from + i * stride * Size, Size);
}

}  // namespace

std::uint64_t numel(const checkpoint::tensor_descriptor& tensor) {
  std::uint64_t count = 1;
  for (const auto size : tensor.sizes) count *= static_cast<std::uint64_t>(size);
  return count;
}

std::uint64_t byte_size(const checkpoint::tensor_descriptor& tensor) {
  std::uint64_t bytes = 0;
  const auto size = static_cast<std::uint64_t>(checkpoint::element_size(tensor.dtype));
  if (__builtin_mul_overflow(numel(tensor), size, &bytes)) return std::numeric_limits<std::uint64_t>::max();
  return bytes;
}

elements::elements(const checkpoint::tensor_descriptor& tensor, std::span<const std::byte> storage)
    : storage_(storage),
      element_size_(static_cast<std::size_t>(checkpoint::element_size(tensor.dtype))),
      offset_(static_cast<std::uint64_t>(tensor.storage_offset)),
      left_(byte_size(tensor)) {
  refuse_repetition(tensor);
  merge_dimensions(tensor);
}

void elements::merge_dimensions(const checkpoint::tensor_descriptor& tensor) {
  for (std::size_t i = 0; i < tensor.sizes.size() && left_ > 0; ++i) {
    const auto size = static_cast<std::uint64_t>(tensor.sizes[i]);
    const auto stride = static_cast<std::uint64_t>(tensor.strides[i]);
    if (size == 1) continue;
    const bool continues = !dimensions_.empty() && dimensions_.back().stride == size * stride;
    if (continues)
      dimensions_.back() = {dimensions_.back().size * size, stride};
    else
      dimensions_.push_back({size, stride});
  }
  if (dimensions_.empty()) dimensions_.push_back({1, 1});
}

bool elements::is_contiguous() const { return dimensions_.size() == 1 && dimensions_[0].stride == 1; }

std::span<const std::byte> elements::next(std::size_t size) {
  const auto wanted = static_cast<std::size_t>(std::min<std::uint64_t>(size, left_));
  if (wanted == 0) return {};
  left_ -= wanted;
  const auto count = wanted / element_size_;
  if (is_contiguous()) {
    const auto piece = storage_.subspan(static_cast<std::size_t>(offset_) * element_size_, wanted);
    offset_ += count;
    return piece;
  }
  gathered_.resize(wanted);
  for (std::size_t done = 0; done < count;) {
    const auto& row = dimensions_.back();
    const auto piece = std::min<std::uint64_t>(count - done, row.size - row.at);
    copy_row(gathered_.data() + done * element_size_, piece);
    step_over(piece);
    done += static_cast<std::size_t>(piece);
  }
  return gathered_;
}

void elements::copy_row(std::byte* to, std::uint64_t count) const {
  const auto* from = storage_.data() + offset_ * element_size_;
  const auto stride = dimensions_.back().stride;
  if (stride == 1) {
    std::memcpy(to, from, static_cast<std::size_t>(count) * element_size_);
    return;
  }
  switch (element_size_) {
    case 1:
      return copy_strided<1>(to, from, count, stride);
    case 2:
      return copy_strided<2>(to, from, count, stride);
    case 4:
      return copy_strided<4>(to, from, count, stride);
    case 8:
      return copy_strided<8>(to, from, count, stride);
    default:
      return copy_strided<16>(to, from, count, stride);
  }
}

void elements::step_over(std::uint64_t count) {
  dimensions_.back().at += count;
  offset_ += count * dimensions_.back().stride;
  for (auto i = dimensions_.size(); i-- > 0 && dimensions_[i].at == dimensions_[i].size;) {
    offset_ -= dimensions_[i].size * dimensions_[i].stride;
    dimensions_[i].at = 0;
    if (i == 0) return;
    dimensions_[i - 1].at += 1;
    offset_ += dimensions_[i - 1].stride;
  }
}

}  // namespace rondo::tool
