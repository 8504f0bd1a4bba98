#include "rondo/extensions/webhook.hpp"

#include <curl/curl.h>
#include <fmt/format.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <csignal>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "rondo/error.hpp"
#include "rondo/log.hpp"

namespace rondo::extensions {

namespace {

using clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

template <class T, void (*Free)(T*)>
struct freed_by {
  void operator()(T* object) const noexcept { Free(object); }
};
using curl_handle = std::unique_ptr<CURL, freed_by<CURL, curl_easy_cleanup>>;
using curl_headers = std::unique_ptr<curl_slist, freed_by<curl_slist, curl_slist_free_all>>;
using curl_address = std::unique_ptr<CURLU, freed_by<CURLU, curl_url_cleanup>>;

void require_curl() {
  static const CURLcode begun = curl_global_init(CURL_GLOBAL_DEFAULT);
  if (begun != CURLE_OK) throw error(fmt::format("libcurl cannot be used: {}", curl_easy_strerror(begun)));
}

std::string part_of(CURLU* address, CURLUPart which) {
  char* text = nullptr;
  if (curl_url_get(address, which, &text, 0) != CURLUE_OK) return "";
  std::string result(text);
  curl_free(text);
  return result;
}

/// Scheme and host: the rest of a webhook's address is a password.
std::string public_part(const std::string& url) {
  const curl_address address(curl_url());
  const bool readable = address && curl_url_set(address.get(), CURLUPART_URL, url.c_str(), 0) == CURLUE_OK;
  const auto scheme = readable ? part_of(address.get(), CURLUPART_SCHEME) : "";
  const auto host = readable ? part_of(address.get(), CURLUPART_HOST) : "";
  if ((scheme != "http" && scheme != "https") || host.empty())
    throw option_error("url",
                       readable && !scheme.empty() ? fmt::format("an address of kind '{}'", scheme)
                                                   : "something that cannot be read as an address",
                       "https://… or http://…");
  return scheme + "://" + host + "/…";
}

std::size_t ignore_answer(char*, std::size_t size, std::size_t count, void*) { return size * count; }

int broken_off(void* flag, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  return static_cast<const std::atomic<bool>*>(flag)->load() ? 1 : 0;
}

}  // namespace

class webhook::delivery {
 public:
  delivery(std::string url, webhook_options options)
      : url_(std::move(url)), shown_(public_part(url_)), options_(options), handle_(curl_easy_init()) {
    if (!handle_) throw error("libcurl cannot make a handle");
    headers_.reset(curl_slist_append(nullptr, "Content-Type: application/json"));
    set_up();
  }

  void post(std::string body) {
    const std::lock_guard lock(mutex_);
    if (waiting_.size() >= capacity) {
      waiting_.pop_front();
      complain("is too slow for so many messages; the oldest is dropped");
    }
    waiting_.push_back(std::move(body));
    changed_.notify_all();
  }

  void finish(milliseconds limit) {
    std::unique_lock lock(mutex_);
    const bool all = changed_.wait_for(lock, limit, [&] { return waiting_.empty() && !busy_; });
    if (all) return;
    give_up_ = true;
    waiting_.clear();
    complain(
        fmt::format("has not taken everything within {:.3g} s at the end", static_cast<double>(limit.count()) / 1e3));
    changed_.notify_all();
    changed_.wait(lock, [&] { return !busy_; });
    give_up_ = false;
  }

  void stop() {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    give_up_ = true;
    changed_.notify_all();
  }

  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      changed_.wait(lock, [&] { return stopped_ || !waiting_.empty(); });
      if (stopped_) return;
      const auto body = std::move(waiting_.front());
      waiting_.pop_front();
      busy_ = true;
      deliver(body, lock);
      busy_ = false;
      changed_.notify_all();
    }
  }

 private:
  struct attempt {
    std::optional<std::string> problem;
    bool worth_another = false;
    milliseconds asked_delay{0};
  };

  void set_up() {
    CURL* h = handle_.get();
    curl_easy_setopt(h, CURLOPT_URL, url_.c_str());
    curl_easy_setopt(h, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(h, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(h, CURLOPT_TIMEOUT_MS, static_cast<long>(options_.timeout.count()));
    curl_easy_setopt(h, CURLOPT_HTTPHEADER, headers_.get());
    curl_easy_setopt(h, CURLOPT_USERAGENT, "rondo");
    curl_easy_setopt(h, CURLOPT_WRITEFUNCTION, ignore_answer);
    curl_easy_setopt(h, CURLOPT_NOPROGRESS, 0L);
    curl_easy_setopt(h, CURLOPT_XFERINFOFUNCTION, broken_off);
    curl_easy_setopt(h, CURLOPT_XFERINFODATA, static_cast<void*>(&give_up_));
  }

  /// `lock` is held before and after, but not while the network is waited for.
  void deliver(const std::string& body, std::unique_lock<std::mutex>& lock) {
    auto delay = options_.retry_delay;
    for (int tries = 1;; ++tries, delay *= 2) {
      lock.unlock();
      const auto result = send(body);
      lock.lock();
      if (!result.problem || give_up_) return;
      if (!result.worth_another || tries > options_.retries)
        return complain(fmt::format("{} ({} attempt{})", *result.problem, tries, tries == 1 ? "" : "s"));
      changed_.wait_for(lock, std::max(delay, result.asked_delay), [&] { return give_up_.load(); });
      if (give_up_) return;
    }
  }

  attempt send(const std::string& body) {
    CURL* h = handle_.get();
    curl_easy_setopt(h, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(body.size()));
    curl_easy_setopt(h, CURLOPT_POSTFIELDS, body.c_str());
    const CURLcode code = curl_easy_perform(h);
    if (code != CURLE_OK) return {fmt::format("cannot be reached: {}", curl_easy_strerror(code)), true, {}};
    long status = 0;
    curl_off_t wait = 0;
    curl_easy_getinfo(h, CURLINFO_RESPONSE_CODE, &status);
    curl_easy_getinfo(h, CURLINFO_RETRY_AFTER, &wait);
    if (status >= 200 && status < 300) return {};
    const bool may_pass = status == 429 || status == 408 || status >= 500;
    return {fmt::format("has answered with status {}", status), may_pass,
            std::chrono::seconds(std::min<std::int64_t>(wait, 60))};
  }

  void complain(const std::string& problem) {
    if (std::exchange(complained_, true)) return;
    log::warn(fmt::format("notify: the webhook at {} {}. Training goes on; further failures are not mentioned", shown_,
                          problem));
  }

  std::string url_;
  std::string shown_;
  webhook_options options_;
  curl_handle handle_;
  curl_headers headers_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::string> waiting_;
  bool busy_ = false;
  bool stopped_ = false;
  bool complained_ = false;
  std::atomic<bool> give_up_ = false;
};

webhook::webhook(std::string url, webhook_options options) {
  require_curl();
  self_ = std::make_shared<delivery>(std::move(url), options);
  // Signals are for the training thread.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  try {
    // Not waited for at the end: looking up a name cannot be broken off.
    std::thread([self = self_] { self->work(); }).detach();
  } catch (...) {
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    throw;
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

webhook::~webhook() { self_->stop(); }

void webhook::post(std::string body) { self_->post(std::move(body)); }
void webhook::finish(std::chrono::milliseconds limit) { self_->finish(limit); }

}  // namespace rondo::extensions
