#pragma once

#include <filesystem>
#include <functional>

#include "rondo/checkpoint/safetensors.hpp"
#include "rondo/state/value.hpp"

/// Files of other formats as snapshots: pairs for `snapshot_options::savefun` and `loadfun`.
///
///     loop | snapshot({.savefun = formats::safetensors(),
///                      .loadfun = formats::load_safetensors,
///                      .filename = "snapshot_iter_{iteration}.safetensors"});
namespace rondo::formats {

/// Writes the file of a state at a path at which nothing exists. Runs on the calling thread, directly from the
/// tensors' memory; tensors of other devices are copied to the CPU first. Brings nothing to stable storage, which
/// `snapshot` does. Throws `state_error` for a state that the format cannot hold (see
/// `checkpoint::safetensors_encoder`; tensors of dtype complex128 among others), `io_error` when the file exists or
/// cannot be written.
///
/// `metadata` is added to the header of every file. Tied weights are written for each of their names and are separate
/// after loading into nothing; loaded into a module that ties them, they are tied as ever.
[[nodiscard]] std::function<void(const std::filesystem::path& temporary, const state::value& state)> safetensors(
    checkpoint::safetensors_metadata metadata = {});

/// The inverse: the state of a safetensors file, with tensors on the CPU that own their memory. What another program
/// wrote is a dict of tensors. Throws `format_error` or `io_error` for a file that is not sound. The format has no
/// checksums, so a changed bit of a tensor's data goes unnoticed; `snapshot` without a savefun writes files in which it
/// does not.
[[nodiscard]] state::value load_safetensors(const std::filesystem::path& file);

}  // namespace rondo::formats
