#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "rondo/async/mailbox.hpp"
#include "rondo/async/scope.hpp"
#include "rondo/async/timer.hpp"
#include "support/abandon.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"

namespace async_scope_test {

using rondo::mailbox;
using rondo::scope;
using rondo::sleep_for;
using rondo::task;
using namespace std::chrono_literals;

TEST_CASE("children start in order from the event loop and join waits for all", "[async][scope]") {
  support::world w;
  std::vector<std::string> log;
  auto body = [&]() -> task<> {
    scope children(w.home());
    for (const std::string name : {"a", "b"}) {
      children.spawn([&log, name]() -> task<> {
        log.push_back(name + " starts");
        co_await support::turn();
        log.push_back(name + " ends");
      });
    }
    log.push_back("spawned");
    co_await children.join();
    log.push_back("joined");
    CHECK(children.size() == 0);
  };
  support::run(w, body);
  CHECK(log == std::vector<std::string>{"spawned", "a starts", "b starts", "a ends", "b ends", "joined"});
}

TEST_CASE("joining an empty scope completes at once", "[async][scope]") {
  support::world w;
  auto body = [&]() -> task<> {
    scope children(w.home());
    co_await children.join();
    co_await children.join();
  };
  CHECK_NOTHROW(support::run(w, body));
}

TEST_CASE("the first failure cancels the siblings and is what join throws", "[async][scope]") {
  support::world w;
  int cancelled = 0;
  mailbox<int> never;
  auto body = [&]() -> task<> {
    scope children(w.home());
    children.spawn([&]() -> task<> {
      try {
        co_await sleep_for(1h);
      } catch (const asio::system_error&) {
        ++cancelled;
        throw;
      }
    });
    children.spawn([&]() -> task<> {
      co_await never.next();
      ++cancelled;
      throw std::runtime_error("a failure while being cancelled comes second");
    });
    children.spawn([]() -> task<> {
      co_await support::turn();
      throw std::domain_error("first");
    });
    co_await children.join();
  };
  CHECK_THROWS_AS(support::run(w, body), std::domain_error);
  CHECK(cancelled == 2);
}

TEST_CASE("a failure that nobody has joined yet is kept for join", "[async][scope]") {
  support::world w;
  auto body = [&]() -> task<> {
    scope children(w.home());
    children.spawn([]() -> task<> {
      throw std::domain_error("early");
      co_return;
    });
    for (int i = 0; i < 5; ++i) co_await support::turn();
    CHECK(children.size() == 0);
    co_await children.join();
  };
  CHECK_THROWS_AS(support::run(w, body), std::domain_error);
}

TEST_CASE("operation_aborted counts as a failure unless the child was cancelled", "[async][scope]") {
  support::world w;
  auto uncancelled = [&]() -> task<> {
    scope children(w.home());
    children.spawn([]() -> task<> {
      std::rethrow_exception(rondo::operation_aborted());
      co_return;
    });
    co_await children.join();
  };
  CHECK_THROWS_AS(support::run(w, uncancelled), asio::system_error);

  w.loop.restart();
  auto cancelled = [&]() -> task<> {
    scope children(w.home());
    children.spawn([]() -> task<> { co_await sleep_for(1h); });
    co_await support::turn();
    co_await support::turn();
    children.cancel();
    co_await children.join();
  };
  CHECK_NOTHROW(support::run(w, cancelled));
}

TEST_CASE("a child of a cancelled scope never starts", "[async][scope]") {
  support::world w;
  bool started = false;
  auto body = [&]() -> task<> {
    scope children(w.home());
    children.spawn([&]() -> task<> {
      started = true;
      co_return;
    });
    children.cancel();
    children.spawn([&]() -> task<> {
      started = true;
      co_return;
    });
    co_await children.join();
    CHECK_FALSE(started);
    children.spawn([&]() -> task<> {
      started = true;
      co_return;
    });
    co_await children.join();
  };
  CHECK_NOTHROW(support::run(w, body));
  CHECK(started);
}

TEST_CASE("the scope keeps the captures of its children alive", "[async][scope]") {
  support::world w;
  std::string seen;
  auto body = [&]() -> task<> {
    scope children(w.home());
    {
      auto text = std::make_unique<std::string>("a string that is too long to be stored inside the object itself");
      children.spawn([&seen, text = std::move(text)]() -> task<> {
        co_await support::turn();
        co_await support::turn();
        seen = *text;
      });
    }
    co_await children.join();
  };
  support::run(w, body);
  CHECK(seen == "a string that is too long to be stored inside the object itself");
}

TEST_CASE("children may spawn siblings while the scope is being joined", "[async][scope]") {
  support::world w;
  int ran = 0;
  auto body = [&]() -> task<> {
    scope children(w.home());
    children.spawn([&]() -> task<> {
      co_await support::turn();
      children.spawn([&]() -> task<> {
        co_await support::turn();
        ++ran;
      });
      ++ran;
    });
    co_await children.join();
    CHECK(ran == 2);
  };
  support::run(w, body);
  CHECK(ran == 2);
}

TEST_CASE("a cancelled join cancels the children, waits for them and throws operation_aborted", "[async][scope]") {
  support::world w;
  std::vector<std::string> log;
  auto body = [&]() -> task<> {
    scope children(w.home());
    children.spawn([&]() -> task<> {
      mailbox<int> never;
      co_await never.next();
      log.push_back("child cleaned up");
    });
    try {
      co_await children.join();
    } catch (const asio::system_error&) {
      log.push_back("join aborted");
      throw;
    }
  };
  support::started root(w, body);
  w.loop.poll();
  root.cancel();
  root.cancel();
  w.loop.run();
  CHECK_THROWS_AS(root.rethrow(), asio::system_error);
  CHECK(log == std::vector<std::string>{"child cleaned up", "join aborted"});
}

TEST_CASE("a child may cancel its own scope", "[async][scope]") {
  support::world w;
  bool passed = false;
  auto body = [&]() -> task<> {
    scope children(w.home());
    children.spawn([&]() -> task<> {
      children.cancel();
      co_await support::turn();
      passed = true;
    });
    co_await children.join();
  };
  CHECK_NOTHROW(support::run(w, body));
  CHECK_FALSE(passed);
}

TEST_CASE("a child that is destroyed before it finished is a failure, not a hang", "[async][scope]") {
  support::world w;
  auto box = std::make_unique<mailbox<int>>();
  auto body = [&]() -> task<> {
    scope children(w.home());
    children.spawn([&]() -> task<> { co_await box->next(); });
    children.spawn([&]() -> task<> {
      co_await support::turn();
      box.reset();
    });
    co_await children.join();
  };
  CHECK_THROWS_AS(support::run(w, body), std::logic_error);
}

TEST_CASE("two coroutines cannot join one scope", "[async][scope]") {
  support::world w;
  bool refused = false;
  auto body = [&]() -> task<> {
    scope children(w.home());
    children.spawn([&]() -> task<> {
      try {
        co_await children.join();
      } catch (const std::logic_error&) {
        refused = true;
      }
    });
    co_await children.join();
  };
  CHECK_NOTHROW(support::run(w, body));
  CHECK(refused);
}

TEST_CASE("with_scope joins when the body throws, and throws the same", "[async][scope]") {
  support::world w;
  bool cleaned = false;
  auto body = [&]() -> task<> {
    auto inside = [&](scope& children) -> task<> {
      children.spawn([&]() -> task<> {
        mailbox<int> never;
        co_await never.next();
        cleaned = true;
      });
      co_await support::turn();
      co_await support::turn();
      throw std::domain_error("body");
    };
    co_await rondo::with_scope(inside);
  };
  CHECK_THROWS_AS(support::run(w, body), std::domain_error);
  CHECK(cleaned);
}

TEST_CASE("with_scope joins when its caller is cancelled while the body waits", "[async][scope]") {
  support::world w;
  bool cleaned = false;
  auto body = [&]() -> task<> {
    auto inside = [&](scope& children) -> task<> {
      children.spawn([&]() -> task<> {
        mailbox<int> never;
        co_await never.next();
        cleaned = true;
      });
      co_await sleep_for(1h);
    };
    co_await rondo::with_scope(inside);
  };
  support::started root(w, body);
  while (w.loop.poll() > 0) {
  }
  root.cancel();
  w.loop.run();
  CHECK(cleaned);
  CHECK_THROWS_AS(root.rethrow(), asio::system_error);
}

TEST_CASE("a failing child cancels the body of with_scope", "[async][scope]") {
  support::world w;
  auto body = [&]() -> task<> {
    auto inside = [&](scope& children) -> task<> {
      children.spawn([]() -> task<> {
        throw std::domain_error("child");
        co_return;
      });
      co_await sleep_for(1h);
    };
    co_await rondo::with_scope(inside);
  };
  CHECK_THROWS_AS(support::run(w, body), std::domain_error);
}

TEST_CASE("a scope with ten thousand children joins them all", "[async][scope]") {
  support::world w;
  int ran = 0;
  auto body = [&]() -> task<> {
    scope children(w.home());
    for (int i = 0; i < 10'000; ++i) {
      children.spawn([&]() -> task<> {
        co_await support::turn();
        ++ran;
      });
    }
    co_await children.join();
  };
  support::run(w, body);
  CHECK(ran == 10'000);
}

TEST_CASE("a scope that was not joined ends the program and says why", "[async][scope]" THREADS_AFTER_FORK) {
  int message[2];
  REQUIRE(::pipe(message) == 0);
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    ::dup2(message[1], 2);
    std::signal(SIGABRT, SIG_DFL);
    std::set_terminate([] { ::_exit(42); });
    support::world w;
    auto body = [&]() -> task<> {
      scope children(w.home());
      children.spawn([]() -> task<> { co_await sleep_for(1h); });
      co_await support::turn();
    };
    support::run(w, body);
    ::_exit(0);
  }
  ::close(message[1]);
  std::string said(1024, '\0');
  const auto size = ::read(message[0], said.data(), said.size());
  REQUIRE(size >= 0);
  said.resize(static_cast<std::size_t>(size));
  ::close(message[0]);
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFEXITED(status));
  CHECK(WEXITSTATUS(status) == 42);
  CHECK(said.find("without join()") != std::string::npos);
}

TEST_CASE("what fails after the first failure of a scope is logged", "[async][scope]") {
  support::world w;
  const rondo::testing::captured_stderr told;
  auto body = [&]() -> task<> {
    scope children(w.home());
    children.spawn([]() -> task<> {
      co_await support::turn();  // the other has begun
      throw std::runtime_error("the first");
    });
    children.spawn([]() -> task<> {
      try {
        co_await sleep_for(1h);
      } catch (...) {
      }
      throw std::runtime_error("the second");
    });
    co_await children.join();
  };
  CHECK_THROWS_WITH(support::run(w, body), "the first");
  CHECK(told.text().find("the second") != std::string::npos);
}

}  // namespace async_scope_test
