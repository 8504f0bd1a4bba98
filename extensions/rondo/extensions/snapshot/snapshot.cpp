#include "rondo/extensions/snapshot/snapshot.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <map>
#include <optional>

#include "rondo/event/interval.hpp"
#include "rondo/event/when.hpp"
#include "rondo/extensions/snapshot/resuming.hpp"
#include "rondo/extensions/snapshot/sharded_directory.hpp"
#include "rondo/extensions/snapshot/snapshot_directory.hpp"
#include "rondo/extensions/snapshot/snapshot_file.hpp"
#include "rondo/extensions/snapshot/taker.hpp"
#include "rondo/log.hpp"
#include "rondo/state/loading.hpp"
#include "rondo/state/optimizer.hpp"

namespace rondo {

namespace {

using several_targets = std::vector<std::pair<std::string, state::stateful_ref>>;
using name_callable = std::function<std::string(const context&)>;

// How long the helper process of an earlier run may go on before this one resumes without its file.
constexpr auto patience = std::chrono::minutes(1);

/// The observations among a template's fields, which are those with a '/' in their names.
std::vector<std::string> observations_in(std::string_view text) {
  std::vector<std::string> keys;
  for (auto begin = text.find('{'); begin != std::string_view::npos; begin = text.find('{', begin + 1)) {
    const auto name = text.substr(begin + 1, text.find_first_of(":}", begin) - begin - 1);
    if (name.find('/') != std::string_view::npos) keys.emplace_back(name);
  }
  return keys;
}

std::vector<writing::name_field> name_fields(const std::vector<std::string>& observed) {
  using kind = writing::name_field::kind;
  std::vector<writing::name_field> fields = {{"iteration", kind::integer},
                                             {"epoch", kind::integer},
                                             {"execution", kind::integer},
                                             {"epoch_detail", kind::real},
                                             {"elapsed_time", kind::real}};
  for (const auto& key : observed) fields.push_back({key, kind::real, false});
  return fields;
}

writing::name_values values_of(const context& ctx) {
  return {{"iteration", ctx.iteration()},
          {"epoch", ctx.epoch()},
          {"execution", ctx.execution()},
          {"epoch_detail", ctx.epoch_detail()},
          {"elapsed_time", ctx.elapsed_time()}};
}

/// A name that a callable made must be as harmless as one that a template makes.
std::string checked_plain_name(const std::string& name) {
  std::string escaped;
  for (const char c : name) escaped += (c == '{' || c == '}') ? std::string(2, c) : std::string(1, c);
  return writing::file_name_template(escaped, {}).format({});
}

/// Emitted by every snapshot of the loop before training: which files it writes, and whether it is one to go on from.
struct snapshot_here {
  const void* extension;
  std::string name;
  std::string filename;  ///< empty where a function makes it
  bool selective;        ///< its trigger judges values: what it keeps is not to be replaced at other moments
};

/// Emitted before an autoload: whether another extension has been told what to go on from.
struct resumes_from_file {
  bool* answer;
};

class snapshot_extension {
 public:
  explicit snapshot_extension(snapshot_options options) : options_(std::move(options)) {
    choose_writer();
    validate();
    if (const auto* text = std::get_if<std::string>(&options_.filename)) {
      observed_in_name_ = observations_in(*text);
      names_.emplace(*text, name_fields(observed_in_name_));
    }
    require_iteration_in_name();
    if (options_.n_retains != -1) options_.retain = rondo::retain::last(options_.n_retains);
  }

  void attach(context& ctx) {
    if (!in_use_.expired())
      throw option_error("snapshot", "attached to two loops that run at the same time", "one extension for each loop");
    auto used = std::make_shared<int>();
    in_use_ = used;
    ctx_ = &ctx;
    ranks_ = together(ctx);
    directory_.emplace(ctx.out(), ctx.name(), names_, !own_format(),
                       [&ctx](const std::string& name) { return name != ctx.name() && ctx.has_extension(name); });
    taker_.emplace(ctx, taker_settings());
    metrics_.clear();
    warned_of_metrics_ = false;
    cost_.reset();
    taken_at_ = -1;
    const auto* const when = ctx.own_trigger();
    selective_ = when != nullptr && when->judges_values();
    another_to_go_on_from_ = false;
    ctx.on<snapshot_here>([this](const snapshot_here& other) { meet(other); });
    ctx.on<event::training_started>([this]() -> task<> { return introduce(); });
    ctx.on<event::training_started>([this] {
      begun_at_ = ctx_->state_version();
      if (!names_) static_cast<void>(file_name());  // one that cannot be a file's is told now
      if (saves()) extensions::remove_stale_attempts(ctx_->out());
      if (!ctx_->resumed_from() && saves()) warn_about_earlier_run();
    });
    if (options_.resume_from && saves_loop())
      ctx.on<resumes_from_file>([](const resumes_from_file& asked) { *asked.answer = true; });
    if (options_.autoload || options_.resume_from) ctx.on<event::restoring>([this]() -> task<> { return restore(); });
    ctx.on<event::iteration_completed>([this] { after_iteration(); });
    ctx.when_due([this]() -> task<> { return take_when_due(); });
    ctx.on<event::iteration_completed>(trigger(wanted_trigger{this}), [this]() -> task<> { return take_besides(); });
    if (saves_loop())
      ctx.on<event::end_to_be_saved>([this](const event::end_to_be_saved& asked) {
        if (serves() && (options_.final || (options_.on_signal && asked.by_signal))) *asked.answer = true;
      });
    if (saves_loop()) ctx.on<event::snapshot_requested>([this]() -> task<> { return take_on_request(); });
    if (options_.snapshot_on_error) ctx.on<event::failed>([this]() -> task<> { return take_after_error(); });
    if (options_.report) ctx.on<event::iteration_started>([this] { report(); });
    ended_ = false;
    ctx.on_end<event::training_completed>([this, used = std::move(used)](const event::training_completed& e) mutable {
      used.reset();
      return finish(e);
    });
  }

  /// The last values of the observations that the retention policy ranks by.
  [[nodiscard]] state::value state_dict() const {
    state::dict values;
    for (const auto& [key, value] : metrics_) values.insert_or_assign(key, value);
    return values;
  }
  void load_state_dict(const state::value& state) {
    metrics_.clear();
    for (const auto& [key, value] : state.as<state::dict>()) metrics_[key.str()] = value.number();
  }

 private:
  /// Whether a snapshot is due at the end of this iteration although the trigger has not said so.
  struct wanted_trigger {
    const snapshot_extension* self;
    bool due(const moment&) const { return self->wanted_besides(); }
    std::string str() const { return "when a snapshot is wanted"; }
    bool same_on_all_ranks() const { return true; }
  };

  // ---- other snapshots of the loop ----------------------------------------------------------------------------------

  task<> introduce() {
    const auto* const text = std::get_if<std::string>(&options_.filename);
    auto rest = ctx_->emit<snapshot_here>(this, ctx_->name(), text != nullptr ? *text : std::string(),
                                          selective_ || !saves_loop());
    if (rest) co_await std::move(*rest);
  }

  void meet(const snapshot_here& other) {
    if (other.extension == this) return;
    const auto* const text = std::get_if<std::string>(&options_.filename);
    if (text != nullptr && *text == other.filename)
      throw option_error("filename",
                         fmt::format("'{}' of both the extensions '{}' and '{}'", *text, other.name, ctx_->name()),
                         "a name of its own for each, or they would replace each other's files");
    if (!other.selective) another_to_go_on_from_ = true;
  }

  /// Whether what others ask for (signals, requests, the end of training) is for this one. A selective one leaves it to
  /// those that are made to go on from, if there are any.
  [[nodiscard]] bool serves() const { return !selective_ || !another_to_go_on_from_ || options_.final; }

  // ---- ranks -------------------------------------------------------------------------------------------------------

  /// Those with whom snapshots are taken together, if there are any.
  [[nodiscard]] std::shared_ptr<extensions::snapshot_ranks> together(const context& ctx) const {
    const auto& group = ctx.group();
    if (options_.saver_rank < 0 || options_.saver_rank >= group.world_size())
      throw option_error("saver_rank", fmt::format("{}", options_.saver_rank),
                         fmt::format("a rank from 0 to {}", group.world_size() - 1));
    const bool sharded = options_.mode == snapshot_mode::sharded;
    if (group.world_size() == 1 && !sharded) return nullptr;
    if (options_.mode == snapshot_mode::standard)
      throw option_error("mode",
                         fmt::format("standard with {} ranks, which would write the same files", group.world_size()),
                         "distributed or sharded");
    return std::make_shared<extensions::snapshot_ranks>(group, ctx.name(), options_.saver_rank, sharded);
  }

  [[nodiscard]] bool saves() const { return !ranks_ || ranks_->saves(); }

  // ---- options -----------------------------------------------------------------------------------------------------

  void choose_writer() {
    if (options_.savefun && options_.writer)
      throw option_error("savefun", fmt::format("given together with writer '{}'", options_.writer->name()),
                         "one of the two; give the savefun to the writer, as writers::thread({.savefun = …})");
    if (!options_.writer) options_.writer = writers::simple({.savefun = options_.savefun});
    if (const auto* format = options_.writer->own_format(); format != nullptr && !options_.loadfun)
      if (const auto* inverse = format->inverse()) options_.loadfun = *inverse;
  }

  /// Whether the files are of another format than Rondo's.
  [[nodiscard]] bool own_format() const { return options_.writer->own_format() != nullptr; }

  void validate() const {
    if (options_.loadfun && !own_format())
      throw option_error("loadfun", "given without savefun", "together with the savefun whose files it reads");
    if (own_format() && options_.autoload && !options_.loadfun)
      throw option_error("autoload", "true with a savefun, but without a loadfun",
                         "a loadfun that reads what savefun writes");
    if (own_format() && options_.verify)
      throw option_error("verify", "true with a savefun", "Rondo's own format: only its files carry checksums");
    if (own_format() && options_.mode == snapshot_mode::sharded)
      throw option_error("mode", "sharded with a savefun",
                         "distributed, or no savefun: parts are files of Rondo's own format");
    if (options_.n_retains != -1 && options_.n_retains < 1)
      throw option_error("n_retains", fmt::format("{}", options_.n_retains), "1 or more, or -1 to keep all snapshots");
    if (options_.n_retains != -1 && options_.retain)
      throw option_error("n_retains", "given together with retain", "one of the two: n_retains is retain::last(n)");
    if (options_.resume_from && options_.resume_from->empty())
      throw option_error("resume_from", "\"\"", "the path of a snapshot");
    const auto* callable = std::get_if<name_callable>(&options_.filename);
    if (callable != nullptr && !*callable)
      throw option_error("filename", "an empty function",
                         "a template such as snapshot_iter_{iteration}, or a callable");
  }

  /// Files of a user's own serialization say nothing about themselves but their names.
  void require_iteration_in_name() const {
    const bool ordered = options_.autoload || options_.n_retains != -1 || options_.retain;
    if (!own_format() || !ordered || (names_ && names_->has_field("iteration"))) return;
    throw option_error(
        "filename", names_ ? names_->text() : "a callable",
        "a template with {iteration} when savefun is combined with autoload or retention, because only the "
        "name tells such files apart");
  }

  /// NaN for what nobody has reported yet.
  [[nodiscard]] double last_observed(const std::string& key) const {
    const auto known = metrics_.find(key);
    return known != metrics_.end() ? known->second : std::numeric_limits<double>::quiet_NaN();
  }

  [[nodiscard]] std::string file_name() const {
    if (names_) {
      auto values = values_of(*ctx_);
      for (const auto& key : observed_in_name_) values.emplace(key, last_observed(key));
      return names_->format(values);
    }
    return checked_plain_name(std::get<name_callable>(options_.filename)(*ctx_));
  }

  // ---- the target --------------------------------------------------------------------------------------------------

  [[nodiscard]] bool saves_loop() const { return std::holds_alternative<std::monostate>(options_.target); }

  [[nodiscard]] state::value target_state() const {
    if (const auto* object = std::get_if<state::stateful_ref>(&options_.target)) return object->save();
    if (const auto* several = std::get_if<several_targets>(&options_.target)) {
      state::dict all;
      for (const auto& [key, object] : *several) all.insert_or_assign(key, object.save());
      return all;
    }
    return ctx_->state_dict();
  }

  /// What of sharded tensors this rank needs: before the first step, optimizers have no state that tells.
  [[nodiscard]] state::value wanted_state() const {
    auto state = target_state();
    if (!saves_loop()) return state;
    auto& optimizers = state.as<state::dict>()["optimizers"].as<state::dict>();
    for (const auto& one : ctx_->optimizers())
      if (const auto* own = dynamic_cast<const state::self_describing_optimizer*>(one.optimizer.get()))
        optimizers.insert_or_assign(one.name, own->wanted());
    return state;
  }

  void load_target(const state::value& state) const {
    if (const auto* object = std::get_if<state::stateful_ref>(&options_.target)) {
      object->load(state, options_.load);
    } else if (const auto* several = std::get_if<several_targets>(&options_.target)) {
      load_several(*several, state);
    } else {
      ctx_->load_state_dict(state, options_.load);
    }
  }

  /// All or none of those that can be compared beforehand, with names that are looked for in all of them.
  void load_several(const several_targets& targets, const state::value& state) const {
    state::loading act(options_.load, "the snapshot");
    std::vector<std::function<void()>> changes;
    for (const auto& [key, object] : targets) {
      const auto inside = act.within(key, key);
      changes.push_back(object.prepare(state.at(key), act));
    }
    act.require_fit();
    for (const auto& apply : changes) apply();
    act.report();
  }

  // ---- taking ------------------------------------------------------------------------------------------------------

  extensions::snapshot_taker::settings taker_settings() {
    extensions::snapshot_taker::settings s;
    s.writer = options_.writer;
    s.collect = [this] { return target_state(); };
    s.whole_loop = saves_loop();
    s.verify = options_.verify;
    s.ranks = ranks_;
    s.check = [this](const std::filesystem::path& path) { refuse_other_owner(path); };
    s.describe = [this](checkpoint::snapshot_info& info) { describe(info); };
    s.missing = [this](const extensions::snapshot_progress& done) {
      if (done.order.regular_of == taken_at_) taken_at_ = -1;
    };
    s.durable = [this](const extensions::snapshot_progress& done) { is_durable(done); };
    s.failed = [this](const extensions::snapshot_progress& done) { has_failed(done); };
    return s;
  }

  [[nodiscard]] extensions::snapshot_order order(const std::string& suffix, bool mid_iteration) {
    checkpoint::snapshot_info info;
    info.mid_iteration = mid_iteration;
    describe(info);
    return {ctx_->out() / (file_name() + suffix), std::move(info)};
  }

  /// Once in the middle of an iteration, always so: training may go on before there is room for the snapshot.
  void describe(checkpoint::snapshot_info& info) const {
    info = extensions::snapshot_info_of(ctx_->name(), ctx_->iteration(), ctx_->epoch(), info.mid_iteration);
    info.metrics = metrics_;
  }

  task<> take_when_due() {
    bool wanted = !options_.condition || options_.condition();
    if (options_.condition && ranks_) wanted = co_await ranks_->saver_says(wanted);
    if (wanted) co_await take_regular();
  }

  void after_iteration() {
    remember_metrics();
    taker_->prepare();
  }

  void remember_metrics() {
    for (const auto& key : observed_in_name_) remember_metric(key);
    if (!options_.retain) return;
    for (const auto& key : options_.retain->metrics()) remember_metric(key);
  }

  void remember_metric(const std::string& key) {
    if (const auto* found = ctx_->reported().find(key)) metrics_[key] = found->value();
  }

  /// Once, when an epoch is over, so that everybody has had an occasion to report.
  void warn_about_unknown_metrics() {
    if (!options_.retain || warned_of_metrics_ || ctx_->epoch() < 1 || !saves()) return;
    std::vector<std::string> unknown;
    for (const auto& key : options_.retain->metrics())
      if (!metrics_.contains(key)) unknown.push_back("'" + key + "'");
    if (unknown.empty()) return;
    warned_of_metrics_ = true;
    std::vector<std::string> known;
    ctx_->reported().for_each([&](const std::string& key, const observation&) { known.push_back(key); });
    log::warn(
        fmt::format("{}: nobody has reported {} so far, by which retain::best ranks: no snapshot is removed for it "
                    "until somebody does; reported in this iteration: {}",
                    ctx_->name(), fmt::join(unknown, ", "), fmt::join(known, ", ")));
  }

  [[nodiscard]] bool wanted_besides() const {
    if (!serves()) return false;
    return (saves_loop() && ctx_->snapshot_wanted()) || (options_.final && ctx_->stop_requested()) || preempted();
  }

  [[nodiscard]] bool preempted() const { return options_.on_signal && ctx_->stop_signal().has_value(); }

  /// Not because of the trigger.
  task<> take_besides() {
    if (!selective_) return take_regular();
    return take_preempted();
  }

  /// The file that the trigger has asked for stays.
  task<> take_preempted() {
    if (taken_at_ == ctx_->state_version()) co_return;
    taken_at_ = ctx_->state_version();
    auto preempted = order(std::string(extensions::preempted_suffix), false);
    preempted.regular_of = taken_at_;
    preempted.insist = ended_ || ctx_->stop_requested();
    co_await taker_->take(std::move(preempted));
  }

  task<> take_regular() {
    if (taken_at_ == ctx_->state_version()) co_return;
    taken_at_ = ctx_->state_version();
    warn_about_unknown_metrics();
    auto regular = order("", false);
    regular.regular_of = taken_at_;
    regular.insist = ended_ || ctx_->stop_requested();  // there will be no other
    co_await taker_->take(std::move(regular));
  }

  task<> take_on_request() {
    if (!serves()) co_return;
    const bool in_the_middle = ctx_->mid_iteration();
    const auto* const suffix = in_the_middle ? ".mid_iteration" : selective_ ? extensions::preempted_suffix.data() : "";
    auto wanted = order(suffix, in_the_middle);
    wanted.insist = wanted.awaited = true;
    if (!in_the_middle) wanted.pause = ctx_->hold_training();
    co_await taker_->take(std::move(wanted));
  }

  task<> take_after_error() {
    if (!saves()) co_return;
    auto last = order(".error", true);
    last.insist = last.awaited = last.alone = true;
    const auto path = last.path;
    co_await taker_->take(std::move(last));
    if (ended_) co_await options_.writer->close();
    log::warn(
        fmt::format("training failed; its last state, taken in the middle of an iteration, is in '{}'", path.string()));
  }

  task<> finish(const event::training_completed& e) {
    ended_ = true;
    const bool failed = e.error != nullptr;
    co_await taker_->finish();
    // A signal may have stopped training between two iterations, and the last snapshot may have been skipped.
    // What one rank wants now, the others no longer hear of.
    const bool asked_for = saves_loop() && !ranks_ && ctx_->snapshot_wanted();
    const bool wanted = serves() && (options_.final || preempted() || asked_for);
    const bool trained = ctx_->state_version() != begun_at_;
    const bool missing = wanted && !failed && trained && taken_at_ != ctx_->state_version();
    std::exception_ptr error;
    try {
      if (missing) co_await take_besides();
    } catch (...) {
      error = std::current_exception();
    }
    co_await taker_->finish();
    co_await options_.writer->close();
    if (error) std::rethrow_exception(error);
  }

  /// Two extensions that write under one name would replace each other's files.
  void refuse_other_owner(const std::filesystem::path& path) const {
    const auto owner = directory_->other_owner(path);
    if (owner && ctx_->has_extension(*owner))
      throw snapshot_error(fmt::format(
          "'{}' is a snapshot that the extension '{}' made; give this one another filename", path.string(), *owner));
  }

  void is_durable(const extensions::snapshot_progress& done) {
    const auto& info = done.order.info;
    if (options_.report) cost_ = {done.receipt.bytes, done.stall_seconds, done.total_seconds};
    if (!saves()) return;
    directory_->note({.path = done.order.path,
                      .iteration = info.iteration,
                      .epoch = info.epoch,
                      .created = info.created,
                      .metrics = info.metrics},
                     info.mid_iteration);
    if (options_.retain && !info.mid_iteration) directory_->retain(*options_.retain, info.iteration, done.order.path);
    if (done.order.path.string().ends_with(extensions::preempted_suffix))
      directory_->remove_preempted_but(done.order.path);
  }

  void has_failed(const extensions::snapshot_progress& done) const {
    if (options_.on_failure == snapshot_failure::fail) std::rethrow_exception(done.error);
    try {
      std::rethrow_exception(done.error);
    } catch (const std::exception& e) {
      log::error(fmt::format("the snapshot '{}' failed, training goes on: {}", done.order.path.string(), e.what()));
    } catch (...) {
      log::error(fmt::format("the snapshot '{}' failed, training goes on", done.order.path.string()));
    }
  }

  void report() {
    if (!cost_) return;
    const auto key = [this](const char* what) { return ctx_->name() + "/" + what; };
    ctx_->report(key("bytes"), static_cast<double>(cost_->bytes));
    ctx_->report(key("stall_seconds"), cost_->stall_seconds);
    ctx_->report(key("total_seconds"), cost_->total_seconds);
    const auto* memory = options_.writer->memory();
    ctx_->report(key("memory"), memory != nullptr ? static_cast<double>(memory->peak_bytes()) : 0.0);
    cost_.reset();
  }

  // ---- resuming ----------------------------------------------------------------------------------------------------

  /// Snapshots that this run does not go on from would win over its own at the next autoload.
  void warn_about_earlier_run() {
    const auto earlier = directory_->list();
    if (earlier.empty()) return;
    log::warn(fmt::format(
        "'{}' holds {} snapshots of an earlier run, the newest of iteration {}; this run starts afresh beside "
        "them. A later autoload goes on from the highest iteration: move them away if it should not be theirs",
        earlier.front().path.parent_path().string(), earlier.size(), earlier.front().iteration));
  }

  task<> restore() {
    extensions::resuming::settings s;
    s.read = options_.loadfun;
    if (!s.read)
      s.read = [this](const std::filesystem::path& file) { return extensions::read_snapshot(file, wanted_state()); };
    s.validate = options_.validator;
    s.load = [this](const state::value& state) {
      const auto& group = ctx_->group();
      load_target(saves_loop() ? extensions::state_of_rank(state, group.rank(), group.world_size()) : state);
    };
    s.whole_loop = saves_loop();
    s.ranks = ranks_;
    extensions::resuming from(*ctx_, std::move(s));
    if (options_.resume_from) {
      co_await from.from_file(*options_.resume_from);
      co_return;
    }
    bool other_is_chosen = false;
    auto asked = ctx_->emit<resumes_from_file>(&other_is_chosen);
    if (asked) co_await std::move(*asked);
    if (other_is_chosen && saves_loop()) co_return;
    if (saves()) co_await wait_for_earlier_writers();
    co_await from.from_newest(*directory_);
  }

  /// A helper process of a killed trainer may be about to finish the newest snapshot.
  task<> wait_for_earlier_writers() {
    auto wait = [directory = ctx_->out()] {
      return writing::wait_for_live_temporaries(*writing::posix_file_system(), directory, patience);
    };
    const auto unfinished = co_await ctx_->offload(wait);
    for (const auto& each : unfinished)
      log::warn(fmt::format("'{}' is still being written by process {}; resuming without it", each.file.string(),
                            each.process));
  }

  struct cost {
    std::uint64_t bytes;
    double stall_seconds;
    double total_seconds;
  };

  snapshot_options options_;
  std::optional<writing::file_name_template> names_;
  std::vector<std::string> observed_in_name_;
  context* ctx_ = nullptr;  // of the present run, as all that follows
  std::optional<extensions::snapshot_directory> directory_;
  std::shared_ptr<extensions::snapshot_ranks> ranks_;  // null for a process alone
  std::optional<extensions::snapshot_taker> taker_;
  std::map<std::string, double> metrics_;
  std::optional<cost> cost_;
  bool warned_of_metrics_ = false;
  bool selective_ = false;              // the trigger judges values
  bool another_to_go_on_from_ = false;  // is in this loop
  std::int64_t taken_at_ = -1;          // version of the state in the last regular snapshot
  std::int64_t begun_at_ = -1;          // version of the state when training started
  bool ended_ = false;
  std::weak_ptr<int> in_use_;  // by a run
};

}  // namespace

extension snapshot(snapshot_options options) {
  return extension("snapshot", std::make_shared<snapshot_extension>(std::move(options)))
      .at_priority(priority::snapshot)
      .triggered(every(epochs(1)));
}

extension snapshot_object(state::stateful_ref target, snapshot_filename filename, snapshot_options options) {
  options.target = std::move(target);
  options.filename = std::move(filename);
  return snapshot(std::move(options)).named("snapshot_object");
}

}  // namespace rondo
