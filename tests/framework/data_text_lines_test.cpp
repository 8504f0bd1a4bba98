#include "rondo/data/text_lines.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "rondo/data/batch.hpp"
#include "rondo/data/pass.hpp"
#include "rondo/data/prefetch.hpp"
#include "rondo/data/shuffle.hpp"
#include "rondo/data/transform.hpp"
#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/idx_files.hpp"
#include "support/messages.hpp"
#include "support/temporary_directory.hpp"

namespace data_text_lines_test {

using namespace rondo;
using namespace rondo::testing;
using test::write_gzip;
using test::write_plain;

namespace {

using strings = std::vector<std::string>;

template <class Range>
strings read(Range&& lines) {
  strings all;
  for (auto&& line : lines) all.push_back(line);
  return all;
}

strings read_stream(const std::filesystem::path& path) { return read(data::text_lines(path)); }

/// The definition, in the plainest way.
strings split(const std::string& bytes) {
  strings lines;
  std::string line;
  for (const char c : bytes) {
    line += c;
    if (c != '\n') continue;
    line.pop_back();
    if (!line.empty() && line.back() == '\r') line.pop_back();
    lines.push_back(std::exchange(line, ""));
  }
  if (!line.empty()) lines.push_back(line);
  return lines;
}

/// Few kinds of bytes, so that line ends of both kinds and empty lines are frequent.
std::string random_text(std::mt19937& random, std::size_t size) {
  constexpr std::string_view bytes("ab\r\n\n\0\xff", 7);
  std::string text;
  while (text.size() < size) text += bytes[random() % bytes.size()];
  return text;
}

/// How many bytes this process has read from files.
std::int64_t bytes_read() {
  std::ifstream in("/proc/self/io");
  std::string name;
  std::int64_t count = -1;
  in >> name >> count;
  return name == "rchar:" ? count : -1;
}

}  // namespace

TEST_CASE("lines end with \\n or \\r\\n, or with the file", "[data][text]") {
  using namespace std::string_literals;
  const temporary_directory folder;
  const std::vector<std::pair<std::string, strings>> cases = {
      {"", {}},
      {"\n", {""}},
      {"\r\n", {""}},
      {"one", {"one"}},
      {"one\n", {"one"}},
      {"one\r\ntwo\n\nfour", {"one", "two", "", "four"}},
      {"a\rb\r\r\n", {"a\rb\r"}},
      {"end\r", {"end\r"}},
      {"a\0b\n\xff\xfe"s, {"a\0b"s, "\xff\xfe"}},
  };
  for (const auto& [bytes, expected] : cases) {
    CAPTURE(bytes);
    REQUIRE(split(bytes) == expected);
    write_plain(folder / "file", bytes);
    write_gzip(folder / "packed", bytes);
    CHECK(read_stream(folder / "file") == expected);
    CHECK(read_stream(folder / "packed") == expected);
    CHECK(read(data::text_file(folder / "file")) == expected);
  }
}

TEST_CASE("lines of every length are whole, also across the reader's buffer", "[data][text]") {
  const temporary_directory folder;
  std::string bytes;
  for (const std::size_t length : {131070, 0, 131071, 131072, 1, 131073, 400000, 7})
    bytes += std::string(length, static_cast<char>('a' + length % 26)) + (length % 2 == 0 ? "\n" : "\r\n");
  bytes += std::string(262144, 'z');
  write_plain(folder / "file", bytes);
  write_gzip(folder / "packed", bytes);
  const auto expected = split(bytes);
  REQUIRE(expected.size() == 9);
  REQUIRE(read_stream(folder / "file") == expected);
  REQUIRE(read_stream(folder / "packed") == expected);
  REQUIRE(read(data::text_file(folder / "file")) == expected);
}

TEST_CASE("random bytes give the lines of the definition", "[data][text]") {
  const temporary_directory folder;
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) {
    const auto bytes = random_text(random, random() % 200);
    write_plain(folder / "file", bytes);
    CAPTURE(i);
    REQUIRE(read_stream(folder / "file") == split(bytes));
    REQUIRE(read(data::text_file(folder / "file")) == split(bytes));
  }
}

TEST_CASE("a stream is taken up again at any line, once", "[data][text]") {
  const temporary_directory folder;
  std::mt19937 random(2);
  const auto bytes = random_text(random, 300000) + "end";
  write_plain(folder / "plain", bytes);
  write_gzip(folder / "packed", bytes);
  for (const auto* name : {"plain", "packed"}) {
    data::text_lines lines(folder / name);
    strings all;
    std::vector<std::int64_t> positions;
    for (auto it = lines.begin(); it != lines.end(); ++it) {
      positions.push_back(lines.tell());
      all.push_back(*it);
    }
    REQUIRE(all == split(bytes));
    REQUIRE(positions.front() == 0);
    for (std::size_t i = 0; i < all.size(); i += 1 + all.size() / 7) {
      CAPTURE(name, i);
      data::text_lines fresh(folder / name);
      fresh.seek(positions[i]);
      REQUIRE(*fresh.begin() == all[i]);
      REQUIRE(fresh.tell() == positions[i]);
      REQUIRE(read(fresh) == all);  // the next pass is a whole one
      fresh.seek(positions[i]);
      REQUIRE(read(fresh) == strings(all.begin() + static_cast<std::ptrdiff_t>(i), all.end()));
    }
  }
}

TEST_CASE("going on in the middle of a plain file reads nothing of what is before", "[data][text]") {
  const temporary_directory folder;
  const auto path = folder / "file";
  write_plain(path, "");
  constexpr std::int64_t begin = std::int64_t{1} << 33;  // a hole of 8 GiB, which takes no space
  std::filesystem::resize_file(path, begin - 1);
  std::ofstream(path, std::ios::app) << "\nlast line\n";
  data::text_lines lines(path);
  lines.seek(begin);
  const auto before = bytes_read();
  REQUIRE(read(lines) == strings{"last line"});
  REQUIRE(bytes_read() - before < 1 << 20);
}

TEST_CASE("a copy of a stream begins anew", "[data][text]") {
  const temporary_directory folder;
  write_plain(folder / "file", "a\nb\nc\n");
  data::text_lines lines(folder / "file");
  auto it = lines.begin();
  ++it;
  auto copy = lines;
  REQUIRE(read(copy) == strings{"a", "b", "c"});
  REQUIRE(*it == "b");
  ++it;
  REQUIRE(*it == "c");
}

TEST_CASE("streams of lines are read in pipelines, and resumed in them", "[data][text]") {
  const temporary_directory folder;
  std::string bytes;
  for (int i = 0; i < 100; ++i) bytes += std::to_string(i) + "\n";
  write_plain(folder / "file", bytes);
  const auto pipeline = [&] {
    return data::text_lines(folder / "file") |
           data::transform([](const std::string& line) { return std::stoi(line); }) | data::batch(7);
  };
  std::vector<std::vector<int>> all;
  for (auto&& batch : pipeline()) all.push_back(batch);
  REQUIRE(all.size() == 15);
  REQUIRE(all.back() == std::vector<int>{98, 99});

  const auto check = [&](auto make) {
    data::pass whole(make());
    whole.begin(0);
    for (std::size_t i = 0; !whole.exhausted(); whole.advance(), ++i) {
      data::pass resumed(make());
      resumed.load_state_dict(whole.state_dict());
      REQUIRE(resumed.position() == static_cast<std::int64_t>(i));
      for (std::size_t k = i; k < all.size(); ++k, resumed.advance()) {
        REQUIRE_FALSE(resumed.exhausted());
        REQUIRE(resumed.take() == all[k]);
      }
      REQUIRE(resumed.exhausted());
      REQUIRE(whole.take() == all[i]);
    }
    REQUIRE(whole.position() == 15);
  };
  SECTION("read when they are needed") { check(pipeline); }
  SECTION("prefetched") {
    check([&] { return pipeline() | data::prefetch(3); });
  }
}

TEST_CASE("a line that is too long is refused with its number", "[data][text]") {
  const temporary_directory folder;
  const auto path = folder / "file";
  write_plain(path, "one\ntwo\n" + std::string(30, 'x') + "\nfour\n");
  const data::text_options options{.max_line = 30};
  auto lines = data::text_lines(path, options);
  auto it = lines.begin();
  ++it;
  try {
    ++it;
    FAIL("read " << *it);
  } catch (const format_error& e) {
    REQUIRE(e.where() == path.string() + ", line 3");
    REQUIRE(e.offset() == 8);
    REQUIRE(contains(e.what(), "'max_line'"));
  }
  REQUIRE(it == lines.end());
  REQUIRE_THROWS_AS(data::text_file(path, options), format_error);
  REQUIRE(read(data::text_lines(path, {.max_line = 31})).size() == 4);
  REQUIRE(read(data::text_file(path, {.max_line = 31})).size() == 4);
  SECTION("so a file without lines needs little memory") {
    std::filesystem::resize_file(path, std::uintmax_t{1} << 33);
    const auto before = bytes_read();
    const auto message = message_of<format_error>([&] { read_stream(path); });
    REQUIRE(contains(message, "line 5"));
    REQUIRE(bytes_read() - before < 64 << 20);
  }
}

TEST_CASE("a line must be allowed to have a byte", "[data][text]") {
  const temporary_directory folder;
  write_plain(folder / "file", "a");
  REQUIRE_THROWS_AS(data::text_lines(folder / "file", {.max_line = 0}), option_error);
  REQUIRE_THROWS_AS(data::text_file(folder / "file", {.max_line = -1}), option_error);
}

TEST_CASE("a gzip file that is damaged or cut off gives its first lines and an error", "[data][text]") {
  const temporary_directory folder;
  std::string bytes;
  std::mt19937 random(3);
  for (int i = 0; i < 60000; ++i) bytes += std::to_string(random()) + "\n";
  write_gzip(folder / "packed", bytes);
  auto packed = test::read_plain(folder / "packed");
  SECTION("cut off") {
    packed.resize(packed.size() - 5);
    write_plain(folder / "packed", packed);
  }
  SECTION("damaged") {
    packed[packed.size() - 6] = static_cast<char>(packed[packed.size() - 6] ^ 1);  // in the checksum at the end
    write_plain(folder / "packed", packed);
  }
  std::size_t lines = 0;
  const auto message = message_of<format_error>([&] {
    for (auto&& line : data::text_lines(folder / "packed")) lines += line.empty() ? 0 : 1;
  });
  CAPTURE(message);
  REQUIRE(contains(message, (folder / "packed").string()));
  REQUIRE(contains(message, "gzip stream"));
  REQUIRE(lines > 10000);
}

TEST_CASE("a position at which no line begins is refused", "[data][text]") {
  const temporary_directory folder;
  write_plain(folder / "plain", "one\ntwo\n");
  write_gzip(folder / "packed", "one\ntwo\n");
  for (const auto* name : {"plain", "packed"}) {
    data::text_lines lines(folder / name);
    for (const std::int64_t position : {1, 5, 9, 1000, 1 << 30}) {
      CAPTURE(name, position);
      lines.seek(position);
      const auto message = message_of<format_error>([&] { read(lines); });
      REQUIRE(contains(message, "no line begins here"));
      REQUIRE(contains(message, "byte " + std::to_string(position)));
    }
    lines.seek(8);
    REQUIRE(read(lines).empty());
    REQUIRE_THROWS_AS(lines.seek(-1), option_error);
  }
}

TEST_CASE("what is no file is refused at once", "[data][text]") {
  const temporary_directory folder;
  REQUIRE(::mkfifo((folder / "pipe").c_str(), 0600) == 0);
  for (const auto& path : {folder / "missing", folder.path(), folder / "pipe"}) {
    CAPTURE(path);
    for (const bool stream : {true, false}) {
      try {
        if (stream)
          data::text_lines lines(path);
        else
          data::text_file lines(path);
        FAIL("opened");
      } catch (const io_error& e) {
        REQUIRE(e.path() == path);
        REQUIRE(e.code());
      }
    }
  }
  data::text_lines nothing;
  REQUIRE_THROWS_AS(nothing.begin(), io_error);
  REQUIRE(data::text_file().size() == 0);
}

TEST_CASE("the lines of a text file are reached at random", "[data][text]") {
  const temporary_directory folder;
  std::string bytes;
  for (int i = 0; i < 1000; ++i)
    bytes += std::string(static_cast<std::size_t>(i % 13), 'x') + std::to_string(i) + "\r\n";
  write_plain(folder / "file", bytes);
  const data::text_file file(folder / "file");
  static_assert(ranges::random_access_range<const data::text_file>);
  static_assert(ranges::view_<data::text_file>);
  const auto expected = split(bytes);
  REQUIRE(file.size() == 1000);
  REQUIRE(read(file) == expected);
  REQUIRE(file[999] == expected.back());
  REQUIRE(*(file.begin() + 500) == expected[500]);
  REQUIRE_THROWS_AS(file[-1], std::out_of_range);
  REQUIRE_THROWS_AS(file[1000], std::out_of_range);
  SECTION("so they can be shuffled") {
    auto lines = read(file | data::shuffle(1));
    REQUIRE(lines != expected);
    std::sort(lines.begin(), lines.end());
    auto sorted = expected;
    std::sort(sorted.begin(), sorted.end());
    REQUIRE(lines == sorted);
  }
  SECTION("by several threads at once") {
    std::vector<strings> found(4);
    std::vector<std::thread> threads;
    for (auto& lines : found) threads.emplace_back([&lines, copy = file] { lines = read(copy); });
    for (auto& thread : threads) thread.join();
    for (const auto& lines : found) REQUIRE(lines == expected);
  }
  SECTION("until the file changes") {
    write_plain(folder / "file", std::string(bytes.size(), 'y'));
    REQUIRE(contains(message_of<format_error>([&] { static_cast<void>(file[3]); }), "line 4 has changed"));
    write_plain(folder / "file", "short\n");
    REQUIRE(contains(message_of<format_error>([&] { static_cast<void>(file[3]); }), "ends here now"));
  }
}

TEST_CASE("a compressed text file is refused where lines are reached at random", "[data][text]") {
  const temporary_directory folder;
  write_gzip(folder / "packed", "a\nb\n");
  REQUIRE(contains(message_of<format_error>([&] { data::text_file lines(folder / "packed"); }), "data::text_lines"));
}

}  // namespace data_text_lines_test
