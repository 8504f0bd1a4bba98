#include "rondo/extensions/snapshot/formats.hpp"

#include <span>
#include <utility>

#include "rondo/checkpoint/tensors.hpp"
#include "rondo/writing/file_system.hpp"

namespace rondo::formats {

std::function<void(const std::filesystem::path&, const state::value&)> safetensors(
    checkpoint::safetensors_metadata metadata) {
  return [metadata = std::move(metadata)](const std::filesystem::path& temporary, const state::value& state) {
    const auto described = checkpoint::describe(state);
    const checkpoint::safetensors_encoder encoder(described.tree, described.views(), metadata);
    const auto file = writing::posix_file_system()->create(temporary, encoder.size());
    encoder.write([&](std::span<const std::byte> bytes) { file->append(bytes); });
    file->close();
  };
}

state::value load_safetensors(const std::filesystem::path& file) {
  return checkpoint::materialize(checkpoint::safetensors_file::open(file));
}

}  // namespace rondo::formats
