#include "rondo/distributed/packing.hpp"

#include <ATen/ATen.h>

namespace rondo::distributed::detail {

std::int64_t packed_size(const at::Tensor& tensor) { return aligned(static_cast<std::int64_t>(tensor.nbytes())); }

at::Tensor as_bytes(const at::Tensor& tensor) { return tensor.detach().view(-1).view(at::kByte); }

at::Tensor place_in_message(const at::Tensor& message, std::int64_t offset, const at::Tensor& tensor) {
  const auto bytes = message.narrow(0, offset, static_cast<std::int64_t>(tensor.nbytes()));
  return bytes.view(tensor.scalar_type()).view(tensor.sizes());
}

}  // namespace rondo::distributed::detail
