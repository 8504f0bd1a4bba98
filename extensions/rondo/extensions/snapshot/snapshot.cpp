#include "rondo/extensions/snapshot/snapshot.hpp"

#include <fmt/format.h>

#include <chrono>
#include <optional>

#include "rondo/event/interval.hpp"
#include "rondo/extensions/snapshot/snapshot_directory.hpp"
#include "rondo/extensions/snapshot/snapshot_file.hpp"
#include "rondo/log.hpp"

namespace rondo {

namespace {

using clock = std::chrono::steady_clock;

double seconds_since(clock::time_point start) { return std::chrono::duration<double>(clock::now() - start).count(); }

std::vector<writing::name_field> name_fields() {
  using kind = writing::name_field::kind;
  return {{"iteration", kind::integer},
          {"epoch", kind::integer},
          {"execution", kind::integer},
          {"epoch_detail", kind::real},
          {"elapsed_time", kind::real}};
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

class snapshot_extension {
 public:
  explicit snapshot_extension(snapshot_options options) : options_(std::move(options)) {
    validate();
    if (const auto* text = std::get_if<std::string>(&options_.filename)) names_.emplace(*text, name_fields());
    require_iteration_in_name();
    if (!options_.writer) options_.writer = writers::simple();
  }

  void attach(context& ctx) {
    directory_.emplace(ctx.out(), ctx.name(), names_, !options_.savefun);
    if (!options_.autoload) warn_about_earlier_run();
    if (options_.autoload) ctx.on<event::restoring>([this, &ctx]() -> task<> { return autoload(ctx); });
    ctx.when_due([this, &ctx]() -> task<> { return take(ctx); });
    if (options_.snapshot_on_error) ctx.on<event::failed>([this, &ctx]() -> task<> { return take_after_error(ctx); });
    ctx.on_end<event::training_completed>([this]() -> task<> { return options_.writer->close(); });
  }

 private:
  void validate() const {
    if (options_.savefun && options_.writer)
      throw option_error("savefun", "given together with writer '" + std::string(options_.writer->name()) + "'",
                         "one of the two: a writer brings Rondo's own format to disk, a savefun writes its own file");
    if (options_.loadfun && !options_.savefun)
      throw option_error("loadfun", "given without savefun", "together with the savefun whose files it reads");
    if (options_.savefun && options_.autoload && !options_.loadfun)
      throw option_error("autoload", "true with a savefun, but without a loadfun",
                         "a loadfun that reads what savefun writes");
    if (options_.n_retains != -1 && options_.n_retains < 1)
      throw option_error("n_retains", fmt::format("{}", options_.n_retains), "1 or more, or -1 to keep all snapshots");
    const auto* callable = std::get_if<std::function<std::string(const context&)>>(&options_.filename);
    if (callable != nullptr && !*callable)
      throw option_error("filename", "an empty function",
                         "a template such as snapshot_iter_{iteration}, or a callable");
  }

  /// Files of a user's own serialization say nothing about themselves but their names.
  void require_iteration_in_name() const {
    const bool ordered = options_.autoload || options_.n_retains != -1;
    if (!options_.savefun || !ordered || (names_ && names_->has_field("iteration"))) return;
    throw option_error(
        "filename", names_ ? names_->text() : "a callable",
        "a template with {iteration} when savefun is combined with autoload or n_retains, because only the "
        "name tells such files apart");
  }

  [[nodiscard]] std::string file_name(const context& ctx) const {
    if (names_) return names_->format(values_of(ctx));
    return checked_plain_name(std::get<std::function<std::string(const context&)>>(options_.filename)(ctx));
  }

  [[nodiscard]] state::value target_state(const context& ctx) const {
    if (const auto* object = std::get_if<state::stateful_ref>(&options_.target)) return object->save();
    if (const auto* several = std::get_if<std::vector<std::pair<std::string, state::stateful_ref>>>(&options_.target)) {
      state::dict all;
      for (const auto& [key, object] : *several) all.insert_or_assign(key, object.save());
      return all;
    }
    return ctx.state_dict();
  }

  void load_target(context& ctx, const state::value& state) const {
    if (const auto* object = std::get_if<state::stateful_ref>(&options_.target)) {
      object->load(state);
    } else if (const auto* several =
                   std::get_if<std::vector<std::pair<std::string, state::stateful_ref>>>(&options_.target)) {
      for (const auto& [key, object] : *several) object.load(state.at(key));
    } else {
      ctx.load_state_dict(state);
    }
  }

  /// Snapshots that this run does not go on from would win over its own at the next autoload.
  void warn_about_earlier_run() {
    const auto earlier = directory_->list();
    if (earlier.empty()) return;
    log::warn(fmt::format(
        "'{}' holds {} snapshots of an earlier run, the newest of iteration {}; this run starts afresh beside "
        "them. A later autoload goes on from the highest iteration: move them away if it should not be theirs",
        earlier.front().path.parent_path().string(), earlier.size(), earlier.front().iteration));
  }

  // ---- taking
  // --------------------------------------------------------------------------------------------------------

  task<> take(context& ctx) {
    if (options_.condition && !options_.condition()) co_return;
    const auto path = ctx.out() / file_name(ctx);
    co_await write(ctx, path, false);
    if (options_.n_retains != -1) directory_->retain(options_.n_retains, ctx.iteration(), path);
  }

  task<> take_after_error(context& ctx) {
    const auto path = ctx.out() / (file_name(ctx) + ".error");
    co_await write(ctx, path, true);
    log::warn(
        fmt::format("training failed; its last state, taken in the middle of an iteration, is in '{}'", path.string()));
  }

  /// One snapshot from `snapshot_started` to `snapshot_completed`, which is emitted on failure too.
  task<> write(context& ctx, std::filesystem::path path, bool mid_iteration) {
    const auto start = clock::now();
    writing::write_receipt receipt;
    double capture_seconds = 0.0;
    std::exception_ptr error;
    try {
      auto rest = ctx.emit<event::snapshot_started>(path, ctx.iteration());
      if (rest) co_await std::move(*rest);
      refuse_other_owner(ctx, path);
      const auto state = target_state(ctx);
      if (options_.savefun) {
        writing::write_request request(
            path, [&](const std::filesystem::path& temporary) { options_.savefun(temporary, state); });
        capture_seconds = seconds_since(start);
        receipt = co_await by_name_->write(std::move(request));
      } else {
        const extensions::snapshot_file file(
            state, extensions::snapshot_info_of(ctx.name(), ctx.iteration(), ctx.epoch(), mid_iteration));
        writing::write_request request = file.request(path);
        capture_seconds = seconds_since(start);
        receipt = co_await options_.writer->write(std::move(request));
      }
    } catch (...) {
      error = std::current_exception();
    }
    const double commit_seconds = receipt.sync_seconds + receipt.commit_seconds;
    try {
      auto rest =
          ctx.emit<event::snapshot_completed>(path, ctx.iteration(), receipt.bytes, capture_seconds,
                                              receipt.write_seconds, commit_seconds, seconds_since(start), error);
      if (rest) co_await std::move(*rest);
    } catch (const std::exception& second) {
      if (!error) throw;
      log::error(
          fmt::format("after the snapshot '{}' had failed, an extension threw: {}", path.string(), second.what()));
    } catch (...) {
      if (!error) throw;
      log::error(
          fmt::format("after the snapshot '{}' had failed, an extension threw an unknown exception", path.string()));
    }
    if (error) std::rethrow_exception(error);
  }

  /// Two extensions that write under one name would replace each other's files.
  void refuse_other_owner(const context& ctx, const std::filesystem::path& path) const {
    const auto owner = directory_->other_owner(path);
    if (owner && ctx.has_extension(*owner))
      throw snapshot_error(fmt::format(
          "'{}' is a snapshot that the extension '{}' made; give this one another filename", path.string(), *owner));
  }

  // ---- resuming
  // ------------------------------------------------------------------------------------------------------

  task<> autoload(context& ctx) {
    std::vector<extensions::rejected_snapshot> rejected;
    const auto candidates = directory_->list(&rejected);
    std::optional<state::value> state;
    const extensions::snapshot_candidate* chosen = nullptr;
    for (const auto& candidate : candidates) {
      try {
        state = options_.loadfun ? options_.loadfun(candidate.path) : extensions::read_snapshot(candidate.path);
        chosen = &candidate;
        break;
      } catch (const std::exception& e) {
        rejected.push_back({candidate.path, e.what()});
      }
    }
    for (const auto& bad : rejected) {
      log::warn(fmt::format("passing over the damaged snapshot '{}': {}", bad.path.string(), bad.reason));
      auto rest = ctx.emit<event::snapshot_rejected>(bad.path, bad.reason);
      if (rest) co_await std::move(*rest);
    }
    if (chosen == nullptr) {
      if (!rejected.empty()) throw all_rejected(ctx, rejected);
      log::info(fmt::format("no snapshot in '{}': a fresh start", ctx.out().string()));
      co_return;
    }
    load_chosen(ctx, chosen->path, *state);
    log::info(fmt::format("resuming from '{}' (iteration {})", chosen->path.string(), chosen->iteration));
  }

  void load_chosen(context& ctx, const std::filesystem::path& path, const state::value& state) const {
    try {
      load_target(ctx, state);
    } catch (const state_error& e) {
      throw snapshot_error(
          fmt::format("the snapshot '{}' is sound, but does not fit this training: {}. Train with the model "
                      "and optimizer that it was made with, or use another output directory",
                      path.string(), e.what()));
    }
    if (std::holds_alternative<std::monostate>(options_.target)) ctx.set_resumed_from(path);
  }

  static snapshot_error all_rejected(context& ctx, const std::vector<extensions::rejected_snapshot>& rejected) {
    std::string reasons;
    for (const auto& bad : rejected) reasons += fmt::format("\n  {}: {}", bad.path.string(), bad.reason);
    return snapshot_error(
        fmt::format("none of the {} snapshots in '{}' can be resumed from; move them away to start afresh:{}",
                    rejected.size(), ctx.out().string(), reasons));
  }

  snapshot_options options_;
  std::optional<writing::file_name_template> names_;
  std::optional<extensions::snapshot_directory> directory_;
  std::shared_ptr<writing::writer> by_name_ = writers::simple();  // for savefun
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
