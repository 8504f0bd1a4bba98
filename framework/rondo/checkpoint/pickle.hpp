#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "rondo/checkpoint/tensor_descriptor.hpp"

namespace rondo::checkpoint {

/// The deepest nesting that is written or read.
inline constexpr std::size_t max_tree_depth = 512;

/// The most bytes that a `state::bytes` in a pickle may have; as text they may double.
inline constexpr std::size_t max_bytes_size = (std::size_t{1} << 30) - 1;

/// The tree as a pickle of protocol 2, made only of opcodes and globals that PyTorch's `weights_only` unpickler
/// accepts. Equal trees give equal bytes.
/// Throws `state_error` with the dotted path of a node that no pickle can hold: nested deeper than `max_tree_depth`,
/// text that is not UTF-8 (bytes are the type for that), text of 2 GiB or bytes of 1 GiB and more, an impossible
/// tensor.
[[nodiscard]] std::vector<std::byte> encode_pickle(const tree& state);

/// How much a pickle may ask for. The defaults hold the states of millions of tensors and refuse what only an
/// attacker would write.
struct pickle_limits {
  std::size_t depth = max_tree_depth;
  /// Containers, calls and tensors that the pickle itself may create.
  std::size_t objects = std::size_t{1} << 25;
  /// Nodes of the resulting tree, dict keys included, after everything shared has been copied to each place that
  /// uses it.
  std::size_t nodes = std::size_t{1} << 24;
  /// Bytes of all text and bytes in the resulting tree, counted likewise.
  std::size_t text = std::size_t{1} << 30;
};

/// Reads what Python's `pickle` (protocols 2 to 5) and `torch.save` write, without executing anything: `OrderedDict`
/// becomes a dict (its attributes are dropped), `torch.Size` a tuple, sets become lists, `bytearray` bytes, a dtype or
/// device text ("torch.float32", "cuda:0"), tensors and parameters descriptors. Any other class or function stays
/// inert, as a dict {"__global__": "module.name", "args": …, "items": […], "entries": {…}, "state": …} of which only
/// the keys that are needed appear ("items" and "entries": what was appended or assigned to it). An integer of more
/// than 64 bits becomes {"__global__": "builtins.int", "args": (hexadecimal digits, 16)}.
///
/// `where` names the source in errors. Throws `format_error` with the offset inside `pickle` for anything damaged,
/// self-referring, beyond the limits or not representable (a dict key other than text or an integer of 64 bits).
[[nodiscard]] tree decode_pickle(std::span<const std::byte> pickle, const std::string& where,
                                 const pickle_limits& limits = {});

}  // namespace rondo::checkpoint
