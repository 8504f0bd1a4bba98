#include "rondo/state/bits.hpp"

#include <c10/core/Device.h>
#include <c10/core/Layout.h>

#include "rondo/error.hpp"

namespace rondo::state {

bool has_plain_bytes(const at::Tensor& t, const char** why) noexcept {
  const char* reason = nullptr;
  if (!t.defined())
    reason = "the tensor is undefined";
  else if (t.is_sparse() || t.layout() != at::kStrided)
    reason = "the tensor is not dense (sparse or MKL-DNN layout); store t.to_dense(), or its indices and values";
  else if (t.is_quantized())
    reason = "the tensor is quantized; store t.int_repr() with its scale and zero point, or t.dequantize()";
  else if (t.is_meta() || !t.has_storage())
    reason = "the tensor holds no data of its own (meta device or a wrapper)";
  if (why != nullptr) *why = reason;
  return reason == nullptr;
}

at::Tensor plain_bytes(const at::Tensor& t) {
  const char* why = nullptr;
  if (!has_plain_bytes(t, &why)) throw state_error("", why);
  return t.detach().cpu().resolve_conj().resolve_neg().contiguous();
}

}  // namespace rondo::state
