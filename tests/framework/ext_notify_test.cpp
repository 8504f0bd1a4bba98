#include <stdio.h>
#include <stdlib.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/extensions/notify.hpp"
#include "support/bare_loop.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/temporary_directory.hpp"

namespace ext_notify_test {

using namespace rondo;
using namespace rondo::literals;
using namespace rondo::testing;
using namespace std::chrono_literals;

namespace {

/// Sets an environment variable, or removes it (null), while it lives.
class environment_variable {
 public:
  environment_variable(const char* name, const char* value) : name_(name) {
    if (const char* before = std::getenv(name)) before_ = before;
    set(value);
  }
  environment_variable(const environment_variable&) = delete;
  environment_variable& operator=(const environment_variable&) = delete;
  ~environment_variable() { set(before_ ? before_->c_str() : nullptr); }

 private:
  void set(const char* value) { value == nullptr ? ::unsetenv(name_) : ::setenv(name_, value, 1); }
  const char* name_;
  std::optional<std::string> before_;
};

/// Python's own HTTP server on a port of this machine; it keeps what is posted, and answers as `answer` says: "ok",
/// "500" or "hang".
class web_server {
 public:
  explicit web_server(const std::string& answer) {
    const auto script = directory_ / "server.py";
    std::ofstream(script) << R"(
import http.server, json, os, sys, threading, time
out, answer = sys.argv[1:]
class handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers['Content-Length'])).decode()
        with open(out + '/posts', 'a') as f:
            f.write(json.dumps([self.path, self.headers['Content-Type'], body]) + '\n')
        if answer == 'hang':
            time.sleep(600)
        self.send_response(200 if answer == 'ok' else 500)
        self.send_header('Content-Length', '0')
        self.end_headers()
    def log_message(self, *rest):
        pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
server.daemon_threads = True
with open(out + '/port.new', 'w') as f:
    f.write(str(server.server_address[1]))
os.rename(out + '/port.new', out + '/port')
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
server.serve_forever()
)";
    const auto command =
        "exec /usr/bin/python3 '" + script.string() + "' '" + directory_.path().string() + "' " + answer;
    process_ = ::popen(command.c_str(), "w");  // it ends when its standard input does
    const auto limit = std::chrono::steady_clock::now() + 20s;
    while (!std::filesystem::exists(directory_ / "port") && std::chrono::steady_clock::now() < limit)
      std::this_thread::sleep_for(1ms);
    std::ifstream(directory_ / "port") >> port_;
  }
  web_server(const web_server&) = delete;
  web_server& operator=(const web_server&) = delete;
  ~web_server() { ::pclose(process_); }

  [[nodiscard]] std::string url() const { return "http://127.0.0.1:" + std::to_string(port_) + "/services/SECRET"; }

  [[nodiscard]] std::vector<nlohmann::json> posts() const {
    std::ifstream in(directory_ / "posts");
    std::vector<nlohmann::json> all;
    for (std::string line; std::getline(in, line);) all.push_back(nlohmann::json::parse(line));
    return all;
  }
  /// What the bodies say under "text".
  [[nodiscard]] std::vector<std::string> texts() const {
    std::vector<std::string> all;
    for (const auto& post : posts()) all.push_back(nlohmann::json::parse(post[2].get<std::string>()).at("text"));
    return all;
  }

 private:
  temporary_directory directory_;
  FILE* process_ = nullptr;
  int port_ = 0;
};

void report_loss(context& ctx, int) { ctx.report("train/loss", 1.0 / static_cast<double>(ctx.iteration() + 1)); }

using texts = std::vector<std::string>;

const environment_variable no_proxy("no_proxy", "127.0.0.1");

}  // namespace

TEST_CASE("notify posts when training starts, at the trigger and at the end", "[ext][notify]") {
  const web_server server("ok");
  auto l = bare_loop(2, report_loss, {.max_epochs = 2});
  l | notify({.url = server.url(),
              .message = "{{{epoch}}} {train/loss:.3f} {iteration} {unknown} {observations}",
              .start_message = "begin {iteration}",
              .end_message = "{stop_reason} \"quoted\" \xff"});
  l.run();
  CHECK(server.texts() == texts{"begin 0", "{1} 0.500 2 - train/loss 0.5", "{2} 0.250 4 - train/loss 0.25",
                                "2 epochs completed \"quoted\" \xef\xbf\xbd"});
  for (const auto& post : server.posts()) {
    CHECK(post[0] == "/services/SECRET");
    CHECK(post[1] == "application/json");
  }
}

TEST_CASE("notify takes functions, another trigger, another field, and the address from the environment",
          "[ext][notify]") {
  const web_server server("ok");
  const environment_variable address("RONDO_WEBHOOK_URL", server.url().c_str());
  auto l = bare_loop(2, report_loss, {.max_epochs = 2});
  l | notify({.message = [](context& ctx) { return ctx.iteration() == 2 ? "" : std::to_string(ctx.iteration()); },
              .start_message = "",
              .end_message = "",
              .field = "content"})
          .triggered(every(1_iterations));
  l.run();
  texts seen;
  for (const auto& post : server.posts())
    seen.push_back(nlohmann::json::parse(post[2].get<std::string>()).at("content"));
  CHECK(seen == texts{"1", "3", "4"});
}

TEST_CASE("notify tells the whole error", "[ext][notify]") {
  const web_server server("ok");
  auto l = bare_loop(2,
                     [](context& ctx, int) {
                       if (ctx.iteration() == 1) throw std::runtime_error("out of luck");
                     },
                     {.max_epochs = 2});
  SECTION("by default") {
    l | notify({.url = server.url(), .start_message = ""});
    CHECK_THROWS_WITH(l.run(), "out of luck");
    REQUIRE(server.texts().size() == 1);
    CHECK(contains(server.texts()[0], ": training has failed at iteration 1: out of luck"));
  }
  SECTION("by a function") {
    l | notify({.url = server.url(), .start_message = "", .error_message = [](context&, const std::string& error) {
                  return "<" + error + ">";
                }});
    CHECK_THROWS_WITH(l.run(), "out of luck");
    CHECK(server.texts() == texts{"<out of luck>"});
  }
}

TEST_CASE("notify: a webhook that fails is warned about once, without its address, and training goes on",
          "[ext][notify]") {
  captured_stderr said;
  const web_server server("500");
  auto l = bare_loop(2, report_loss, {.max_epochs = 3});
  l | notify({.url = server.url(), .retries = 1, .retry_delay = 1ms});
  CHECK(l.run().epoch == 3);
  CHECK(server.posts().size() == 10);  // 5 messages, each twice
  const auto text = said.text();
  CHECK(contains(text, "http://127.0.0.1/… has answered with status 500 (2 attempts). Training goes on"));
  CHECK(text.find("webhook at") == text.rfind("webhook at"));
  CHECK_FALSE(contains(text, "SECRET"));
}

TEST_CASE("notify does not wait for a webhook that hangs", "[ext][notify]") {
  captured_stderr said;
  const web_server server("hang");
  auto l = bare_loop(2, report_loss, {.max_epochs = 3});
  SECTION("longer than the end allows") {
    l | notify({.url = server.url(), .timeout = 60s, .end_timeout = 50ms});
    CHECK(l.run().epoch == 3);
    CHECK(contains(said.text(), "has not taken everything within 0.05 s"));
  }
  SECTION("longer than an attempt may take") {
    l | notify({.url = server.url(), .message = "", .end_message = "", .timeout = 30ms, .retries = 0});
    CHECK(l.run().epoch == 3);
    CHECK(contains(said.text(), "cannot be reached: Timeout was reached (1 attempt)"));
  }
  CHECK_FALSE(contains(said.text(), "SECRET"));
}

TEST_CASE("notify: nobody listens", "[ext][notify]") {
  captured_stderr said;
  auto l = bare_loop(2, report_loss, {.max_epochs = 1});
  l | notify({.url = "http://user:SECRET@127.0.0.1:1/SECRET", .retries = 0});
  CHECK(l.run().epoch == 1);
  CHECK(contains(said.text(), "http://127.0.0.1/… cannot be reached"));
  CHECK_FALSE(contains(said.text(), "SECRET"));
}

TEST_CASE("notify refuses options that make no sense, and never shows the address", "[ext][notify]") {
  const environment_variable address("RONDO_WEBHOOK_URL", nullptr);
  const auto problem = [](notify_options options) {
    return message_of<option_error>([&] { static_cast<void>(notify(std::move(options))); });
  };
  CHECK(contains(problem({}), "RONDO_WEBHOOK_URL"));
  for (const char* url : {"ftp://example.com/SECRET", "file:///SECRET", "http://[SECRET", "SECRET SECRET"}) {
    CHECK(contains(problem({.url = url}), "url"));
    CHECK_FALSE(contains(problem({.url = url}), "SECRET"));
  }
  const std::string url = "https://example.com/x";
  CHECK(contains(problem({.url = url, .message = "{train/loss"}), "message"));
  CHECK(contains(problem({.url = url, .start_message = "}"}), "start_message"));
  CHECK(contains(problem({.url = url, .end_message = "{epoch:.3q}"}), "end_message"));
  CHECK(contains(problem({.url = url, .field = ""}), "field"));
  CHECK(contains(problem({.url = url, .timeout = 0ms}), "timeout"));
  CHECK(contains(problem({.url = url, .retries = -1}), "retries"));
  CHECK(contains(problem({.url = url, .retry_delay = 0ms}), "retry_delay"));
  CHECK(contains(problem({.url = url, .end_timeout = 0ms}), "end_timeout"));
}

}  // namespace ext_notify_test
