#include "rondo/data/settings.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "rondo/log.hpp"

namespace rondo::data::detail {

namespace {

constexpr const char* source_name = "source";

/// What a stored level is, for messages.
std::string described(const state::value& stored) {
  const auto* level = stored.get_if<state::dict>();
  if (level == nullptr) return "found " + stored.type_name();
  const auto* stage = level->find("stage");
  if (stage == nullptr) return "found the state of a data set of its own kind";
  const auto* name = stage->get_if<std::string>();
  return name == nullptr ? "found a stage without a name" : fmt::format("found '{}'", *name);
}

bool is_stage(const state::value& stored, std::string_view name) {
  const auto* level = stored.get_if<state::dict>();
  const auto* stage = level == nullptr ? nullptr : level->find("stage");
  const auto* text = stage == nullptr ? nullptr : stage->get_if<std::string>();
  return text != nullptr && *text == name;
}

void require_stage(const state::value& stored, const char* name) {
  if (is_stage(stored, name)) return;
  throw state_error("",
                    fmt::format("expected the state of data stage '{}', {}; build the pipeline with the stages that "
                                "it had when the state was saved",
                                name, described(stored)));
}

}  // namespace

state::dict source_state() { return {{"stage", source_name}}; }

void check_source_state(const state::value& stored) { require_stage(stored, source_name); }

settings_loader::settings_loader(const char* stage, const state::value& stored)
    : stage_(stage), stored_(stored), known_{"stage", "below"} {
  require_stage(stored, stage);
}

void settings_loader::seed(const char* name, std::uint64_t& value) {
  known_.emplace_back(name);
  const auto stored = static_cast<std::uint64_t>(stored_.get<std::int64_t>(name));
  if (stored != value) seeds_.push_back({name, &value, stored});
}

void settings_loader::number(const char* name, std::int64_t value) {
  known_.emplace_back(name);
  const auto stored = stored_.get<std::int64_t>(name);
  if (stored != value) numbers_.push_back({name, value, stored});
}

const state::value& settings_loader::below() const {
  for (const auto& [key, value] : stored_.as<state::dict>())
    if (std::find(known_.begin(), known_.end(), key.str()) == known_.end())
      throw state_error(key.str(),
                        fmt::format("is stored for data stage '{}', which has no such setting here", stage_));
  return stored_.at("below");
}

void settings_loader::apply() const {
  for (const auto& each : seeds_) {
    log::warn(fmt::format("data::{}: {} is {} here and {} in the loaded state; the loaded one is used", stage_,
                          each.name, *each.present, each.stored));
    *each.present = each.stored;
  }
  for (const auto& each : numbers_)
    log::warn(fmt::format("data::{}: {} is {} here and {} in the loaded state; the present one is used", stage_,
                          each.name, each.present, each.stored));
}

}  // namespace rondo::data::detail
