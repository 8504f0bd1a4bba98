#include "rondo/extensions/timeline_trace.hpp"

#include <fmt/format.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>
#include <vector>

#include "rondo/async/trace.hpp"
#include "rondo/error.hpp"
#include "rondo/event/events.hpp"
#include "rondo/extensions/background_jobs.hpp"
#include "rondo/extensions/output_file.hpp"
#include "rondo/log.hpp"
#include "rondo/loop/context.hpp"
#include "rondo/writing/atomic_file.hpp"

namespace rondo {

namespace {

using json = nlohmann::ordered_json;

constexpr std::string_view beginning = "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n";
constexpr std::string_view ending = "\n]}\n";

/// "trace.json", on rank 2 "trace.rank2.json".
std::filesystem::path file_of_rank(const std::filesystem::path& name, int rank) {
  if (rank == 0) return name;
  return fmt::format("{}.rank{}{}", name.stem().string(), rank, name.extension().string());
}

std::string quoted(const std::string& text) { return json(text).dump(-1, ' ', false, json::error_handler_t::replace); }

/// The file as it grows. After its construction it belongs to whoever writes it, one at a time, but for `position`.
class trace_file {
 public:
  trace_file(std::filesystem::path path, int rank) : path_(std::move(path)), rank_(rank) {}

  /// Takes over the first `position` bytes of the file that is there, if they are the beginning of one of ours.
  void go_on_from(std::int64_t position) {
    std::ifstream in(path_, std::ios::binary);
    std::string text(static_cast<std::size_t>(position), '\0');
    in.read(text.data(), static_cast<std::streamsize>(text.size()));
    const bool whole = in.gcount() == static_cast<std::streamsize>(text.size());
    if (whole && text.starts_with(beginning) && text.ends_with('}')) text_ = std::move(text);
    if (text_.empty())
      log::warn(fmt::format("'{}' is not what it was when the snapshot was taken, and begins anew", path_.string()));
  }

  void begin() {
    if (text_.empty()) text_ = beginning;
    add(fmt::format(R"({{"name":"process_name","ph":"M","pid":{},"args":{{"name":"rank {}"}}}})", rank_, rank_));
    write();
  }

  void add_thread(const trace::collector::thread& thread) {
    add(fmt::format(R"({{"name":"thread_name","ph":"M","pid":{},"tid":{},"args":{{"name":{}}}}})", rank_, thread.id,
                    quoted(thread.name)));
  }

  void add_span(const trace::record& span, std::int64_t origin) {
    const auto& what = *span.what;
    const auto common = fmt::format(R"("name":{},"cat":{},"pid":{},"tid":{})", quoted(what.name), quoted(what.category),
                                    rank_, span.thread);
    const auto arguments = arguments_of(span);
    if (span.nested) {
      add(fmt::format(R"({{"ph":"X",{},"ts":{},"dur":{}{}}})", common, microseconds(span.begin - origin),
                      microseconds(span.end - span.begin), arguments));
      return;
    }
    ++apart_;
    add(fmt::format(R"({{"ph":"b",{},"id":{},"ts":{}{}}})", common, apart_, microseconds(span.begin - origin),
                    arguments));
    add(fmt::format(R"({{"ph":"e",{},"id":{},"ts":{}}})", common, apart_, microseconds(span.end - origin)));
  }

  void write() {
    const auto files = writing::posix_file_system();
    const auto bytes = [](std::string_view text) { return std::as_bytes(std::span(text.data(), text.size())); };
    writing::write_atomically(*files, path_, text_.size() + ending.size(), [&](const writing::append_function& append) {
      append(bytes(text_));
      append(bytes(ending));
    });
    position_ = static_cast<std::int64_t>(text_.size());
  }

  /// Of the last event in the file.
  [[nodiscard]] std::int64_t position() const noexcept { return position_; }

 private:
  static std::string microseconds(std::int64_t nanoseconds) {
    return fmt::format("{:.3f}", static_cast<double>(nanoseconds) * 1e-3);
  }

  static std::string arguments_of(const trace::record& span) {
    json all = json::object();
    if (!span.what->detail.empty()) all["detail"] = span.what->detail;
    if (!span.what->argument.empty() && span.argument != trace::no_argument) all[span.what->argument] = span.argument;
    if (all.empty()) return {};
    return ",\"args\":" + all.dump(-1, ' ', false, json::error_handler_t::replace);
  }

  void add(const std::string& event) {
    if (text_.size() > beginning.size()) text_ += ",\n";
    text_ += event;
  }

  std::filesystem::path path_;
  int rank_;
  std::string text_;
  std::int64_t apart_ = 0;
  std::atomic<std::int64_t> position_{0};
};

class tracer {
 public:
  explicit tracer(timeline_trace_options options)
      : options_(std::move(options)), enabled_(!options_.enable), spans_(false) {}

  void attach(context& ctx) {
    ctx.on<event::training_started>([this, &ctx] { begin(ctx); });
    ctx.on<event::iteration_completed>([this, &ctx] { follow(ctx); });
  }

  /// Ends after `training_completed` has reached everybody, so that the last snapshots are in the trace.
  task<> run(context& ctx) {
    while (const auto* failure = co_await ctx.next<event::failed>()) static_cast<void>(failure);
    if (file_) write(ctx);  // else training has failed before it began
    spans_.pause();
    co_await jobs_.finished();
  }

  [[nodiscard]] state::value state_dict() const {
    const auto memory = [](const auto& t) { return t ? t->state_dict() : state::value(); };
    return state::dict{{"trigger", options_.trigger.state_dict()},
                       {"enable", memory(options_.enable)},
                       {"disable", memory(options_.disable)},
                       {"enabled", enabled_},
                       {"events", events_},
                       {"position", file_ ? file_->position() : position_}};
  }

  void load_state_dict(const state::value& state) {
    trigger when = options_.trigger;
    when.load_state_dict(state.at("trigger"));
    auto enable = options_.enable;
    auto disable = options_.disable;
    if (enable && !state.at("enable").is_null()) enable->load_state_dict(state.at("enable"));
    if (disable && !state.at("disable").is_null()) disable->load_state_dict(state.at("disable"));
    const bool enabled = state.get<bool>("enabled");
    const auto events = state.get<std::int64_t>("events");
    const auto position = state.get<std::int64_t>("position");
    if (position < 0) throw state_error("position", fmt::format("is {}, which is not a position in a file", position));
    if (events < 0) throw state_error("events", fmt::format("is {}, which is no number of events", events));

    options_.trigger = std::move(when);
    options_.enable = std::move(enable);
    options_.disable = std::move(disable);
    enabled_ = enabled;
    events_ = events;
    position_ = position;
  }

 private:
  void begin(context& ctx) {
    const auto now = std::chrono::steady_clock::now().time_since_epoch();
    origin_ = std::chrono::duration_cast<std::chrono::nanoseconds>(now).count() -
              static_cast<std::int64_t>(ctx.elapsed_time() * 1e9);
    const int rank = ctx.group().rank();
    file_ = std::make_shared<trace_file>(ctx.out() / file_of_rank(options_.filename, rank), rank);
    if (position_ > 0 && rank == 0) file_->go_on_from(position_);
    jobs_.add(ctx, [file = file_] { file->begin(); });
    if (enabled_) start();
  }

  void start() {
    enabled_ = true;
    if (events_ >= options_.max_events) return;
    spans_.resume();
    drained_at_ = trace::recorded_by_this_thread();
  }

  void follow(context& ctx) {
    if (spans_.running() && trace::recorded_by_this_thread() - drained_at_ >= trace::spans_between_drains) drain();
    const bool write_now = options_.trigger.due(ctx.now());
    const bool disable = options_.disable && options_.disable->due(ctx.now());
    const bool enable = options_.enable && options_.enable->due(ctx.now());
    if (disable && enabled_) {
      drain();
      spans_.pause();
      enabled_ = false;
    }
    if (enable && !enabled_) start();
    if (write_now) write(ctx);
  }

  void drain() {
    if (!spans_.running()) return;
    lost_ += spans_.drain(drained_);
    drained_at_ = trace::recorded_by_this_thread();
    const auto room = static_cast<std::size_t>(options_.max_events - events_);
    if (drained_.size() < room) return;
    drained_.resize(room);
    spans_.pause();
    log::warn(
        fmt::format("timeline_trace: {} spans have been recorded, which is all that max_events allows; see "
                    "enable and disable for recording a part of the training",
                    options_.max_events));
  }

  void write(context& ctx) {
    drain();
    events_ += static_cast<std::int64_t>(drained_.size());
    const auto& known = spans_.threads();
    std::vector<trace::collector::thread> threads(known.begin() + static_cast<std::ptrdiff_t>(threads_written_),
                                                  known.end());
    threads_written_ = known.size();
    auto spans = std::make_shared<const std::vector<trace::record>>(std::exchange(drained_, {}));
    if (std::exchange(lost_, 0) > 0)
      log::warn("timeline_trace: an iteration has recorded more spans than there is room for; some are missing");
    jobs_.add(ctx, [file = file_, spans, threads = std::move(threads), origin = origin_] {
      trace::name_this_thread("trace writer");
      for (const auto& thread : threads) file->add_thread(thread);
      for (const auto& span : *spans) file->add_span(span, origin);
      file->write();
    });
  }

  timeline_trace_options options_;
  bool enabled_;
  std::int64_t events_ = 0;    // that have been given to the file
  std::int64_t position_ = 0;  // at which to go on
  std::shared_ptr<trace_file> file_;
  extensions::background_jobs jobs_;
  trace::collector spans_;
  std::vector<trace::record> drained_;
  std::uint64_t drained_at_ = 0;
  std::uint64_t lost_ = 0;
  std::size_t threads_written_ = 0;
  std::int64_t origin_ = 0;  // of the time axis, in nanoseconds of the clock
};

}  // namespace

extension timeline_trace(timeline_trace_options options) {
  detail::require_file_name(options.filename);
  if (options.max_events < 1) throw option_error("max_events", fmt::format("{}", options.max_events), "1 or more");
  return extension::made_by("timeline_trace",
                            [options = std::move(options)] { return std::make_shared<tracer>(options); });
}

}  // namespace rondo
