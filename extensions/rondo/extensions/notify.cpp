#include "rondo/extensions/notify.hpp"

#include <errno.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <variant>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/event/events.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/extensions/webhook.hpp"
#include "rondo/loop/context.hpp"

namespace rondo {

namespace {

constexpr const char* url_variable = "RONDO_WEBHOOK_URL";

std::string host_name() {
  std::array<char, 256> name{};
  return ::gethostname(name.data(), name.size() - 1) == 0 ? name.data() : "unknown host";
}

std::string what_of(const std::exception_ptr& cause) {
  try {
    std::rethrow_exception(cause);
  } catch (const std::exception& e) {
    return e.what();
  } catch (...) {
    return "something that is no std::exception";
  }
}

/// A text with placeholders, taken apart.
class text_template {
 public:
  text_template(const char* option, const std::string& text) {
    for (std::size_t i = 0; i < text.size();) {
      const bool brace = text[i] == '{' || text[i] == '}';
      if (!brace || (i + 1 < text.size() && text[i + 1] == text[i])) {
        add(text[i]);
        i += brace ? 2 : 1;
        continue;
      }
      const auto end = text.find('}', i);
      if (text[i] == '}' || end == std::string::npos)
        throw option_error(option, "'" + text + "'", "a text in which braces are '{key}', '{{' or '}}'");
      parts_.push_back(placeholder_in(option, text.substr(i + 1, end - i - 1)));
      i = end + 1;
    }
  }

  [[nodiscard]] bool empty() const noexcept { return parts_.empty(); }

  /// `find(key, format)` gives what stands for a placeholder.
  template <class Find>
  [[nodiscard]] std::string filled(Find find) const {
    std::string text;
    for (const auto& part : parts_) text += part.key ? find(*part.key, part.format) : part.literal;
    return text;
  }

 private:
  struct part {
    std::string literal;
    std::optional<std::string> key;
    std::string format;
  };

  void add(char c) {
    if (parts_.empty() || parts_.back().key) parts_.emplace_back();
    parts_.back().literal += c;
  }

  static part placeholder_in(const char* option, const std::string& inside) {
    const auto colon = inside.find(':');
    part result{"", inside.substr(0, colon), "{}"};
    if (colon != std::string::npos) result.format = fmt::format("{{{}}}", inside.substr(colon));
    try {
      static_cast<void>(fmt::format(fmt::runtime(result.format), 1.0));
    } catch (const fmt::format_error& e) {
      throw option_error(option, "'{" + inside + "}'",
                         fmt::format("a format for numbers such as '.4f' ({})", e.what()));
    }
    return result;
  }

  std::vector<part> parts_;
};

class text_maker {
 public:
  text_maker(const char* option, const notification& what) : text_(option, what.text()), make_(what.maker()) {}

  [[nodiscard]] bool empty() const { return text_.empty() && !make_; }

  [[nodiscard]] std::string operator()(context& ctx, const std::string& stop_reason, const std::string& error) const {
    if (make_) return make_(ctx, error);
    return text_.filled([&](const std::string& key, const std::string& format) -> std::string {
      if (key == "program") return program_invocation_short_name;
      if (key == "host") return host_name();
      if (key == "stop_reason") return stop_reason;
      if (key == "error") return error;
      if (key == "observations") return observations_of(ctx);
      return number(ctx, key, format);
    });
  }

 private:
  static std::string number(context& ctx, const std::string& key, const std::string& format) {
    // Numbers are shown as doubles, so that one kind of format suits all.
    const auto shown = [&](double value, const char* usual) {
      return fmt::format(fmt::runtime(format == "{}" ? std::string_view(usual) : std::string_view(format)), value);
    };
    if (key == "iteration") return shown(static_cast<double>(ctx.iteration()), "{:.0f}");
    if (key == "epoch") return shown(static_cast<double>(ctx.epoch()), "{:.0f}");
    if (key == "epoch_detail") return shown(ctx.epoch_detail(), "{:.2f}");
    if (key == "elapsed_time") return shown(ctx.elapsed_time(), "{:.1f}");
    const auto* found = ctx.reported().find(key);
    return found == nullptr ? "-" : shown(found->value(), "{:.6g}");
  }

  static std::string observations_of(context& ctx) {
    std::string text;
    ctx.reported().for_each([&](const std::string& key, const observation& value) {
      text += fmt::format("{}{} {:.6g}", text.empty() ? "" : ", ", key, value.value());
    });
    return text.empty() ? "-" : text;
  }

  text_template text_;
  std::function<std::string(context&, const std::string&)> make_;
};

class notifier {
 public:
  notifier(notify_options options, const std::string& url)
      : message_("message", options.message),
        start_("start_message", options.start_message),
        end_("end_message", options.end_message),
        error_("error_message", options.error_message),
        field_(options.field),
        end_timeout_(options.end_timeout),
        hook_(url, {options.timeout, options.retries, options.retry_delay}) {}

  void attach(context& ctx) {
    speaks_ = ctx.is_saver();
    ctx.when_due([this, &ctx] { say(message_, ctx); });
    ctx.on<event::training_started>([this, &ctx] { say(start_, ctx); });
    ctx.on<event::failed>([this, &ctx](const event::failed& e) {
      say(error_, ctx, "", what_of(e.cause));
      if (ended_ && speaks_) hook_.finish(end_timeout_);
    });
    ctx.on_end<event::training_completed>(
        [this, &ctx](const event::training_completed& end) -> task<> { return conclude(ctx, end); });
  }

 private:
  void say(const text_maker& what, context& ctx, const std::string& stop_reason = "", const std::string& error = "") {
    if (!speaks_ || what.empty()) return;
    const auto text = what(ctx, stop_reason, error);
    if (text.empty()) return;
    const nlohmann::json body{{field_, text}};
    hook_.post(body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  }

  task<> conclude(context& ctx, const event::training_completed& end) {
    if (!end.error) say(end_, ctx, end.stop_reason);
    ended_ = true;
    if (!speaks_) co_return;
    auto waiting = [this] { hook_.finish(end_timeout_); };
    co_await ctx.offload(waiting);
  }

  text_maker message_;
  text_maker start_;
  text_maker end_;
  text_maker error_;
  std::string field_;
  std::chrono::milliseconds end_timeout_;
  extensions::webhook hook_;
  bool speaks_ = true;
  bool ended_ = false;
};

void check(const notify_options& options) {
  const auto require_positive = [](const char* option, std::chrono::milliseconds time) {
    if (time.count() < 1) throw option_error(option, fmt::format("{} ms", time.count()), "1 ms or more");
  };
  require_positive("timeout", options.timeout);
  require_positive("retry_delay", options.retry_delay);
  require_positive("end_timeout", options.end_timeout);
  if (options.retries < 0) throw option_error("retries", fmt::format("{}", options.retries), "0 or more");
  if (options.field.empty()) throw option_error("field", "empty", "the key that the webhook expects, such as \"text\"");
}

std::string address_of(const notify_options& options) {
  if (!options.url.empty()) return options.url;
  const char* url = std::getenv(url_variable);
  if (url == nullptr || *url == '\0')
    throw option_error("url", fmt::format("empty, and the environment variable {} is not set", url_variable),
                       "the address of a webhook in one of the two");
  return url;
}

}  // namespace

extension notify(notify_options options) {
  check(options);
  const auto url = address_of(options);
  return extension::made_by("notify",
                            [options = std::move(options), url] { return std::make_shared<notifier>(options, url); })
      .triggered(every(epochs(1)));
}

}  // namespace rondo
