#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <future>
#include <iterator>
#include <latch>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/extensions/log_report.hpp"
#include "rondo/extensions/tensorboard_writer.hpp"
#include "rondo/report/event_file.hpp"
#include "support/bare_loop.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"
#include "support/python.hpp"
#include "support/temporary_directory.hpp"

namespace ext_tensorboard_test {

using namespace rondo;
using namespace rondo::literals;
using namespace rondo::testing;
using nlohmann::json;

namespace {

// A reader of event files that shares nothing with the writer. Prints every event of every file of a directory, and
// what either loader of TensorBoard makes of them: the one that heeds START, and the one that drops, tag by tag, what
// is not before a new point.
const std::string reader = R"PY(
import glob, json, math, os, shutil, struct, subprocess, sys

TABLE = []
for i in range(256):
    for _ in range(8):
        i = (i >> 1) ^ (0x82F63B78 if i & 1 else 0)
    TABLE.append(i)

def crc32c(data):
    crc = 0xFFFFFFFF
    for b in data:
        crc = TABLE[(crc ^ b) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF

assert crc32c(b"123456789") == 0xE3069283

def check(data, expected):
    crc = crc32c(data)
    assert ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF == expected, "checksum"

def records(data):
    at = 0
    while at < len(data):
        length, crc = struct.unpack_from("<QI", data, at)
        check(data[at:at + 8], crc)
        body = data[at + 12:at + 12 + length]
        assert len(body) == length, "torn record"
        check(body, struct.unpack_from("<I", data, at + 12 + length)[0])
        yield body
        at += 16 + length

def varint(data, at):
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return value, at

def fields(data):
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(data, at)
        else:
            if kind == 2:
                size, at = varint(data, at)
            else:
                size = {1: 8, 5: 4}[kind]
            value, at = data[at:at + size], at + size
            assert len(value) == size
        yield key >> 3, kind, value

def number(raw):
    value = struct.unpack("<f", raw)[0]
    return value if math.isfinite(value) else str(value)

def scalar(data):
    (a, b) = sorted(fields(data))
    assert a[:2] == (1, 2) and b[:2] == (2, 5), (a, b)
    return [a[2].decode("utf-8"), number(b[2])]

def event(data):
    out = {}
    for field, kind, value in fields(data):
        if (field, kind) == (1, 1): out["wall_time"] = struct.unpack("<d", value)[0]
        elif (field, kind) == (2, 0): out["step"] = value
        elif (field, kind) == (3, 2): out["file_version"] = value.decode()
        elif (field, kind) == (5, 2):
            summary = list(fields(value))
            assert all(f[:2] == (1, 2) for f in summary)
            out["values"] = [scalar(f[2]) for f in summary]
        elif (field, kind) == (7, 2): out["session_log"] = [list(f) for f in fields(value)]
        else: raise ValueError((field, kind))
    return out

SCHEMA = """syntax = "proto3";
message Value { string tag = 1; float simple_value = 2; }
message Summary { repeated Value value = 1; }
message SessionLog { int32 status = 1; }
message Event { double wall_time = 1; int64 step = 2; oneof what { string file_version = 3; Summary summary = 5;
  SessionLog session_log = 7; } }
"""

def judged_by_protoc(data, schema):
    command = ["protoc", "--proto_path=" + os.path.dirname(schema), "--decode=Event", schema]
    done = subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True)
    text = done.stdout.decode()
    assert not any(line.strip()[:1].isdigit() for line in text.splitlines()), "unknown fields: " + text
    return text

def main(directory):
    out = {"files": [], "heeding_start": {}, "by_tag": {}, "protoc": 0, "tensorboard": 0}
    schema = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "event.proto")
    open(schema, "w").write(SCHEMA)
    for path in sorted(glob.glob(glob.escape(directory) + "/*tfevents*")):
        events = []
        for body in records(open(path, "rb").read()):
            events.append(event(body))
            if shutil.which("protoc"):
                text = judged_by_protoc(body, schema)
                values = [line for line in text.splitlines() if line.strip() == "value {"]
                assert len(values) == len(events[-1].get("values", [])), text
                out["protoc"] += 1
        out["files"].append({"name": os.path.basename(path), "events": events})
        try:
            from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        except ImportError:
            pass
        else:
            theirs = list(EventFileLoader(path).Load())
            assert [e.step for e in theirs] == [e["step"] for e in events]
            out["tensorboard"] += 1
    for e in (e for f in out["files"] for e in f["events"]):
        if e.get("session_log") == [[1, 0, 1]]:
            for tag, points in out["heeding_start"].items():
                out["heeding_start"][tag] = [p for p in points if p[0] < e["step"]]
        for tag, value in e.get("values", []):
            out["heeding_start"].setdefault(tag, []).append([e["step"], value])
            before = [p for p in out["by_tag"].get(tag, []) if p[0] < e["step"]]
            out["by_tag"][tag] = before + [[e["step"], value]]
    print(json.dumps(out))

main(sys.argv[1])
)PY";

json read(const std::filesystem::path& directory) {
  const auto result = run_python(reader, {directory.string()});
  INFO(result.output);
  REQUIRE(result.status == 0);
  return json::parse(result.output);
}

/// The points as a loader of TensorBoard shows them, without the time that training took.
json shown(const json& everything, const char* loader) {
  json points = everything.at(loader);
  points.erase("elapsed_time");
  return points;
}

std::string content(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::size_t files_in(const std::filesystem::path& directory) {
  return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(directory), {}));
}

const auto report_loss = [](context& ctx, int i) { ctx.report("train/loss", 1.0 / (1 + i)); };

/// While it lives, no file can become longer than `bytes`.
class file_size_limit {
 public:
  explicit file_size_limit(rlim_t bytes) : handler_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~file_size_limit() {
    ::setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }
  file_size_limit(const file_size_limit&) = delete;
  file_size_limit& operator=(const file_size_limit&) = delete;

 private:
  void (*handler_)(int);
  rlimit before_{};
};

}  // namespace

TEST_CASE("event files: version, start, scalars, framing and checksums", "[report][event_file]") {
  temporary_directory dir;
  const auto long_tag = "long/" + std::string(300, 'x');
  std::vector<event_file::scalar> values;
  values.emplace_back("train/loss", 0.1);
  values.emplace_back("größe", -2.5);
  values.emplace_back("", 0.0);
  values.emplace_back(long_tag, 1e-40);
  event_file file(dir / "a" / "b", 301);
  file.write(301, values);
  file.write(302, {});
  file.write((std::int64_t{1} << 40) + 5, std::span(values).first(1));

  const auto all = read(dir / "a" / "b");
  REQUIRE(all["files"].size() == 1);
  CHECK(all["files"][0]["name"] == file.path().filename().string());
  const auto& events = all["files"][0]["events"];
  REQUIRE(events.size() == 4);
  CHECK(events[0]["file_version"] == "brain.Event:2");
  CHECK(events[0]["step"] == 0);
  CHECK(events[1]["session_log"] == json::parse("[[1, 0, 1]]"));
  CHECK(events[1]["step"] == 301);
  CHECK(events[2]["step"] == 301);
  REQUIRE(events[2]["values"].size() == 4);
  for (std::size_t i = 0; i < values.size(); ++i) {
    CHECK(events[2]["values"][i][0] == values[i].first);
    CHECK(events[2]["values"][i][1] == static_cast<double>(static_cast<float>(values[i].second)));
  }
  CHECK(events[3]["step"] == (std::int64_t{1} << 40) + 5);
  const auto now = std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  double before = now - 600;
  for (const auto& event : events) {
    const double time = event["wall_time"];
    CHECK(time >= before);
    CHECK(time <= now);
    before = time;
  }
}

TEST_CASE("event files: numbers that are none, too large for a float, and names that are not UTF-8",
          "[report][event_file]") {
  temporary_directory dir;
  constexpr double infinity = std::numeric_limits<double>::infinity();
  const std::vector<event_file::scalar> values{
      {"nan", std::nan("")}, {"inf", infinity}, {"-inf", -infinity}, {"large", -1e300}, {"bad \xff\xc3 name", 1}};
  event_file(dir.path(), 1).write(1, values);
  const auto all = read(dir.path());
  CHECK(all["files"][0]["events"][2]["values"] ==
        json::parse(R"([["nan","nan"],["inf","inf"],["-inf","-inf"],["large","-inf"],["bad \ufffd\ufffd name",1.0]])"));
}

TEST_CASE("event files: a new one comes after all that are there", "[report][event_file]") {
  temporary_directory dir;
  std::ofstream(dir / "elsewhere") << "precious";
  std::ofstream(dir / "events.out.tfevents.99999999999.more.digits") << "";
  std::ofstream(dir / "events.out.tfevents.abc") << "";
  std::filesystem::create_symlink(dir / "elsewhere", dir / "events.out.tfevents.4000000000.link");
  REQUIRE(::mkfifo((dir / "events.out.tfevents.4000000007.fifo").c_str(), 0600) == 0);
  const event_file first(dir.path(), 1);
  const event_file second(dir.path(), 1);
  CHECK(first.path().filename().string().starts_with("events.out.tfevents.4000000008."));
  CHECK(second.path().filename().string().starts_with("events.out.tfevents.4000000009."));
  CHECK(first.path().filename().string().ends_with("." + std::to_string(::getpid()) + ".rondo"));
  CHECK(content(dir / "elsewhere") == "precious");
}

TEST_CASE("event files: several made at once are all there, each whole", "[report][event_file]") {
  temporary_directory dir;
  constexpr std::size_t threads = 4;
  std::latch all_there(threads);
  std::vector<std::future<std::vector<std::filesystem::path>>> made;
  for (std::size_t i = 0; i < threads; ++i)
    made.push_back(std::async(std::launch::async, [&] {
      std::vector<std::filesystem::path> mine;
      all_there.arrive_and_wait();
      for (int n = 0; n < 25; ++n) {
        event_file file(dir.path(), 1);
        file.write(1, std::vector<event_file::scalar>{{"x", 1}});
        mine.push_back(file.path());
      }
      return mine;
    }));
  std::set<std::filesystem::path> paths;
  for (auto& one : made)
    for (auto& path : one.get()) paths.insert(std::move(path));
  CHECK(paths.size() == threads * 25);
  const auto all = read(dir.path());
  REQUIRE(all["files"].size() == paths.size());
  for (const auto& file : all["files"]) CHECK(file["events"].size() == 3);
}

TEST_CASE("event files: a write that fails leaves whole records behind", "[report][event_file]") {
  temporary_directory dir;
  const std::vector<event_file::scalar> values{{"x", 1}};
  event_file file(dir / "events", 1);
  file.write(1, values);
  const auto size = std::filesystem::file_size(file.path());
  {
    const file_size_limit limit(size + 10);
    try {
      file.write(2, values);
      FAIL("no error");
    } catch (const io_error& e) {
      CHECK(e.path() == file.path());
      CHECK(e.code() == std::errc::file_too_large);
      CHECK(contains(e.what(), "ulimit"));
    }
  }
  CHECK(std::filesystem::file_size(file.path()) == size);
  file.write(3, values);
  CHECK(read(dir / "events")["heeding_start"]["x"] == json::parse("[[1, 1.0], [3, 1.0]]"));
}

TEST_CASE("event files: one that cannot be begun is not left behind", "[report][event_file]") {
  temporary_directory dir;
  {
    const file_size_limit limit(10);
    CHECK_THROWS_AS(event_file(dir.path(), 1), io_error);
  }
  CHECK(files_in(dir.path()) == 0);
}

TEST_CASE("event files: what is in the way is an error with its path", "[report][event_file]") {
  temporary_directory dir;
  std::filesystem::path directory = dir / "runs";
  SECTION("a FIFO") { REQUIRE(::mkfifo(directory.c_str(), 0600) == 0); }
  SECTION("a file") { std::ofstream(directory) << "precious"; }
  SECTION("a file further up") {
    std::ofstream(directory) << "precious";
    directory /= "a";
  }
  SECTION("a directory that nobody may write to") { directory = "/proc/self"; }
  try {
    const event_file file(directory, 1);
    FAIL("no error");
  } catch (const io_error& e) {
    CHECK(e.path().string().starts_with(directory.string()));
  }
}

TEST_CASE("writers::tensorboard: the numbers of a log, by iteration", "[extensions][tensorboard]") {
  temporary_directory dir;
  auto l = bare_loop(2,
                     [](context& ctx, int i) {
                       ctx.report("train/loss", i + 1);
                       ctx.report("nan", std::nan(""));
                     },
                     {.max_epochs = 2, .out = dir.path()});
  l | log_report({.postprocess =
                      [](state::dict& entry) {
                        entry.insert_or_assign("twice", 2 * entry.at("train/loss").number());
                        entry.insert_or_assign("note", "text");
                        entry.insert_or_assign("flag", true);
                        entry.insert_or_assign("list", state::list{1, 2});
                      },
                  .writer = writers::tensorboard()});
  l.run();
  const auto all = read(dir / "tensorboard");
  REQUIRE(all["files"].size() == 1);
  const auto& events = all["files"][0]["events"];
  REQUIRE(events.size() == 4);
  CHECK(events[1]["step"] == 1);
  for (const std::size_t i : {2, 3}) {
    const auto epoch = static_cast<int>(i) - 1;
    CHECK(events[i]["step"] == 2 * epoch);
    const auto& values = events[i]["values"];
    REQUIRE(values.size() == 5);
    CHECK(values[0] == json({"train/loss", 1.5}));
    CHECK(values[1] == json({"nan", "nan"}));
    CHECK(values[2] == json({"epoch", static_cast<double>(epoch)}));
    CHECK(values[3][0] == "elapsed_time");
    CHECK(values[4] == json({"twice", 3.0}));
  }
  CHECK(std::filesystem::file_size(dir / "log") > 0);
}

TEST_CASE("writers::tensorboard: relative directories are inside out, absolute ones are not",
          "[extensions][tensorboard]") {
  temporary_directory out;
  temporary_directory elsewhere;
  auto l = bare_loop(1, report_loss, {.max_epochs = 1, .out = out.path()});
  SECTION("relative") {
    l | log_report({.writer = writers::tensorboard("runs/first")});
    l.run();
    CHECK(files_in(out / "runs" / "first") == 1);
  }
  SECTION("absolute") {
    l | log_report({.writer = writers::tensorboard(elsewhere / "runs")});
    l.run();
    CHECK(files_in(elsewhere / "runs") == 1);
  }
}

TEST_CASE("writers::tensorboard: logs of a loop may share one", "[extensions][tensorboard]") {
  temporary_directory dir;
  const auto writer = writers::tensorboard();
  auto l = bare_loop(2, report_loss, {.max_epochs = 2, .out = dir.path()});
  l | log_report({.writer = writer}) |
      log_report({.filename = "steps", .trigger = every(1_iterations), .keys = {"train/loss"}, .writer = writer})
          .named("steps");
  l.run();
  const auto all = read(dir / "tensorboard");
  REQUIRE(all["files"].size() == 1);
  CHECK(all["files"][0]["events"].size() == 2 + 2 + 4);
  CHECK(shown(all, "by_tag")["train/loss"].size() == 4);
}

namespace {

loop logging_loop(const std::filesystem::path& out, std::int64_t iterations) {
  auto l = bare_loop(5,
                     [](context& ctx, int i) {
                       ctx.report("always", std::sin(static_cast<double>(ctx.iteration()) * 1.7));
                       if (i == 3) ctx.report("every 5th", ctx.iteration());
                     },
                     {.max_iterations = iterations, .out = out});
  l | log_report({.trigger = every(3_iterations) || every(1_epochs), .writer = writers::tensorboard()});
  return l;
}

json unbroken(std::int64_t iterations) {
  temporary_directory dir;
  logging_loop(dir.path(), iterations).run();
  const auto all = read(dir / "tensorboard");
  CHECK(shown(all, "by_tag") == shown(all, "heeding_start"));
  return shown(all, "heeding_start");
}

}  // namespace

TEST_CASE("writers::tensorboard: what a killed and resumed run shows is what the unbroken one shows",
          "[extensions][tensorboard]") {
  const auto expected = unbroken(14);
  REQUIRE(expected["always"].size() == 6);
  for (const std::int64_t k : {1, 5, 7, 9}) {
    for (const std::int64_t beyond : {0, 1, 4}) {  // iterations after the snapshot, which are lost
      CAPTURE(k, beyond);
      temporary_directory dir;
      std::optional<state::value> kept;
      auto killed = logging_loop(dir.path(), k + beyond);
      killed | keep_state(k, kept);
      killed.run();
      REQUIRE(kept);
      auto resumed = logging_loop(dir.path(), 14);
      resumed | restore_state(*kept);
      resumed.run();
      const auto all = read(dir / "tensorboard");
      REQUIRE(all["files"].size() == 2);
      CHECK(all["files"][1]["events"][1]["step"] == k + 1);
      CHECK(shown(all, "heeding_start") == expected);
      CHECK(shown(all, "by_tag") == expected);
    }
  }
}

TEST_CASE("writers::tensorboard: points of a lost run that do not come again are gone", "[extensions][tensorboard]") {
  temporary_directory dir;
  std::optional<state::value> kept;
  auto killed = logging_loop(dir.path(), 14);
  killed | keep_state(4, kept);
  killed.run();
  auto resumed = logging_loop(dir.path(), 6);
  resumed | restore_state(*kept);
  resumed.run();
  CHECK(shown(read(dir / "tensorboard"), "heeding_start") == unbroken(6));
}

TEST_CASE("writers::tensorboard: a run that starts afresh takes the place of those before it",
          "[extensions][tensorboard]") {
  temporary_directory dir;
  logging_loop(dir.path(), 14).run();
  logging_loop(dir.path(), 6).run();
  const auto all = read(dir / "tensorboard");
  CHECK(all["files"].size() == 2);
  CHECK(shown(all, "heeding_start") == unbroken(6));
}

TEST_CASE("writers::tensorboard fails before training when there can be no file", "[extensions][tensorboard]") {
  temporary_directory dir;
  int steps = 0;
  auto l = bare_loop(1, [&](context&, int) { ++steps; }, {.max_epochs = 1, .out = dir.path()});
  std::ofstream(dir / "log") << "{\"old\":1}\n";
  REQUIRE(::mkfifo((dir / "tensorboard").c_str(), 0600) == 0);
  l | log_report({.writer = writers::tensorboard()});
  CHECK(contains(message_of<io_error>([&] { l.run(); }), (dir / "tensorboard").string()));
  CHECK(steps == 0);
  CHECK(content(dir / "log") == "{\"old\":1}\n");
}

TEST_CASE("writers::tensorboard: an entry that cannot be written ends training", "[extensions][tensorboard]") {
  temporary_directory dir;
  int steps = 0;
  std::optional<file_size_limit> limit;
  auto l = bare_loop(1,
                     [&](context&, int) {
                       if (++steps == 2) limit.emplace(std::filesystem::file_size(dir / "log") + 500);
                     },
                     {.max_epochs = 4, .out = dir.path()});
  // Small numbers are shorter in JSON, so it is the event file that comes to the limit.
  l | log_report({.postprocess =
                      [&](state::dict& entry) {
                        for (int i = 0; i < 40; ++i) entry.insert_or_assign(std::to_string(i), 1);
                      },
                  .writer = writers::tensorboard()});
  CHECK(contains(message_of<io_error>([&] { l.run(); }), (dir / "tensorboard").string()));
  limit.reset();
  CHECK(steps == 2);
  CHECK(read(dir / "tensorboard")["by_tag"]["epoch"] == json::parse("[[1, 1.0]]"));
}

namespace {

class recording_writer final : public report_writer {
 public:
  explicit recording_writer(std::vector<std::string>& calls, int fail_at = 0) : calls_(calls), fail_at_(fail_at) {}
  void begin(const std::filesystem::path& out, std::int64_t iteration) override {
    calls_.push_back("begin " + out.filename().string() + " " + std::to_string(iteration));
  }
  void write(std::int64_t iteration, const numbers& values) override {
    if (iteration == fail_at_) throw std::runtime_error("the network is down");
    std::string call = "write " + std::to_string(iteration);
    for (const auto& [name, number] : values)
      if (name != "elapsed_time") call += " " + name + "=" + std::to_string(static_cast<int>(number));
    calls_.push_back(call);
  }
  void end() override { calls_.emplace_back("end"); }

 private:
  std::vector<std::string>& calls_;
  int fail_at_;
};

}  // namespace

TEST_CASE("log_report: a writer of one's own", "[extensions][log_report]") {
  temporary_directory dir;
  std::vector<std::string> calls;
  auto l = bare_loop(1, [](context& ctx, int) { ctx.report("x", 7); }, {.max_epochs = 2, .out = dir / "out"});
  using strings = std::vector<std::string>;
  SECTION("begin, every entry, end") {
    l | log_report({.writer = std::make_shared<recording_writer>(calls)});
    l.run();
    CHECK(calls == strings{"begin out 0", "write 1 x=7 epoch=1", "write 2 x=7 epoch=2", "end"});
  }
  SECTION("its error ends training, after end") {
    l | log_report({.writer = std::make_shared<recording_writer>(calls, 2)});
    CHECK(message_of<std::runtime_error>([&] { l.run(); }) == "the network is down");
    CHECK(calls == strings{"begin out 0", "write 1 x=7 epoch=1", "end"});
  }
  SECTION("no end without a begin") {
    std::filesystem::create_directories(dir / "out" / "log");
    l | log_report({.writer = std::make_shared<recording_writer>(calls)});
    CHECK_THROWS_AS(l.run(), io_error);
    CHECK(calls.empty());
  }
}

}  // namespace ext_tensorboard_test
