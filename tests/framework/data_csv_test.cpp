#include "rondo/data/csv.hpp"

#include <ATen/Functions.h>
#include <fmt/format.h>

#include <clocale>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <locale>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "rondo/data/batch.hpp"
#include "rondo/data/shuffle.hpp"
#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/idx_files.hpp"
#include "support/messages.hpp"
#include "support/python.hpp"
#include "support/temporary_directory.hpp"

namespace data_csv_test {

using namespace rondo;
using namespace rondo::testing;
using test::write_gzip;
using test::write_plain;

namespace {

using row = data::csv_rows::row;

class csv_file {
 public:
  explicit csv_file(const std::string& bytes) { write(bytes); }

  void write(const std::string& bytes) const { write_plain(path(), bytes); }
  [[nodiscard]] std::filesystem::path path() const { return folder_ / "file.csv"; }
  operator std::filesystem::path() const { return path(); }

 private:
  temporary_directory folder_;
};

template <class Range>
std::vector<row> read(Range&& rows) {
  std::vector<row> all;
  for (auto&& r : rows) all.push_back(r);
  return all;
}

std::vector<row> rows_of(const std::string& bytes, data::csv_rows_options options = {.header = false}) {
  return read(data::csv_rows(csv_file(bytes), options));
}

std::string failure_of(const std::string& bytes, const data::csv_options& options = {}) {
  const csv_file file(bytes);
  auto message = message_of<format_error>([&] { static_cast<void>(data::csv(file, options)); });
  REQUIRE(contains(message, file.path().string()));
  return message;
}

std::string refused_option(const std::string& bytes, const data::csv_options& options) {
  const csv_file file(bytes);
  return message_of<option_error>([&] { static_cast<void>(data::csv(file, options)); });
}

const std::string flowers =
    "length,width,species\n"
    "5.1,3.5,0\n"
    "4.9,3.0,1\n"
    "6.25,-1e-3,2\n";

}  // namespace

TEST_CASE("a file of numbers becomes a data set, its last column the target", "[data][csv]") {
  const auto set = data::csv(csv_file(flowers));
  REQUIRE(set.size() == 3);
  REQUIRE(set.tensors().data.equal(at::tensor({5.1F, 3.5F, 4.9F, 3.0F, 6.25F, -1e-3F}).reshape({3, 2})));
  REQUIRE(set.tensors().target.equal(at::tensor({0.0F, 1.0F, 2.0F})));
}

TEST_CASE("target and columns are chosen by name or index", "[data][csv]") {
  const csv_file file(flowers);
  SECTION("the target by name") {
    const auto set = data::csv(file, {.target = "length"});
    REQUIRE(set.tensors().target.equal(at::tensor({5.1F, 4.9F, 6.25F})));
    REQUIRE(set.tensors().data.select(1, 1).equal(at::tensor({0.0F, 1.0F, 2.0F})));
  }
  SECTION("the target by index") {
    REQUIRE(data::csv(file, {.target = 0}).tensors().target[2].item<float>() == 6.25F);
    REQUIRE(data::csv(file, {.target = -2}).tensors().target[0].item<float>() == 3.5F);
  }
  SECTION("columns, in the order that is asked for") {
    const auto set = data::csv(file, {.target = "species", .columns = {"width", 0, "width"}});
    REQUIRE(set.tensors().data.equal(
        at::tensor({3.5F, 5.1F, 3.5F, 3.0F, 4.9F, 3.0F, -1e-3F, 6.25F, -1e-3F}).reshape({3, 3})));
  }
  SECTION("classes as int64") {
    const auto set = data::csv(file, {.target_type = at::kLong});
    REQUIRE(set.tensors().target.equal(at::tensor({0, 1, 2}, at::kLong)));
  }
  SECTION("columns that are not asked for may hold anything") {
    const csv_file mixed("id,x,y\nfirst,1,2\n,3,4\n");
    REQUIRE(data::csv(mixed, {.columns = {"x"}}).tensors().data.equal(at::tensor({1.0F, 3.0F}).reshape({2, 1})));
  }
}

TEST_CASE("files without header, with another delimiter, with quotes, blanks, a byte order mark", "[data][csv]") {
  const auto expected = at::tensor({1.5F, 2.0F, 3.0F, 4.0F}).reshape({2, 2});
  const auto check = [&](const std::string& bytes, const data::csv_options& options) {
    CAPTURE(bytes);
    const auto set = data::csv(csv_file(bytes), options);
    CHECK(set.tensors().data.equal(expected));
    CHECK(set.tensors().target.equal(at::tensor({7.0F, 8.0F})));
  };
  check("1.5,2,7\n3,4,8\n", {.header = false});
  check("1.5;2;7\r\n3;4;8", {.header = false, .delimiter = ';'});
  check("\"1.5\"\t\"2\"\t7\n3\t4\t\"8\"\n", {.header = false, .delimiter = '\t'});
  check("a, b ,\"target\"\n 1.5, +2.0 ,7e0\n\n3.,\t4 ,0.8E+1\r\n\r\n", {.target = 2});
  check("\xef\xbb\xbf\"target\",b,c\n7,1.5,2\n8,3,4\n", {.target = "target"});
  check(
      "\xef\xbb\xbf"
      "1.5,2,7\n3,4,8\n",
      {.header = false});
}

TEST_CASE("a compressed file is read as well", "[data][csv]") {
  const temporary_directory folder;
  write_gzip(folder / "packed", flowers);
  REQUIRE(data::csv(folder / "packed").tensors().data.equal(data::csv(csv_file(flowers)).tensors().data));
  REQUIRE_THROWS_AS(data::csv_rows(folder / "packed"), format_error);
}

TEST_CASE("a header without rows is an empty data set", "[data][csv]") {
  const auto set = data::csv(csv_file("a,b,c\n"), {.target_type = at::kLong});
  REQUIRE(set.size() == 0);
  REQUIRE(set.tensors().data.sizes() == at::IntArrayRef({0, 2}));
  REQUIRE(set.tensors().target.scalar_type() == at::kLong);
}

TEST_CASE("a bad field is refused with file, line, column, what it is and what it should be", "[data][csv]") {
  const auto refused = [](const std::string& field, const data::csv_options& options = {}) {
    const csv_file file("first,second,third\n1,2,3\n\n\"4\n\"," + field + ",6\n");
    auto chosen = options;
    chosen.columns = {"second"};
    try {
      static_cast<void>(data::csv(file, chosen));
    } catch (const format_error& e) {
      CHECK(e.where() == file.path().string() + ", line 4, column 2 ('second')");
      CHECK(e.offset() == 26);  // of the row
      return std::string(e.what());
    }
    return std::string("no error");
  };
  REQUIRE(refused("5") == "no error");
  REQUIRE(contains(refused("five"), "expected a number that float32 can hold, found 'five'"));
  for (const auto* field :
       {"", " ", "1,5", "1 5", "0x10", "1e", "+", "+-1", "--1", "1.2.3", "1e39", "-1e400", "1_000", "é"}) {
    CAPTURE(field);
    const auto text = std::string("\"") + field + "\"";
    CHECK(contains(refused(text), std::string("found '") + field + "'"));
  }
  REQUIRE(contains(refused("\"two\nlines\""), "found 'two\\x0alines'"));
  REQUIRE(contains(refused(std::string(100, 'x')), "'" + std::string(40, 'x') + "…'"));
}

TEST_CASE("classes have to be whole numbers", "[data][csv]") {
  const auto classes = [](const std::string& text) {
    return data::csv(csv_file("0," + text + "\n"), {.header = false, .target_type = at::kLong})
        .tensors()
        .target.item<std::int64_t>();
  };
  REQUIRE(classes("9223372036854775807") == std::numeric_limits<std::int64_t>::max());
  REQUIRE(classes("-9007199254740993") == -9007199254740993);
  REQUIRE(classes("3.000000e+00") == 3);
  for (const auto* text : {"1.5", "9223372036854775808", "1e20", "nan", "inf", "cat", ""}) {
    CAPTURE(text);
    const auto message = failure_of(std::string("0,") + text + "\n", {.header = false, .target_type = at::kLong});
    REQUIRE(contains(message, ", line 1, column 2', byte 0: expected a whole number"));
    REQUIRE(contains(message, std::string("found '") + text + "'"));
  }
}

TEST_CASE("numbers are read as Python and LibTorch read them", "[data][csv]") {
  std::mt19937_64 random(1);
  std::string bytes;
  for (int i = 0; i < 4000; ++i) {
    const auto bits = static_cast<std::uint32_t>(random());
    float number = 0;
    static_assert(sizeof bits == sizeof number);
    std::memcpy(&number, &bits, sizeof number);
    if (!std::isfinite(number)) continue;
    const int digits = static_cast<int>(random() % 20) + 1;
    bytes +=
        (random() % 2 == 0 ? fmt::format("{:.{}e},0\n", number, digits) : fmt::format("{:.{}g},0\n", number, digits));
  }
  for (const auto* special : {"inf", "-inf", "nan", "INF", "1e-45", "1e-60", "-0", "3.4028235e38", "0.1", "16777217"})
    bytes += std::string(special) + ",0\n";
  const csv_file file(bytes);
  const auto found = data::csv(file, {.header = false}).tensors().data.flatten().contiguous();
  const auto judged = run_python(R"(
import sys, torch
numbers = [float(line.split(",")[0]) for line in open(sys.argv[1])]
bits = torch.tensor(numbers, dtype=torch.float64).to(torch.float32).view(torch.int32)
print(*[b & 0xffffffff for b in bits.tolist()])
)",
                                 {file.path().string()});
  REQUIRE(judged.status == 0);
  std::istringstream in(judged.output);
  const auto* bits = reinterpret_cast<const std::uint32_t*>(found.data_ptr<float>());
  for (std::int64_t i = 0; i < found.numel(); ++i) {
    std::uint32_t expected = 0;
    REQUIRE(in >> expected);
    CAPTURE(i);
    if (std::isnan(found[i].item<float>())) continue;  // of which there are many
    REQUIRE(bits[i] == expected);
  }
  REQUIRE(std::isnan(found[found.numel() - 8].item<float>()));
}

TEST_CASE("numbers are the same in every locale", "[data][csv]") {
  struct comma : std::numpunct<char> {
    [[nodiscard]] char do_decimal_point() const override { return ','; }
  };
  const auto before = std::locale::global(std::locale(std::locale::classic(), new comma));
  const std::string c_before = std::setlocale(LC_NUMERIC, nullptr);
  for (const auto* name : {"de_DE.UTF-8", "fr_FR.UTF-8"})
    if (std::setlocale(LC_NUMERIC, name) != nullptr) break;
  const auto set = data::csv(csv_file("1.5,2.5\n"), {.header = false});
  std::locale::global(before);
  std::setlocale(LC_NUMERIC, c_before.c_str());
  REQUIRE(set.tensors().data.item<float>() == 1.5F);
  REQUIRE(set.tensors().target.item<float>() == 2.5F);
}

TEST_CASE("rows with another number of fields are refused", "[data][csv]") {
  REQUIRE(contains(failure_of("a,b\n1,2\n3\n"), ", line 3', byte 8: the row has 1 fields; expected 2"));
  REQUIRE(contains(failure_of("a,b\n1,2,3\n"), "the row has 3 fields; expected 2"));
  REQUIRE_THROWS_AS(rows_of("1,2\n3\n"), format_error);
}

TEST_CASE("quotes in the wrong place are refused where they are", "[data][csv]") {
  REQUIRE(contains(failure_of("a,b\n1,2\"3\n"), ", line 2, column 2', byte 7: found '\"3' beside a quote"));
  REQUIRE(contains(failure_of("a,b\n\"1\"x,2\n"), ", line 2, column 1', byte 7: found 'x,2' beside a quote"));
  REQUIRE(
      contains(failure_of("a,b\n1,2\n\"1,2\n3,4\n5,6\n"), ", line 3', byte 8: a quote in the row that begins here"));
  REQUIRE(contains(failure_of("a,b\n1,\"2\n\n\"3,4\n"), ", line 4, column 2', byte 11: found '3,4' beside a quote"));
}

TEST_CASE("a row that is too long is refused where it begins", "[data][csv]") {
  const auto bytes = "a,b\n1,2\n\"" + std::string(50, '\n') + "\",4\n";
  REQUIRE(contains(failure_of(bytes, {.max_row = 30}),
                   ", line 3', byte 8: the row that begins here is longer than 30 bytes"));
  REQUIRE(contains(failure_of("a,b\n" + std::string(50, '1') + ",2\n", {.max_row = 30}), "line 2"));
  REQUIRE(rows_of(bytes, {.max_row = 100}).size() == 2);
}

TEST_CASE("a file without its first row is refused", "[data][csv]") {
  for (const auto* bytes : {"", "\n\r\n", "\xef\xbb\xbf\n"}) {
    REQUIRE(contains(failure_of(bytes), "the names of the columns"));
    REQUIRE(contains(failure_of(bytes, {.header = false}), "expected a row with numbers"));
    REQUIRE_THROWS_AS(rows_of(bytes, {.header = true}), format_error);
    REQUIRE(rows_of(bytes).empty());
  }
}

TEST_CASE("options that make no sense are refused", "[data][csv]") {
  REQUIRE(contains(refused_option(flowers, {.target = "specie"}),
                   "'specie': allowed is one of 'length', 'width', 'species'"));
  REQUIRE(contains(refused_option(flowers, {.target = 3}), "3: allowed is from -3 to 2"));
  REQUIRE(contains(refused_option(flowers, {.target = -4}), "-4: allowed is from -3 to 2"));
  REQUIRE(contains(refused_option(flowers, {.columns = {"length", "height"}}), "option 'columns' = 'height'"));
  REQUIRE(contains(refused_option(flowers, {.columns = {"length", "species"}}), "any but the target"));
  REQUIRE(contains(refused_option("1,2\n", {.header = false, .target = "a"}), "an index"));
  REQUIRE(contains(refused_option("a,a,b\n1,2,3\n", {.target = "a"}), "several columns"));
  REQUIRE(contains(refused_option("a\n1\n", {}), "a column beside the target"));
  REQUIRE(contains(refused_option(flowers, {.target_type = at::kDouble}), "target_type"));
  REQUIRE(contains(refused_option(flowers, {.max_row = 0}), "max_row"));
  for (const char delimiter : {'"', '\n', '\r'})
    REQUIRE(contains(refused_option(flowers, {.delimiter = delimiter}), "delimiter"));
}

TEST_CASE("what cannot be opened is an io_error with its path", "[data][csv]") {
  const temporary_directory folder;
  for (const auto& path : {folder / "missing", folder.path()}) {
    try {
      static_cast<void>(data::csv(path));
      FAIL("read " << path);
    } catch (const io_error& e) {
      REQUIRE(e.path() == path);
    }
    REQUIRE_THROWS_AS(data::csv_rows(path), io_error);
  }
}

TEST_CASE("rows hold their fields as they are", "[data][csv]") {
  using namespace std::string_literals;
  REQUIRE(rows_of("a,b\n") == std::vector<row>{{"a", "b"}});
  REQUIRE(rows_of("a,b") == std::vector<row>{{"a", "b"}});
  REQUIRE(rows_of("\"a,\"\"b\"\"\nc\r\n\",d\r\n") == std::vector<row>{{"a,\"b\"\nc\r\n", "d"}});
  REQUIRE(rows_of(" a ,\t,\n") == std::vector<row>{{" a ", "\t", ""}});
  REQUIRE(rows_of("\"\",\n\"x\",y\n") == std::vector<row>{{"", ""}, {"x", "y"}});
  REQUIRE(rows_of("a\0b\xff,\n"s) == std::vector<row>{{"a\0b\xff"s, ""}});
  REQUIRE(rows_of("a\n\n\r\n\nb\n\n") == std::vector<row>{{"a"}, {"b"}});
  REQUIRE(rows_of("a b|c", {.header = false, .delimiter = '|'}) == std::vector<row>{{"a b", "c"}});
  REQUIRE(rows_of("\"a b\" c \" \"", {.header = false, .delimiter = ' '}) == std::vector<row>{{"a b", "c", " "}});
}

TEST_CASE("rows are reached at random, without the header", "[data][csv]") {
  const csv_file file("\xef\xbb\xbfname,text\r\nfirst,\"1\n1\"\r\n\r\nsecond,2\r\nthird,\"\"\"\"");
  const data::csv_rows rows(file);
  static_assert(ranges::random_access_range<const data::csv_rows>);
  static_assert(ranges::view_<data::csv_rows>);
  REQUIRE(rows.header() == row{"name", "text"});
  REQUIRE(rows.size() == 3);
  REQUIRE(rows[2] == row{"third", "\""});
  REQUIRE(*(rows.begin() + 1) == row{"second", "2"});
  REQUIRE(read(rows) == std::vector<row>{{"first", "1\n1"}, {"second", "2"}, {"third", "\""}});
  REQUIRE(read(rows | data::shuffle(3)).size() == 3);
  REQUIRE_THROWS_AS(rows[3], std::out_of_range);
  REQUIRE_THROWS_AS(rows[-1], std::out_of_range);
  SECTION("without a header when there is none") {
    const data::csv_rows all(file, {.header = false});
    REQUIRE(all.size() == 4);
    REQUIRE(all.header().empty());
    REQUIRE(all[0] == row{"name", "text"});
  }
  SECTION("no file at all") {
    REQUIRE(data::csv_rows().size() == 0);
    REQUIRE(data::csv_rows().header().empty());
  }
  SECTION("by several threads at once") {
    const auto expected = read(rows);
    std::vector<std::vector<row>> found(4);
    std::vector<std::thread> threads;
    for (auto& each : found)
      threads.emplace_back([&each, copy = rows] {
        for (int i = 0; i < 100; ++i) each = read(copy);
      });
    for (auto& thread : threads) thread.join();
    for (const auto& each : found) REQUIRE(each == expected);
  }
  SECTION("until the file changes") {
    file.write(std::string(100, ','));
    REQUIRE(contains(message_of<format_error>([&] { static_cast<void>(rows[1]); }), "row 1 has changed"));
    file.write("short");
    REQUIRE_THROWS_AS(rows[1], format_error);
  }
}

TEST_CASE("what Python's csv module writes is read back", "[data][csv]") {
  const temporary_directory folder;
  const auto judged = run_python(R"(
import csv, json, random, sys
random.seed(5)
cases = []
for i in range(200):
    delimiter = random.choice(",;\t |")
    width = random.randint(2, 5)
    line_end = random.choice(["\n", "\r\n"])  # with \n alone, Python writes a \r without quotes, against RFC 4180
    letters = 'ab" ,;|\t\né' + ("\r" if line_end == "\r\n" else "")
    rows = [["".join(random.choice(letters) for _ in range(random.randint(0, 6)))
             for _ in range(width)] for _ in range(random.randint(1, 8))]
    rows = [r for r in rows if any(r)] or [["x"] * width]
    path = f"{sys.argv[1]}/{i}.csv"
    with open(path, "w", newline="", encoding="utf-8") as out:
        csv.writer(out, delimiter=delimiter, quoting=random.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
                   lineterminator=line_end).writerows(rows)
    cases.append({"path": path, "delimiter": delimiter, "rows": rows})
print(json.dumps(cases))
)",
                                 {folder.path().string()});
  REQUIRE(judged.status == 0);
  const auto cases = nlohmann::json::parse(judged.output);
  REQUIRE(cases.size() == 200);
  for (const auto& each : cases) {
    CAPTURE(each.dump());
    const data::csv_rows rows(each["path"].get<std::string>(),
                              {.header = false, .delimiter = each["delimiter"].get<std::string>()[0]});
    REQUIRE(read(rows) == each["rows"].get<std::vector<row>>());
  }
}

TEST_CASE("random bytes are refused, or read as Python's csv module reads them", "[data][csv]") {
  std::mt19937 random(9);
  nlohmann::json accepted = nlohmann::json::array();
  int refused = 0;
  for (int i = 0; i < 4000; ++i) {
    constexpr std::string_view bytes = "a1,,\"\"\n\n .";
    std::string text;
    for (auto size = random() % 24; text.size() < size;) text += bytes[random() % bytes.size()];
    try {
      accepted.push_back({text, rows_of(text)});
    } catch (const format_error&) {
      ++refused;
    }
  }
  REQUIRE(refused > 1000);
  REQUIRE(accepted.size() > 500);
  const temporary_directory folder;
  std::ofstream(folder / "accepted.json") << accepted.dump();
  const auto judged = run_python(R"(
import csv, io, json, sys
for text, rows in json.load(open(sys.argv[1])):
    expected = [r for r in csv.reader(io.StringIO(text, newline=""), strict=True) if r]
    assert rows == expected, (text, rows, expected)
print("equal")
)",
                                 {(folder / "accepted.json").string()});
  REQUIRE(judged.output == "equal\n");
}

TEST_CASE("any bytes at all end in rows, numbers or a typed error", "[data][csv]") {
  std::mt19937 random(10);
  const csv_file file("");
  for (int i = 0; i < 3000; ++i) {
    std::string text;
    for (auto size = random() % 80; text.size() < size;)
      text += random() % 3 == 0 ? "\",\r\n"[random() % 4] : static_cast<char>(random() % 256);
    if (random() % 20 == 0) text = "\x1f\x8b\x08" + text;
    file.write(text);
    const auto attempt = [&](auto read) {
      try {
        read();
      } catch (const error&) {
      }
    };
    attempt([&] { read(data::csv_rows(file, {.header = random() % 2 == 0})); });
    attempt([&] { static_cast<void>(data::csv(file, {.header = random() % 2 == 0, .target_type = at::kLong})); });
  }
  SUCCEED("nothing else was thrown");
}

}  // namespace data_csv_test
