// What of a run is saved in a snapshot, and how it comes back.

#include <fmt/format.h>
#include <torch/types.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rondo/data/elastic.hpp"
#include "rondo/log.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/loop/session.hpp"
#include "rondo/state/environment.hpp"
#include "rondo/state/loading.hpp"
#include "rondo/state/optimizer.hpp"
#include "rondo/state/random.hpp"
#include "rondo/state/sharded_tensor.hpp"

namespace rondo::detail {

namespace {

/// In the order of `unfinished_iteration::stage`.
constexpr std::array<std::string_view, 3> stage_names = {"next_batch", "iteration", "epoch"};

/// What is stored of one object, and its name then and now.
struct stored_object {
  std::string stored_name;
  std::string name;
  const state::value* memory;
};

std::vector<stored_object> stored_in(const std::string& part, const state::dict& stored, state::loading& act) {
  std::vector<stored_object> all;
  for (const auto& [key, memory] : stored) {
    auto name = act.renamed_object(part, key.str());
    const auto same = std::ranges::find(all, name, &stored_object::name);
    if (same != all.end())
      act.ambiguous(part + "." + name,
                    fmt::format("is meant by both '{}' and '{}' in the snapshot", same->stored_name, key.str()));
    all.push_back({key.str(), std::move(name), &memory});
  }
  return all;
}

/// Calls `compare(object, what is stored of it)` for every object that `part` of the snapshot has, `without(object)`
/// for the others.
template <class Named, class Compare, class Without>
void compare_named(const std::string& part, const std::vector<Named>& objects, const state::dict& stored,
                   state::loading& act, Compare compare, Without without) {
  const auto all = stored_in(part, stored, act);
  for (const auto& object : objects) {
    const auto path = part + "." + object.name;
    const auto found = std::ranges::find(all, object.name, &stored_object::name);
    if (found == all.end()) {
      act.missing(path, "the loop has it, the snapshot does not");
      without(object);
      continue;
    }
    const auto within = act.within(path, part + "." + found->stored_name);
    compare(object, *found);
  }
  for (const auto& one : all)
    if (std::ranges::none_of(objects, [&](const Named& o) { return o.name == one.name; }))
      act.unexpected(part + "." + one.name, "the snapshot has it, the loop does not");
}

const state::dict& part_of(const state::dict& root, const char* part, const state::loading& act) {
  static const state::dict nothing;
  const auto* stored = root.find(part);
  if (stored == nullptr && act.tolerant()) return nothing;
  const auto& value = root.at(part);
  if (const auto* names = value.get_if<state::dict>()) return *names;
  throw state_error(part, "expected dict, found " + value.type_name());
}

using changes = std::vector<std::function<void()>>;

void compare_models(const std::vector<named_model>& models, const state::dict& root, state::loading& act,
                    changes& prepared) {
  compare_named(
      "models", models, part_of(root, "models", act), act,
      [&](const named_model& m, const stored_object& from) {
        prepared.push_back(state::prepare_module_load(*m.module, *from.memory, act));
      },
      [&](const named_model& m) {
        for (const auto& parameter : m.module->parameters()) act.displace(parameter);
        act.count(0, state::module_state(*m.module).size());
      });
}

/// `types` are those of the loop's optimizers: states of different ones can look alike (Adam and AdamW do).
void compare_optimizers(const std::vector<named_optimizer>& optimizers, const state::dict& types,
                        const state::dict& root, state::loading& act, changes& prepared) {
  const auto* ours = root.find("rondo");
  const auto* stored_types = ours != nullptr ? ours->as<state::dict>().find("optimizer_types") : nullptr;
  compare_named(
      "optimizers", optimizers, part_of(root, "optimizers", act), act,
      [&](const named_optimizer& o, const stored_object& from) {
        const auto* before = stored_types != nullptr ? stored_types->as<state::dict>().find(from.stored_name) : nullptr;
        const auto& type = types.at(o.name).as<std::string>();
        if (before != nullptr && before->as<std::string>() != type)
          act.mismatched("", fmt::format("is the state of a {}, the loop has a {}", before->as<std::string>(), type));
        else
          prepared.push_back(state::prepare_optimizer_load(*o.optimizer, *from.memory, act));
      },
      [](const named_optimizer&) {});
}

/// Something that finds out by itself, when it is loaded, whether the state fits.
struct self_checking {
  std::string path;
  std::function<void()> load;
};

std::vector<self_checking> compare_objects(const std::vector<named_state>& objects, const state::dict& root,
                                           state::loading& act, changes& prepared) {
  std::vector<self_checking> rest;
  if (!act.tolerant() && !root.contains("state_objects")) return rest;  // as ppe wrote before it had them
  compare_named(
      "state_objects", objects, part_of(root, "state_objects", act), act,
      [&](const named_state& o, const stored_object& from) {
        auto change = o.object.prepare(*from.memory, act);
        if (o.object.compares())
          prepared.push_back(std::move(change));
        else
          rest.push_back({"state_objects." + o.name, std::move(change)});
      },
      [](const named_state&) {});
  return rest;
}

/// Loads, and in a tolerant act tells what did not fit.
void load_or_tell(const self_checking& object, state::loading& act) {
  try {
    object.load();
  } catch (const state_error& e) {
    if (!act.tolerant()) throw e.under(object.path);
    const auto within = act.within(object.path, object.path);
    act.mismatched(e);
  }
}

bool is_empty(const state::value& memory) {
  if (const auto* all = memory.get_if<state::list>()) return std::ranges::all_of(*all, is_empty);
  const auto* parts = memory.get_if<state::dict>();
  return parts != nullptr && std::all_of(parts->begin(), parts->end(), [](const auto& part) {
           return part.second.template get_if<state::dict>() != nullptr ? part.second.template as<state::dict>().empty()
                                                                        : is_empty(part.second);
         });
}

state::dict memory_of(const attachment& a) {
  auto own = a.what.self()->state_dict();
  state::dict all{{"extension", own ? std::move(*own) : state::value(state::dict())},
                  {"trigger", a.when ? a.when->inner().state_dict() : state::value(state::dict())}};
  if (!is_empty(all.at("trigger"))) all.insert_or_assign("trigger_name", a.when->inner().str());
  if (a.handler_gates.empty()) return all;
  state::list handlers;
  for (const auto& gate : a.handler_gates) handlers.push_back(gate->inner().state_dict());
  all.insert_or_assign("handler_triggers", std::move(handlers));
  return all;
}

bool remembers(const attachment& a) { return !is_empty(memory_of(a)); }

/// Of what all ranks see alike.
void warn_once(const distributed::rank_group& ranks, const std::string& message) {
  if (ranks.rank() == 0) log::warn(message);
}

struct place_in_data {
  state::value data;  ///< for the source
  std::optional<std::int64_t> position = {};
  std::int64_t repeated = 0;  ///< samples
};

/// Batches may be of another size now, or dealt out to another number of ranks.
place_in_data data_position(const state::value& stored, const state::value& present) {
  const auto* pass = stored.get_if<state::dict>();
  const bool counted = pass != nullptr && pass->contains("stages") && pass->at("stream").is_null();
  if (!counted) return {stored};
  const auto moved = data::position_in(present, stored);
  const bool same_place = moved.position == pass->at("position").as<std::int64_t>() && moved.repeated == 0;
  if (same_place) return {stored};
  auto data = *pass;
  data.insert_or_assign("position", moved.position);
  return {std::move(data), moved.position, moved.repeated};
}

/// Gives back what an extension remembers; one that refuses has not changed.
void take_memory(extension::model& object, const state::value& memory) { object.load_state_dict(memory); }

/// A trigger may have changed in part when it refuses.
void take_memory(trigger& object, const state::value& memory) {
  trigger loaded = object;
  loaded.load_state_dict(memory);
  object = std::move(loaded);
}

/// What does not fit is let go, and told.
template <class Rememberer>
void load_or_begin_anew(Rememberer& object, const state::value& memory, const std::string& owner,
                        const std::string& part, const std::string& what, state::loading& act,
                        const distributed::rank_group& ranks) {
  const auto tell = [&](const std::string& problem) {
    if (!act.tolerant() && !act.options().strict_memory)
      return warn_once(
          ranks, fmt::format("{} begins anew, because its memory in the snapshot does not fit: {}", what, problem));
    if (!act.tolerant()) throw state_error(part, problem);
    const auto within = act.within(owner, owner);
    act.mismatched(part, problem);
  };
  try {
    take_memory(object, memory);
  } catch (const partial_memory_error& e) {
    tell(e.what());
  } catch (const state_error& e) {
    tell(e.what());
  }
}

void load_memory(attachment& a, const state::value& memory, state::loading& act, const distributed::rank_group& ranks) {
  const auto& name = a.what.name();
  const auto path = "extensions." + name;
  const auto load_gate = [&](trigger& gate, const state::value& stored, const std::string& part) {
    if (is_empty(stored) && is_empty(gate.state_dict())) return;
    auto what = fmt::format("the trigger '{}' of extension '{}'", gate.str(), name);
    const auto* const was = memory.as<state::dict>().find("trigger_name");
    if (was != nullptr && part == "trigger") what += fmt::format(", which was '{}',", was->as<std::string>());
    load_or_begin_anew(gate, stored, path, part, what, act, ranks);
  };
  load_or_begin_anew(*a.what.self(), memory.at("extension"), path, "extension", fmt::format("extension '{}'", name),
                     act, ranks);
  if (a.when) load_gate(a.when->inner(), memory.at("trigger"), "trigger");
  const auto* handlers = memory.as<state::dict>().find("handler_triggers");
  if (handlers == nullptr) return;
  const auto& stored = handlers->as<state::list>();
  if (stored.size() != a.handler_gates.size()) {
    warn_once(ranks, fmt::format("extension '{}': {} of its handlers have triggers, {} in the snapshot: these start "
                                 "without a memory",
                                 name, a.handler_gates.size(), stored.size()));
    return;
  }
  for (std::size_t i = 0; i < stored.size(); ++i)
    load_gate(a.handler_gates[i]->inner(), stored[i], fmt::format("handler_triggers.{}", i));
}

/// Extensions come and go, so that a difference is no error. `warnings` are those to be said if the rest fits.
std::vector<self_checking> compare_extensions(const std::vector<std::unique_ptr<attachment>>& attached,
                                              const state::dict& root, state::loading& act,
                                              const distributed::rank_group& ranks,
                                              std::vector<std::string>& warnings) {
  std::vector<self_checking> all;
  if (!root.contains("extensions")) return all;
  const auto stored = stored_in("extensions", part_of(root, "extensions", act), act);
  const auto tell = [&](auto finding, const std::string& name, const char* problem) {
    if (act.tolerant())
      (act.*finding)("extensions." + name, problem);
    else
      warnings.push_back(fmt::format("extension '{}': {}", name, problem));
  };
  for (const auto& a : attached) {
    const auto found = std::ranges::find(stored, a->what.name(), &stored_object::name);
    if (found != stored.end())
      all.push_back({"extensions." + found->name,
                     [to = a.get(), memory = found->memory, &act, &ranks] { load_memory(*to, *memory, act, ranks); }});
    else if (remembers(*a))
      tell(&state::loading::missing, a->what.name(),
           "the snapshot knows none of that name: it starts without a memory");
  }
  for (const auto& one : stored) {
    const bool known = is_empty(*one.memory) ||
                       std::ranges::any_of(attached, [&](const auto& a) { return a->what.name() == one.name; });
    if (!known)
      tell(&state::loading::unexpected, one.name, "the snapshot has a memory for it, but this loop does not have it");
  }
  return all;
}

const state::value* stored_gradients(const state::dict& root) {
  const auto* ours = root.find("rondo");
  const auto* stored = ours != nullptr ? ours->as<state::dict>().find("gradients") : nullptr;
  return stored == nullptr || stored->is_null() ? nullptr : stored;
}

std::vector<at::Tensor> parameters_of(const std::vector<named_optimizer>& optimizers) {
  std::vector<at::Tensor> parameters;
  if (optimizers.empty()) return parameters;
  for (const auto& group : optimizers[0].optimizer->param_groups())
    parameters.insert(parameters.end(), group.params().begin(), group.params().end());
  return parameters;
}

// ---- gradients of several ranks ----

/// By how many ranks each with gradients of its own they were saved; 0 for a single process.
std::int64_t ranks_of(const state::value& gradients) {
  const auto* ranks = gradients.as<state::dict>().find("ranks");
  return ranks != nullptr ? ranks->as<std::int64_t>() : 0;
}

std::vector<std::int64_t> sizes_for_ranks(const at::Tensor& parameter, const state::value& gradients) {
  auto sizes = parameter.sizes().vec();
  if (const auto ranks = ranks_of(gradients); ranks > 0) sizes.insert(sizes.begin(), ranks);
  return sizes;
}

/// A tensor of which each rank has one row.
state::value row_of(const at::Tensor& mine, const distributed::rank_group& ranks) {
  state::sharded_tensor whole;
  whole.sizes = mine.sizes().vec();
  whole.sizes.insert(whole.sizes.begin(), ranks.world_size());
  whole.dtype = mine.scalar_type();
  std::vector<std::int64_t> offsets(whole.sizes.size(), 0);
  offsets[0] = ranks.rank();
  whole.pieces.push_back({std::move(offsets), mine.unsqueeze(0)});
  return whole.to_value();
}

/// The gradients of all ranks, of which each has some samples.
state::dict gradients_of_ranks(const std::vector<at::Tensor>& parameters, std::int64_t samples,
                               const distributed::rank_group& ranks) {
  // On the device of the gradients, which is that of the ranks' backend for tensors.
  const auto device = parameters.empty() ? c10::Device(at::kCPU) : parameters.front().device();
  const auto defined = at::zeros({static_cast<std::int64_t>(parameters.size())}, at::kByte);
  state::list all;
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const auto& gradient = parameters[i].grad();
    if (gradient.defined()) defined[static_cast<std::int64_t>(i)] = 1;
    all.push_back(row_of(gradient.defined() ? gradient.detach() : at::zeros_like(parameters[i].detach()), ranks));
  }
  return {{"ranks", std::int64_t{ranks.world_size()}},
          {"samples", row_of(at::scalar_tensor(samples, at::kLong).to(device), ranks)},
          {"defined", row_of(defined.to(device), ranks)},
          {"tensors", std::move(all)}};
}

/// What this rank goes on with: what it had or, if there is another number of ranks, the mean over all that there were,
/// which is the same on every rank.
class part_of_window {
 public:
  part_of_window(const distributed::rank_group& ranks, const state::value& gradients)
      : rows_(gradients.get<state::list>("tensors")),
        defined_(gradients.get<at::Tensor>("defined").to(at::kLong)),
        weights_(gradients.get<at::Tensor>("samples").to(at::kDouble)) {
    if (weights_.sum().item<double>() == 0) weights_.fill_(1.0);  // nobody has counted
    const auto before = ranks_of(gradients);
    if (before == ranks.world_size()) own_ = ranks.rank();
    samples_ = own_ ? gradients.get<at::Tensor>("samples")[*own_].item<std::int64_t>()
                    : gradients.get<at::Tensor>("samples").sum().item<std::int64_t>() / ranks.world_size();
  }

  [[nodiscard]] std::int64_t samples() const { return samples_; }

  /// Undefined where nobody had one.
  [[nodiscard]] at::Tensor gradient(std::size_t parameter) const {
    const auto& rows = rows_[parameter].as<at::Tensor>();
    const auto there = defined_.select(1, static_cast<std::int64_t>(parameter));
    if (own_) return there[*own_].item<std::int64_t>() != 0 ? rows[*own_] : at::Tensor();
    if (there.sum().item<std::int64_t>() == 0) return {};
    const auto total = weights_.sum().item<double>();
    at::Tensor sum = at::zeros_like(rows[0]);
    for (std::int64_t rank = 0; rank < rows.size(0); ++rank) sum += rows[rank] * weights_[rank].item<double>();
    return sum / total;
  }

 private:
  const state::list& rows_;
  at::Tensor defined_;
  at::Tensor weights_;
  std::optional<std::int64_t> own_;
  std::int64_t samples_ = 0;
};

void check_gradients(const state::value& stored, const loop_options& options,
                     const std::vector<at::Tensor>& parameters) {
  const auto accumulate = options.accumulate;
  const auto* const by_weight = stored.as<state::dict>().find("by_weight");
  if ((by_weight != nullptr && by_weight->as<bool>()) != options.accumulate_by_weight)
    throw state_error("",
                      "were gathered with another accumulate_by_weight; go on with the old one, or from a snapshot "
                      "at the end of a window");
  const auto window = stored.get<std::int64_t>("accumulate");
  if (window != accumulate)
    throw state_error("", fmt::format("were gathered with accumulate = {}, now it is {}; go on with the old number, or "
                                      "from a snapshot at the end of a window",
                                      window, accumulate));
  const auto& tensors = stored.get<state::list>("tensors");
  if (tensors.size() != parameters.size())
    throw state_error(
        "", fmt::format("expected {} tensors, one per parameter, found {}", parameters.size(), tensors.size()));
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (tensors[i].is_null()) continue;
    const auto* gradient = tensors[i].get_if<at::Tensor>();
    if (gradient == nullptr)
      throw state_error(std::to_string(i), "expected Tensor or None, found " + tensors[i].type_name());
    if (gradient->sizes() != sizes_for_ranks(parameters[i], stored))
      throw state_error(std::to_string(i), "has another shape than the parameter");
  }
  static_cast<void>(stored.get<std::int64_t>("iterations"));
}

/// Whether there are gradients, and all of them can be taken.
bool compare_gradients(const std::vector<named_optimizer>& optimizers, const loop_options& options,
                       const state::dict& root, state::loading& act) {
  const auto* stored = stored_gradients(root);
  if (stored == nullptr) return false;
  const auto within = act.within("rondo.gradients", "rondo.gradients");
  try {
    const auto parameters = parameters_of(optimizers);
    check_gradients(*stored, options, parameters);
    if (act.tolerant() && std::ranges::any_of(parameters, [&](const auto& p) { return act.is_displaced(p); }))
      throw state_error("", "belong to parameters that were not loaded");
    return true;
  } catch (const state_error& e) {
    act.mismatched(e);
    return false;
  }
}

}  // namespace

state::dict session::state_dict() const {
  state::dict all_models;
  for (const auto& m : models) {
    const auto other = stand_ins.find(m.name);
    all_models.insert_or_assign(m.name, other != stand_ins.end() ? other->second : state::module_state(*m.module));
  }
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
      {"data", source_->state_dict()},
      {"epoch_begun", epoch_begun_},
      {"modes", modes()},
      {"unfinished", unfinished_state()},
      {"environment", state::environment_state(options.device)},
      {"random", random()}};
  return {{"_start_iteration", now.iteration},
          {"_start_execution", execution},
          {"models", std::move(all_models)},
          {"optimizers", std::move(all_optimizers)},
          {"state_objects", std::move(objects)},
          {"extensions", std::move(extensions)},
          {"ppe_version", "0.9.0"},
          {"rondo", std::move(ours)}};
}

void session::load_state_dict(const state::value& state, const state::load_options& load_options) {
  if (training_begun_) throw error("load_state_dict: a state can only be loaded before training starts");
  const auto& root = state.as<state::dict>();
  const auto iteration = state.get<std::int64_t>("_start_iteration");

  // What can be compared is compared before anything is changed. Models and optimizers are changed last.
  state::loading act(load_options);
  changes prepared;
  std::vector<std::string> warnings;
  compare_models(models, root, act, prepared);
  compare_optimizers(optimizers, optimizer_types(), root, act, prepared);
  const bool with_gradients = compare_gradients(optimizers, options, root, act);
  auto rest = compare_objects(state_objects, root, act, prepared);
  for (auto& one : compare_extensions(attached_, root, act, options.group, warnings)) rest.push_back(std::move(one));
  const auto* ours = root.find("rondo");
  if (options.stop_trigger && ours != nullptr) {
    auto& when = *options.stop_trigger;
    const auto& memory = ours->at("stop_trigger");
    if (!is_empty(memory) || !is_empty(when.state_dict()))
      rest.push_back({"rondo.stop_trigger", [&] {
                        load_or_begin_anew(when, memory, "rondo.stop_trigger", "",
                                           fmt::format("the stop trigger '{}'", when.str()), act, options.group);
                      }});
  }
  act.require_fit();
  for (const auto& warning : warnings) warn_once(options.group, warning);

  // Nothing may be left of another state that was loaded before.
  gradients_of_ = 0;
  window_weight_ = 0.0;
  restored_samples_.reset();
  restored_source_.reset();
  restored_modes_.reset();
  observed.clear();
  for (const auto& object : rest) load_or_tell(object, act);
  const auto* stored_execution = root.find("_start_execution");
  execution = stored_execution != nullptr ? stored_execution->as<std::int64_t>() : iteration;
  now.iteration = iteration;
  load_position(root);
  if (with_gradients) load_gradients(*ours);
  for (const auto& apply : prepared) apply();
  act.report();
}

void session::load_position(const state::dict& root) {
  const auto* ours = root.find("rondo");
  if (ours == nullptr) {  // written by pytorch-pfn-extras, which counts iterations only
    if (!now.epoch_length && now.iteration > 0)
      throw state_error("rondo",
                        "is missing; a state of pytorch-pfn-extras needs batches whose number per epoch is known");
    if (now.iteration == 0 || *now.epoch_length == 0) return;  // `require_batch` says it
    now.epoch_index = (now.iteration - 1) / *now.epoch_length;
    now.iteration_in_epoch = (now.iteration - 1) % *now.epoch_length + 1;
    now.epoch_end = now.iteration_in_epoch == *now.epoch_length;
    return;
  }
  const auto& length = ours->at("epoch_length");
  now.epoch_index = ours->get<std::int64_t>("epoch_index");
  const auto present = source_->length_in(now.epoch_index);  // which may be another in each epoch
  if (present) now.epoch_length = present;
  now.epoch_end = ours->get<bool>("epoch_end");
  now.iteration_in_epoch = ours->get<std::int64_t>("iteration_in_epoch");
  std::int64_t repeated = 0;
  if (const auto* data = ours->as<state::dict>().find("data")) {
    const auto place = data_position(*data, source_->state_dict());
    restored_source_ = place.data;
    if (place.position) now.iteration_in_epoch = *place.position;
    repeated = place.repeated;
  }
  if (now.epoch_end && present) now.iteration_in_epoch = *present;
  if (!now.epoch_end && !length.is_null() && now.epoch_length && length.as<std::int64_t>() != *now.epoch_length)
    warn_once(options.group,
              fmt::format("the snapshot was taken with {} iterations per epoch, now there are {}: this epoch goes on "
                          "after its first {} iterations",
                          length.as<std::int64_t>(), *now.epoch_length, now.iteration_in_epoch));
  if (repeated > 0 && !now.epoch_end)
    warn_once(options.group,
              fmt::format("no batch begins with the sample with which the snapshot would have gone on: {} samples of "
                          "this epoch come once more. Snapshots at the end of an epoch, or batches of all ranks that "
                          "are together as large as before, go on exactly",
                          repeated));
  if (!now.epoch_length && !length.is_null()) now.epoch_length = length.as<std::int64_t>();
  // A learned length may be that of another epoch; only a range that knows its size can say that this one is over.
  if (present && now.iteration_in_epoch >= *present) now.epoch_end = true;
  now.elapsed_time = ours->at("elapsed_time").number();
  stop_trigger_fired_ =
      options.stop_trigger && ours->get<bool>("stop_trigger_fired") && options.stop_trigger->holds(now).value_or(true);
  restored_random_ = ours->at("random");
  const auto& known = ours->as<state::dict>();
  const auto* begun = known.find("epoch_begun");
  epoch_begun_ = !now.epoch_end && (begun != nullptr ? begun->as<bool>() : now.iteration_in_epoch > 0);
  if (const auto* environment = known.find("environment"))
    for (const auto& difference : state::environment_differences(*environment, options.device))
      warn_once(options.group,
                "the snapshot was taken elsewhere, so that results may differ in the last bits: " + difference);
  if (const auto* changed = known.find("modes")) restored_modes_ = *changed;
  load_unfinished(known);
}

// ---- modes -------------------------------------------------------------------------------------------------------

namespace {

using switches = std::vector<std::pair<std::string, bool>>;

/// By name, what it was and what it is, where both are in the same order. Those that were on and are on are left out.
state::dict before_and_now(const switches& before, const switches& now) {
  state::dict all;
  for (std::size_t i = 0; i < std::min(before.size(), now.size()); ++i) {
    const auto& [name, was] = before[i];
    if (now[i].first != name) break;  // the model itself is another one now
    if (!was || !now[i].second) all.insert_or_assign(name, state::list{was, now[i].second});
  }
  return all;
}

/// What is to be of what the program has set to `before`: as it was in the run that was saved, if that had begun with
/// the same.
bool restored_switch(const state::dict& stored, const std::string& name, bool before) {
  const auto* const both = stored.find(name);
  const bool was = both == nullptr || both->as<state::list>().at(0).as<bool>();
  const bool then = both == nullptr || both->as<state::list>().at(1).as<bool>();
  return was == before ? then : before;
}

switches training_of(const torch::nn::Module& module) {
  switches all;
  for (const auto& one : module.named_modules("", true)) all.emplace_back(one.key(), one.value()->is_training());
  return all;
}

switches requires_grad_of(const torch::nn::Module& module) {
  switches all;
  for (const auto& one : module.named_parameters()) all.emplace_back(one.key(), one.value().requires_grad());
  return all;
}

}  // namespace

void session::remember_modes() {
  for (const auto& m : models) {
    modes_of_model mine{training_of(*m.module), requires_grad_of(*m.module)};
    const bool any_training = std::ranges::any_of(mine.training, [](const auto& one) { return one.second; });
    if (!any_training)
      warn_once(options.group,
                fmt::format("model '{}' is in evaluation mode, and is trained like that (no dropout, fixed "
                            "running means); call train() before if that is not meant",
                            m.name));
    modes_.insert_or_assign(m.name, std::move(mine));
  }
}

/// As the run has begun with them, and as they are: extensions may have switched some.
state::dict session::modes() const {
  if (modes_at_end_) return *modes_at_end_;
  state::dict all;
  for (const auto& m : models) {
    const auto& before = modes_.at(m.name);
    all.insert_or_assign(
        m.name, state::dict{{"training", before_and_now(before.training, training_of(*m.module))},
                            {"requires_grad", before_and_now(before.requires_grad, requires_grad_of(*m.module))}});
  }
  return all;
}

/// `train` of a module is recursive, so that those inside come after it.
void session::load_modes(const state::value& stored) {
  for (const auto& m : models) {
    const auto* const mine = stored.as<state::dict>().find(m.name);
    if (mine == nullptr) continue;
    const auto& before = modes_.at(m.name);
    const auto& training = mine->get<state::dict>("training");
    std::size_t i = 0;
    for (const auto& one : m.module->named_modules("", true)) {
      if (i == before.training.size() || before.training[i].first != one.key()) break;
      one.value()->train(restored_switch(training, one.key(), before.training[i++].second));
    }
    const auto& requires_grad = mine->get<state::dict>("requires_grad");
    i = 0;
    for (auto& one : m.module->named_parameters()) {
      if (i == before.requires_grad.size() || before.requires_grad[i].first != one.key()) break;
      one.value().requires_grad_(restored_switch(requires_grad, one.key(), before.requires_grad[i++].second));
    }
  }
}

// The observations go with it: those who have not seen the iteration yet will look at them.
state::value session::unfinished_state() const {
  if (!unfinished_) return {};
  state::dict reported;
  observed.for_each([&](const std::string& key, const observation& o) {
    reported.insert_or_assign(key, state::list{o.value(), o.weight()});
  });
  const auto& handler = unfinished_->handler;
  return state::dict{{"stage", std::string(stage_names[static_cast<std::size_t>(unfinished_->where)])},
                     {"extension", handler.owner},
                     {"handler", handler.nth},
                     {"priority", handler.priority},
                     {"samples", batch_samples_},
                     {"observations", std::move(reported)}};
}

void session::load_unfinished(const state::dict& ours) {
  unfinished_.reset();
  const auto* stored = ours.find("unfinished");
  if (stored == nullptr || stored->is_null()) return;
  const auto name = stored->get<std::string>("stage");
  const auto stage = std::ranges::find(stage_names, name);
  if (stage == stage_names.end())
    throw state_error("rondo.unfinished.stage", fmt::format("'{}' is no part of an iteration known here", name));
  unfinished_iteration left;
  left.where = static_cast<unfinished_iteration::stage>(stage - stage_names.begin());
  left.handler = {stored->get<std::string>("extension"), stored->get<std::int64_t>("handler"),
                  static_cast<int>(stored->get<std::int64_t>("priority"))};
  if (const auto* samples = stored->as<state::dict>().find("samples")) batch_samples_ = samples->number();
  observed.weigh_by(batch_samples_);
  for (const auto& [key, both] : stored->get<state::dict>("observations")) {
    const auto& value_and_weight = both.as<state::list>();
    if (value_and_weight.size() != 2) throw state_error("rondo.unfinished.observations." + key.str(), "is no pair");
    observed.report(key.str(), value_and_weight[0].number(), value_and_weight[1].number());
  }
  unfinished_ = std::move(left);
}

state::dict session::optimizer_types() const {
  state::dict types;
  for (const auto& o : optimizers) types.insert_or_assign(o.name, state::optimizer_type_name(*o.optimizer));
  return types;
}

/// The generators' states from which a resumed run has to go on.
state::value session::random() const {
  if (restored_random_) return *restored_random_;  // nothing has been drawn since
  if (unfinished_ && !unfinished_->random.is_null()) return unfinished_->random;
  return state::random_state();
}

// A snapshot inside an accumulation window carries the gradients that wait for the update.
state::value session::gradients() const {
  // Those of an unfinished iteration are a part of nothing: it will be done again.
  if (gradients_of_ == 0 || iteration_open_ || broken_inside_) return {};
  if (together() && broken_off_) return {};  // the others have their parts, and save nothing now
  if (together()) {
    const auto samples = parallel_.empty() ? std::nullopt : parallel_.front()->samples_of_window();
    auto stored = gradients_of_ranks(parameters_of(optimizers), samples.value_or(0), options.group);
    stored.insert_or_assign("iterations", gradients_of_);
    stored.insert_or_assign("accumulate", options.accumulate);
    stored.insert_or_assign("by_weight", options.accumulate_by_weight);
    return stored;
  }
  state::list all;
  for (const auto& parameter : parameters_of(optimizers)) {
    auto& stored = all.emplace_back();
    if (parameter.grad().defined()) stored = parameter.grad().detach();
  }
  return state::dict{{"iterations", gradients_of_},
                     {"accumulate", options.accumulate},
                     {"by_weight", options.accumulate_by_weight},
                     {"weight", window_weight_},
                     {"tensors", std::move(all)}};
}

// They have been compared with the parameters.
void session::load_gradients(const state::value& ours) {
  const auto& stored = ours.at("gradients");
  const auto& tensors = stored.get<state::list>("tensors");
  const auto parameters = parameters_of(optimizers);
  std::optional<part_of_window> part;
  if (ranks_of(stored) > 0) part.emplace(options.group, stored);
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    if (tensors[i].is_null()) continue;
    const auto gradient = part ? part->gradient(i) : tensors[i].as<at::Tensor>();
    if (gradient.defined())
      parameters[i].mutable_grad() = gradient.to(parameters[i].device(), parameters[i].scalar_type(), false, true);
  }
  if (part) restored_samples_ = part->samples();
  gradients_of_ = stored.get<std::int64_t>("iterations");
  const auto* const weight = stored.as<state::dict>().find("weight");
  window_weight_ = weight != nullptr ? weight->number() : static_cast<double>(restored_samples_.value_or(1));
  if (together() && !part && options.accumulate_by_weight)
    restored_samples_ = std::max<std::int64_t>(std::llround(window_weight_ / options.group.world_size()), 1);
}

}  // namespace rondo::detail
