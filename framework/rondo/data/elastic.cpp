#include "rondo/data/elastic.hpp"

#include <string>
#include <string_view>

namespace rondo::data {

namespace {

std::int64_t number_in(const state::dict& level, std::string_view stage, std::string_view name) {
  const auto* here = level.find("stage");
  const auto* text = here != nullptr ? here->get_if<std::string>() : nullptr;
  return text != nullptr && *text == stage ? level.at(name).as<std::int64_t>() : 1;
}

/// All ranks together, of one element of the last stage.
std::int64_t samples_of_element(const state::value& stages) {
  std::int64_t samples = 1;
  const auto* level = stages.get_if<state::dict>();
  while (level != nullptr) {
    samples *= number_in(*level, "batch", "batch_size") * number_in(*level, "distributed", "world_size");
    const auto* below = level->find("below");
    level = below != nullptr ? below->get_if<state::dict>() : nullptr;
  }
  return samples;
}

}  // namespace

moved_position position_in(const state::value& present, const state::value& stored) {
  const auto position = stored.get<std::int64_t>("position");
  const auto before = samples_of_element(stored.at("stages"));
  const auto now = samples_of_element(present.at("stages"));
  if (before == now) return {position, 0};
  return {position * before / now, position * before % now};
}

}  // namespace rondo::data
