#include "rondo/writing/register_savefun.hpp"

#include <fmt/format.h>

#include <exception>
#include <utility>

#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/tensors.hpp"
#include "rondo/error.hpp"
#include "rondo/writing/helper/registry.hpp"
#include "rondo/writing/save_encoded.hpp"

namespace rondo::writing {

savefun register_savefun(std::string name, savefun save) {
  if (!save) return save;  // Rondo's own format, which all helpers know
  helper::add_savefun(name, saving_image(save));
  return save.named(std::move(name));
}

image_savefun saving_image(savefun save) {
  if (const auto& format = save.format()) {
    return [format](const path& target, const path& temporary, std::span<const std::byte> image) {
      save_image(*format, target, temporary, image);
    };
  }
  return [save = std::move(save)](const path& target, const path& temporary, std::span<const std::byte> image) {
    const auto file = checkpoint::reader::from_image(image, target.string());
    save_by(save, target, temporary, checkpoint::view_state(file));
  };
}

void save_by(const savefun& save, const path& target, const path& temporary, const state::value& state) {
  try {
    if (save.has_function()) return save(temporary, state);
    const auto described = checkpoint::describe(state);
    save_encoded(temporary, save.format()->encode(described.tree, described.views(), checkpoint::snapshot_info()));
  } catch (const error&) {
    throw;
  } catch (...) {
    std::throw_with_nested(savefun_error(
        fmt::format("the savefun could not save '{}': {}", target.string(), message_of(std::current_exception()))));
  }
}

}  // namespace rondo::writing
