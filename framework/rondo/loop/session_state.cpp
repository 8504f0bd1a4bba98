// What of a run is saved in a snapshot, and how it comes back.

#include <c10/util/Type.h>
#include <fmt/format.h>
#include <torch/types.h>

#include <algorithm>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "rondo/log.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/loop/session.hpp"
#include "rondo/state/random.hpp"

namespace rondo::detail {

namespace {

/// Loads `objects` by name from `state`; what is on one side only is an error.
template <class Named, class Load>
void load_named(const char* part, const std::vector<Named>& objects, const state::value& state, Load load) {
  const auto& stored = state.as<state::dict>();
  for (const auto& [key, ignored] : stored) {
    const bool known = std::any_of(objects.begin(), objects.end(), [&](const Named& o) { return o.name == key.str(); });
    if (!known)
      throw state_error(std::string(part) + "." + key.str(),
                        "is in the snapshot, but the loop has nothing of that name");
  }
  for (const auto& object : objects) {
    try {
      load(object, stored.at(object.name));
    } catch (const state_error& e) {
      const bool names_object = e.key() == object.name;
      throw names_object ? e.under(part) : e.under(std::string(part) + "." + object.name);
    }
  }
}

bool is_empty(const state::value& memory) {
  const auto* both = memory.get_if<state::dict>();
  if (both == nullptr) return false;
  return std::all_of(both->begin(), both->end(), [](const auto& part) {
    const auto* dict = part.second.template get_if<state::dict>();
    return dict != nullptr && dict->empty();
  });
}

state::dict memory_of(const attachment& a) {
  auto own = a.what.self()->state_dict();
  return {{"extension", own ? std::move(*own) : state::value(state::dict())},
          {"trigger", a.when ? a.when->inner().state_dict() : state::value(state::dict())}};
}

bool remembers(const attachment& a) { return !is_empty(memory_of(a)); }

}  // namespace

state::dict session::state_dict() const {
  state::dict all_models;
  for (const auto& m : models) all_models.insert_or_assign(m.name, state::module_state(*m.module));
  state::dict all_optimizers;
  for (const auto& o : optimizers) all_optimizers.insert_or_assign(o.name, state::optimizer_state(*o.optimizer));
  state::dict objects;
  for (const auto& o : state_objects) objects.insert_or_assign(o.name, o.object.save());
  state::dict extensions;
  for (const auto& a : attached_) extensions.insert_or_assign(a->what.name(), memory_of(*a));
  state::dict ours{
      {"format", 1},
      {"epoch_index", now.epoch_index},
      {"iteration_in_epoch", now.iteration_in_epoch},
      {"epoch_end", now.epoch_end},
      {"epoch_length", now.epoch_length ? state::value(*now.epoch_length) : state::value()},
      {"elapsed_time", now.elapsed_time},
      {"stop_trigger_fired", stop_trigger_fired_},
      {"stop_trigger", options.stop_trigger ? options.stop_trigger->state_dict() : state::value(state::dict())},
      {"optimizer_types", optimizer_types()},
      {"gradients", gradients()},
      {"random", state::random_state()}};
  return {{"_start_iteration", now.iteration},
          {"_start_execution", execution},
          {"models", std::move(all_models)},
          {"optimizers", std::move(all_optimizers)},
          {"state_objects", std::move(objects)},
          {"extensions", std::move(extensions)},
          {"ppe_version", "0.9.0"},
          {"rondo", std::move(ours)}};
}

void session::load_state_dict(const state::value& state) {
  if (training_begun_) throw error("load_state_dict: a state can only be loaded before training starts");
  const auto& root = state.as<state::dict>();
  const auto iteration = state.get<std::int64_t>("_start_iteration");

  // Models and optimizers are changed last, and only when everything else has been found good.
  std::vector<std::function<void()>> prepared;
  load_named("models", models, root.at("models"), [&](const named_model& m, const state::value& v) {
    prepared.push_back(state::prepare_module_load(*m.module, v));
  });
  load_named("optimizers", optimizers, root.at("optimizers"), [&](const named_optimizer& o, const state::value& v) {
    prepared.push_back(state::prepare_optimizer_load(*o.optimizer, v));
  });
  if (const auto* stored = root.find("state_objects"))
    load_named("state_objects", state_objects, *stored,
               [](const named_state& o, const state::value& v) { o.object.load(v); });
  load_extensions(root);

  const auto* stored_execution = root.find("_start_execution");
  execution = stored_execution != nullptr ? stored_execution->as<std::int64_t>() : iteration;
  now.iteration = iteration;
  load_position(root);
  for (const auto& apply : prepared) apply();
}

void session::load_extensions(const state::dict& root) {
  const auto* stored = root.find("extensions");
  if (stored == nullptr) return;
  const auto& all = stored->as<state::dict>();
  for (const auto& a : attached_) {
    const auto& name = a->what.name();
    const auto* own = all.find(name);
    if (own == nullptr) {
      if (remembers(*a))
        log::warn(fmt::format("the snapshot knows no extension '{}': it starts without a memory", name));
      continue;
    }
    try {
      a->what.self()->load_state_dict(own->at("extension"));
      if (a->when) a->when->inner().load_state_dict(own->at("trigger"));
    } catch (const state_error& e) {
      throw e.under("extensions." + name);
    }
  }
  for (const auto& [key, memory] : all) {
    const bool known = is_empty(memory) || std::any_of(attached_.begin(), attached_.end(),
                                                       [&](const auto& a) { return a->what.name() == key.str(); });
    if (!known)
      log::warn(
          fmt::format("the snapshot has a state for the extension '{}', which this loop does not have", key.str()));
  }
}

void session::load_position(const state::dict& root) {
  const auto* ours = root.find("rondo");
  if (ours == nullptr) {  // written by pytorch-pfn-extras, which counts iterations only
    if (!now.epoch_length && now.iteration > 0)
      throw state_error("rondo",
                        "is missing; a state of pytorch-pfn-extras needs batches whose number per epoch is known");
    if (now.iteration == 0) return;
    now.epoch_index = (now.iteration - 1) / *now.epoch_length;
    now.iteration_in_epoch = (now.iteration - 1) % *now.epoch_length + 1;
    now.epoch_end = now.iteration_in_epoch == *now.epoch_length;
    return;
  }
  const auto& length = ours->at("epoch_length");
  if (!length.is_null() && now.epoch_length && length.as<std::int64_t>() != *now.epoch_length)
    log::warn(fmt::format(
        "the snapshot was taken with {} iterations per epoch, now there are {}: this epoch goes on after its "
        "first {} iterations",
        length.as<std::int64_t>(), *now.epoch_length, ours->get<std::int64_t>("iteration_in_epoch")));
  now.epoch_index = ours->get<std::int64_t>("epoch_index");
  now.iteration_in_epoch = ours->get<std::int64_t>("iteration_in_epoch");
  now.epoch_end = ours->get<bool>("epoch_end");
  if (!now.epoch_length && !length.is_null()) now.epoch_length = length.as<std::int64_t>();
  // A learned length may be that of another epoch; only a range that knows its size can say that this one is over.
  if (source_->length() && now.iteration_in_epoch >= *source_->length()) now.epoch_end = true;
  now.elapsed_time = ours->at("elapsed_time").number();
  stop_trigger_fired_ = options.stop_trigger && ours->get<bool>("stop_trigger_fired");
  if (options.stop_trigger) {
    try {
      options.stop_trigger->load_state_dict(ours->at("stop_trigger"));
    } catch (const state_error& e) {
      throw e.under("rondo.stop_trigger");
    }
  }
  check_optimizer_types(*ours);
  restored_random_ = ours->at("random");
  load_gradients(*ours);
}

// States of different optimizers can look alike (Adam and AdamW do).
state::dict session::optimizer_types() const {
  state::dict types;
  for (const auto& o : optimizers) types.insert_or_assign(o.name, c10::demangle(typeid(*o.optimizer).name()));
  return types;
}

void session::check_optimizer_types(const state::value& ours) const {
  const auto* stored = ours.as<state::dict>().find("optimizer_types");
  if (stored == nullptr) return;
  const auto present = optimizer_types();
  for (const auto& [name, type] : present) {
    const auto* before = stored->as<state::dict>().find(name);
    if (before != nullptr && before->as<std::string>() != type.as<std::string>())
      throw state_error("optimizers." + name.str(), fmt::format("is the state of a {}, the loop has a {}",
                                                                before->as<std::string>(), type.as<std::string>()));
  }
}

// A snapshot inside an accumulation window carries the gradients that wait for the update.
state::value session::gradients() const {
  if (gradients_of_ == 0) return {};
  state::list all;
  for (const auto& group : optimizers[0].optimizer->param_groups()) {
    for (const auto& parameter : group.params()) {
      auto& stored = all.emplace_back();
      if (parameter.grad().defined()) stored = parameter.grad().detach();
    }
  }
  return state::dict{{"iterations", gradients_of_}, {"accumulate", options.accumulate}, {"tensors", std::move(all)}};
}

void session::load_gradients(const state::value& ours) {
  const auto* stored = ours.as<state::dict>().find("gradients");
  if (stored == nullptr || stored->is_null()) return;
  const auto window = stored->get<std::int64_t>("accumulate");
  if (window != options.accumulate)
    throw state_error("rondo.gradients",
                      fmt::format("were gathered with accumulate = {}, now it is {}; go on with the old "
                                  "number, or from a snapshot at the end of a window",
                                  window, options.accumulate));
  const auto& tensors = stored->get<state::list>("tensors");
  std::vector<at::Tensor> parameters;
  for (const auto& group : optimizers.at(0).optimizer->param_groups())
    parameters.insert(parameters.end(), group.params().begin(), group.params().end());
  if (tensors.size() != parameters.size())
    throw state_error("rondo.gradients", fmt::format("expected {} tensors, one per parameter, found {}",
                                                     parameters.size(), tensors.size()));
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (tensors[i].is_null()) continue;
    const auto& gradient = tensors[i].as<at::Tensor>();
    if (gradient.sizes() != parameters[i].sizes())
      throw state_error(fmt::format("rondo.gradients.{}", i), "has another shape than the parameter");
    parameters[i].mutable_grad() = gradient.to(parameters[i].device(), parameters[i].scalar_type(), false, true);
  }
  gradients_of_ = stored->get<std::int64_t>("iterations");
}

}  // namespace rondo::detail
