#include "rondo/extensions/snapshot/formats.hpp"

#include <cstdint>
#include <memory>
#include <utility>

#include "rondo/checkpoint/mapped_file.hpp"
#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/tensors.hpp"
#include "rondo/extensions/snapshot/snapshot_file.hpp"
#include "rondo/writing/save_encoded.hpp"

namespace rondo::formats {

namespace {

using bytes = std::vector<std::byte>;

rondo::checkpoint::snapshot_info info_of(const state::value& state) {
  const auto* root = state.get_if<state::dict>();
  const auto* iteration = root == nullptr ? nullptr : root->find("_start_iteration");
  const auto* number = iteration == nullptr ? nullptr : iteration->get_if<std::int64_t>();
  return extensions::snapshot_info_of("", number == nullptr ? 0 : *number, 0, false);
}

format built_in(std::shared_ptr<const rondo::checkpoint::file_format> known) {
  format result;
  result.encode = [known](const state::value& state) {
    // Copies of what is not in the CPU's memory live here.
    const auto described = std::make_shared<const rondo::checkpoint::described>(rondo::checkpoint::describe(state));
    auto file = known->encode(described->tree, described->views(), info_of(state));
    auto write = [described, write = std::move(file.write)](const rondo::checkpoint::byte_sink& sink) { write(sink); };
    return rondo::checkpoint::encoded_file{file.size, std::move(write)};
  };
  result.built_in = std::move(known);
  return result;
}

format read_as_checkpoint(format result) {
  result.load = [](const writing::path& file) {
    return rondo::checkpoint::materialize_verified(rondo::checkpoint::reader::open(file));
  };
  result.parse = [](bytes file, std::string where) {
    return rondo::checkpoint::materialize_verified(
        rondo::checkpoint::reader::from_bytes(std::move(file), std::move(where)));
  };
  return result;
}

}  // namespace

void format::save(const writing::path& file, const state::value& state) const {
  writing::save_encoded(file, encode(state));
}

format::operator writing::savefun() const {
  if (is_rondos_own) return {};
  const auto save = [self = *this](const writing::path& temporary, const state::value& state) {
    self.save(temporary, state);
  };
  return writing::savefun(save, load).in_format(built_in);
}

format checkpoint() {
  auto result = read_as_checkpoint(built_in(rondo::checkpoint::checkpoint_format()));
  result.is_rondos_own = true;
  return result;
}

format libtorch() { return read_as_checkpoint(built_in(rondo::checkpoint::libtorch_format())); }

format safetensors(checkpoint::safetensors_metadata metadata) {
  using rondo::checkpoint::safetensors_file;
  auto result = built_in(rondo::checkpoint::safetensors_format(std::move(metadata)));
  result.load = [](const writing::path& file) { return rondo::checkpoint::materialize(safetensors_file::open(file)); };
  result.parse = [](bytes file, std::string where) {
    return rondo::checkpoint::materialize(safetensors_file::from_bytes(std::move(file), std::move(where)));
  };
  return result;
}

format zstd(format content, int level, int threads) {
  rondo::checkpoint::check_compression(level, threads);
  const auto inside = std::make_shared<const format>(std::move(content));
  format result;
  result.encode = [inside, level, threads](const state::value& state) {
    return rondo::checkpoint::compressed(inside->encode(state), level, threads);
  };
  result.parse = [inside](const bytes& file, const std::string& where) {
    return inside->parse(rondo::checkpoint::decompressed(file, where), where);
  };
  result.load = [inside](const writing::path& file) {
    const rondo::checkpoint::mapped_file mapped(file);
    mapped.require_readable(0, mapped.bytes().size());
    return inside->parse(rondo::checkpoint::decompressed(mapped.bytes(), file.string()), file.string());
  };
  if (inside->built_in) result.built_in = rondo::checkpoint::zstd_format(inside->built_in, level, threads);
  return result;
}

}  // namespace rondo::formats
