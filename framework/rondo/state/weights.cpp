#include "rondo/state/weights.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/tensors.hpp"
#include "rondo/checkpoint/verify.hpp"
#include "rondo/state/module.hpp"

namespace rondo::state {

namespace {

const value& part_at(const value& whole, std::string_view path, const std::filesystem::path& file) {
  const value* part = &whole;
  for (std::size_t begin = 0; begin < path.size();) {
    const auto end = std::min(path.find('.', begin), path.size());
    try {
      part = &part->at(std::string(path.substr(begin, end - begin)));
    } catch (const state_error& e) {
      throw state_error(std::string(path), fmt::format("is not in '{}': {}", file.string(), e.what()));
    }
    begin = end + 1;
  }
  return *part;
}

}  // namespace

void load_weights(torch::nn::Module& module, const std::filesystem::path& file, const load_options& options,
                  std::string_view at) {
  checkpoint::require_readable(file);
  const auto reader = checkpoint::reader::open(file);
  checkpoint::verify(reader);
  const value whole = checkpoint::materialize(reader);

  loading act(options, fmt::format("the state in '{}'", file.string()));
  const auto apply = prepare_module_load(module, part_at(whole, at, file), act);
  act.require_fit();
  apply();
  act.report();
}

}  // namespace rondo::state
