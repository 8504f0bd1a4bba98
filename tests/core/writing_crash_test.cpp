// Power loss at every moment of several saves with retention, in every state that the disk may then be in. The same
// checker must condemn protocols that leave a step out, or it proves nothing.
#include <algorithm>
#include <functional>
#include <optional>

#include "rondo/writing/atomic_file.hpp"
#include "rondo/writing/memory_file_system.hpp"
#include "support/writing.hpp"

namespace writing_crash_test {

using namespace rondo;
using namespace rondo::testing;
using writing::memory_file_system;

namespace {

constexpr std::size_t saves = 6;
constexpr std::size_t retained = 2;
constexpr std::size_t states_per_moment = 600;

struct verdict {
  std::size_t states = 0;
  std::size_t lost = 0;
  std::size_t torn = 0;
};

writing::path name_of(std::size_t number) { return "/out/snapshot_" + std::to_string(number); }
bytes content_of(std::size_t number) { return pattern(3000 + number, number); }

using save_function = std::function<void(memory_file_system&, const writing::path&, const bytes&)>;

// How a run of saves is done: where each goes, how it is written, and whether old ones are deleted too early.
struct protocol {
  save_function save;
  bool delete_first = false;
  bool one_name = false;
};

// Runs the saves and judges every state after a crash before each operation and at the end.
verdict judge(const protocol& how) {
  memory_file_system files;
  writing::create_directories(files, "/out");
  std::size_t acknowledged = 0;
  verdict result;
  std::uint64_t seed = 0;

  const auto target = [&](std::size_t number) {
    return how.one_name ? writing::path("/out/snapshot") : name_of(number);
  };
  const auto check = [&](memory_file_system& state) {
    ++result.states;
    std::size_t newest = 0;
    bool torn = false;
    for (const auto& entry : state.list("/out")) {
      if (entry.name.front() == '.') continue;
      const auto content = state.read(writing::path("/out") / entry.name);
      bool whole = false;
      for (std::size_t number = 1; number <= saves; ++number) {
        const bool is_this = target(number).filename() == entry.name && content == content_of(number);
        if (is_this) newest = std::max(newest, number);
        whole = whole || is_this;
      }
      torn = torn || !whole;
    }
    if (torn) ++result.torn;
    if (newest < acknowledged) ++result.lost;
  };
  const auto crash_now = [&] { files.for_each_crash_state(check, states_per_moment, ++seed); };
  const auto delete_old = [&](std::size_t number) {
    if (number > retained && !how.one_name) files.remove(name_of(number - retained));
  };

  files.observe([&](writing::operation, const writing::path&) { crash_now(); });
  for (std::size_t number = 1; number <= saves; ++number) {
    if (how.delete_first && number > 1) files.remove(name_of(number - 1));
    how.save(files, target(number), content_of(number));
    acknowledged = number;
    if (!how.delete_first) delete_old(number);
  }
  files.observe(nullptr);
  crash_now();
  return result;
}

void correctly(memory_file_system& files, const writing::path& target, const bytes& content) {
  writing::write_atomically(files, target, content.size(), in_pieces(content, 1000));
}

// The steps of write_atomically, some of them left out.
save_function without(bool sync, bool sync_directory) {
  return [=](memory_file_system& files, const writing::path& target, const bytes& content) {
    const auto temporary = target.parent_path() / ("." + target.filename().string());
    const auto file = files.create(temporary, content.size());
    file->append(content);
    if (sync) file->sync();
    file->close();
    files.rename(temporary, target);
    if (sync_directory) files.sync_directory(target.parent_path());
  };
}

void in_place(memory_file_system& files, const writing::path& target, const bytes& content) {
  files.remove(target);
  const auto file = files.create(target, content.size());
  file->append(content);
  file->sync();
  file->close();
  files.sync_directory(target.parent_path());
}

}  // namespace

TEST_CASE("ppe defect 6: no power loss loses an acknowledged file or tears one", "[writing][crash][ppe]") {
  for (const bool one_name : {false, true}) {
    const auto found = judge({correctly, false, one_name});
    INFO(found.states << " states");
    CHECK(found.states > 200);
    CHECK(found.lost == 0);
    CHECK(found.torn == 0);
  }
}

TEST_CASE("the checker sees every step that is left out", "[writing][crash][control]") {
  CHECK(judge({without(false, true)}).torn > 0);
  CHECK(judge({without(false, true)}).lost > 0);
  CHECK(judge({without(true, false)}).lost > 0);
  CHECK(judge({in_place}).torn > 0);
  CHECK(judge({in_place, false, true}).lost > 0);
  CHECK(judge({correctly, true}).lost > 0);
  // The control of the controls: with both steps in, the same code is innocent.
  const auto complete = judge({without(true, true)});
  CHECK(complete.lost == 0);
  CHECK(complete.torn == 0);
}

TEST_CASE("a crash during recovery from a crash is harmless", "[writing][crash]") {
  memory_file_system files;
  save(files, "/target", content_of(1));
  std::size_t second_crashes = 0;
  files.observe([&](writing::operation, const writing::path&) {
    files.for_each_crash_state(
        [&](memory_file_system& recovered) {
          recovered.observe([&](writing::operation, const writing::path&) {
            recovered.for_each_crash_state(
                [&](memory_file_system& again) {
                  ++second_crashes;
                  const auto content = again.read("/target");
                  REQUIRE((content == content_of(1) || content == content_of(2) || content == content_of(3)));
                },
                500);
          });
          writing::remove_stale_temporaries(recovered, "/");
          save(recovered, "/target", content_of(3));
          recovered.observe(nullptr);
          REQUIRE(recovered.read("/target") == content_of(3));
        },
        300);
  });
  save(files, "/target", content_of(2));
  CHECK(second_crashes > 400);
}

}  // namespace writing_crash_test
