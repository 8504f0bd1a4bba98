#pragma once

#include <chrono>
#include <concepts>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>

#include "rondo/loop/extension.hpp"

namespace rondo {

/// The text of a notification: one with placeholders, or a function that makes it. Empty: nothing is sent.
///
/// Placeholders are `{program}`, `{host}`, `{iteration}`, `{epoch}`, `{epoch_detail}`, `{elapsed_time}` (seconds),
/// `{stop_reason}`, `{error}`, `{observations}` (everything reported in this iteration) and the key of any observation:
/// `{train/loss}`. Numbers may have a format: `{validation/accuracy:.3f}`. What is not there in this iteration becomes
/// "-". `{{` and `}}` are braces.
class notification {
 public:
  notification(std::string text) : text_(std::move(text)) {}
  notification(const char* text) : text_(text) {}
  /// Called on the training thread with `(context&)`, or with `(context&, const std::string& error)`; returns the text.
  template <class F>
    requires std::is_invocable_r_v<std::string, F&, context&> ||
        std::is_invocable_r_v<std::string, F&, context&, const std::string&>
        notification(F make) {
      if constexpr (std::is_invocable_r_v<std::string, F&, context&>)
        make_ = [make = std::move(make)](context& ctx, const std::string&) mutable -> std::string { return make(ctx); };
      else
        make_ = std::move(make);
    }

  [[nodiscard]] const std::string& text() const noexcept { return text_; }
  [[nodiscard]] const std::function<std::string(context&, const std::string& error)>& maker() const noexcept {
    return make_;
  }

 private:
  std::string text_;
  std::function<std::string(context&, const std::string&)> make_;
};

struct notify_options {
  /// Where to post: an "incoming webhook" of Slack, Mattermost, Rocket.Chat or the like. Default (empty): what the
  /// environment variable RONDO_WEBHOOK_URL says. It is a secret: messages show its host only.
  std::string url = {};
  /// When the extension's trigger fires.
  notification message = "{program} on {host}: epoch {epoch}, iteration {iteration}: {observations}";
  /// When training starts or is resumed.
  notification start_message = "{program} on {host}: training starts at iteration {iteration}";
  /// When training has ended without an error.
  notification end_message = "{program} on {host}: {stop_reason}, at iteration {iteration}";
  /// When training has failed.
  notification error_message = "{program} on {host}: training has failed at iteration {iteration}: {error}";
  /// The text is posted as the value of this key. Discord's is "content".
  std::string field = "text";
  /// For one attempt. Positive.
  std::chrono::milliseconds timeout = std::chrono::seconds(10);
  /// Further attempts when the network or the server fails. At least 0.
  int retries = 2;
  /// Before the first further attempt; doubles each time. A server may ask for more. Positive.
  std::chrono::milliseconds retry_delay = std::chrono::seconds(1);
  /// How long the end of training waits for what has not been delivered. Positive.
  std::chrono::milliseconds end_timeout = std::chrono::seconds(15);
};

/// Tells people how training is: posts a line to a webhook when it starts, when the trigger fires, when it ends and
/// when it fails. A thread of its own sends, so that training never waits, but at its very end. What cannot be
/// delivered is given up with one warning; it never ends training.
///
/// Default trigger: `every(epochs(1))`. Name "notify", priority `reader`, no state. With several ranks, rank 0 sends.
///
/// Throws `option_error` at once for an address that is missing or not of http or https, braces in a text that do not
/// match, and numbers that make no sense. What a function for a text throws ends training.
[[nodiscard]] extension notify(notify_options options = {});

}  // namespace rondo
