#pragma once

#include <ATen/core/Tensor.h>

namespace rondo::state {

/// `t` as a contiguous CPU tensor whose memory is exactly the bytes of its elements, with pending conjugations and
/// negations carried out: `t` itself where it already is that, a copy otherwise. Throws `state_error` (without a key)
/// for an undefined tensor and for kinds without such bytes: sparse, quantized, MKL-DNN, meta.
[[nodiscard]] at::Tensor plain_bytes(const at::Tensor& t);

/// Whether `plain_bytes` can serve `t`; if not, `why` tells the reason for an error message.
[[nodiscard]] bool has_plain_bytes(const at::Tensor& t, const char** why = nullptr) noexcept;

}  // namespace rondo::state
