#include "rondo/writing/file_name.hpp"

#include <limits>
#include <random>

#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/messages.hpp"

namespace writing_file_name_test {

using rondo::option_error;
using rondo::writing::file_name_template;
using rondo::writing::name_field;
using rondo::writing::name_values;

namespace {

const std::vector<name_field> fields = {{"iteration", name_field::kind::integer},
                                        {"epoch", name_field::kind::integer},
                                        {"epoch_detail", name_field::kind::real}};

file_name_template pattern_of(std::string_view text) { return {text, fields}; }

name_values values(std::int64_t iteration, std::int64_t epoch = 0, double detail = 0) {
  return {{"iteration", iteration}, {"epoch", epoch}, {"epoch_detail", detail}};
}

std::string complaint_about(const std::string& text) {
  try {
    pattern_of(text);
  } catch (const option_error& error) {
    CHECK(error.option() == "filename");
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("names are made from values", "[writing][file_name]") {
  CHECK(pattern_of("snapshot_iter_{iteration}").format(values(12)) == "snapshot_iter_12");
  CHECK(pattern_of("snapshot_iter_{.iteration}").format(values(12)) == "snapshot_iter_12");
  CHECK(pattern_of("{iteration:08}.pt").format(values(12)) == "00000012.pt");
  CHECK(pattern_of("{.iteration:05d}").format(values(12)) == "00012");
  CHECK(pattern_of("e{epoch}-i{iteration}").format(values(12, 3)) == "e3-i12");
  CHECK(pattern_of("at_{epoch_detail:.2f}").format(values(0, 0, 1.25)) == "at_1.25");
  CHECK(pattern_of("{{{iteration}}}").format(values(12)) == "{12}");
  CHECK(pattern_of("last_snapshot").format({}) == "last_snapshot");
}

TEST_CASE("values are read from exactly the names that the template makes", "[writing][file_name]") {
  const auto pattern = pattern_of("snapshot_iter_{iteration}");
  const auto parsed = pattern.parse("snapshot_iter_120");
  REQUIRE(parsed);
  CHECK(*parsed == name_values{{"iteration", std::int64_t{120}}});
  for (const auto* foreign :
       {"snapshot_iter_9.bak", "snapshot_iter_9.sha256", "tmp_snapshot_iter_9", "snapshot_iter_9x", "snapshot_iter_",
        "snapshot_iter_09", "snapshot_iter_+9", "snapshot_iter_-0", "snapshot_iter_ 9", "snapshot_iter_9 ",
        "snapshot_iter_9.0", "snapshot_iter_0x9", "snapshot_iter_99999999999999999999", "snapshot_iter_x",
        ".snapshot_iter_9.tmp-1-0123456789abcdef", "Snapshot_iter_9", "", "snapshot_iter_9/"}) {
    INFO(foreign);
    CHECK_FALSE(pattern.parse(foreign));
  }
  CHECK_FALSE(pattern.parse(std::string_view("snapshot_iter_9\0", 16)));
  CHECK_FALSE(pattern.parse("snapshot_iter_" + std::string(1000, '9')));
  CHECK_FALSE(pattern_of("{iteration:04}").parse("12"));
  CHECK(pattern_of("{iteration:04}").parse("0012"));
  CHECK(pattern_of("{iteration:04}").parse("123456"));
  CHECK_FALSE(pattern_of("{iteration:04}").parse("00123456"));
  CHECK_FALSE(pattern_of("{epoch_detail:.2f}").parse("1.5"));
  CHECK_FALSE(pattern_of("{epoch_detail}").parse("nan"));
  CHECK(pattern_of("{iteration}_{iteration}").parse("5_5"));
  CHECK_FALSE(pattern_of("{iteration}_{iteration}").parse("5_6"));
  CHECK(pattern_of("last_snapshot").parse("last_snapshot"));
  CHECK_FALSE(pattern_of("last_snapshot").parse("last_snapshot.bak"));
}

TEST_CASE("parsing is the inverse of formatting", "[writing][file_name]") {
  std::mt19937_64 random(1);
  const auto integer = [&] {
    const auto any = static_cast<std::int64_t>(random());
    return random() % 2 == 0 ? any : any % 1000;
  };
  const std::vector<std::string> integers = {
      "snapshot_iter_{iteration}", "{iteration:08}.pt",           "{iteration}-{epoch}",
      "{epoch}0_1{iteration}",     "{iteration}.{epoch}",         "{iteration:+}+{epoch}",
      "{iteration:12} {epoch:5}",  "{epoch}_{iteration}_{epoch}", "{{{iteration}}}{{"};
  for (const auto& text : integers) {
    const auto pattern = pattern_of(text);
    for (int round = 0; round < 500; ++round) {
      const auto given = values(integer(), integer());
      const auto name = pattern.format(given);
      INFO(text << ": " << name);
      const auto parsed = pattern.parse(name);
      REQUIRE(parsed);
      for (const auto& [field, value] : *parsed) REQUIRE(given.at(field) == value);
      REQUIRE(pattern.format(*parsed) == name);
    }
  }
  for (const auto* text : {"{epoch_detail}", "at_{epoch_detail:.2f}.pt", "{epoch_detail:e}-{iteration}",
                           "{epoch_detail:012.3f}_{epoch_detail}", "{iteration}_{epoch_detail:+.4G}x"}) {
    const auto pattern = pattern_of(text);
    for (int round = 0; round < 500; ++round) {
      const auto detail = std::ldexp(static_cast<double>(static_cast<std::int64_t>(random())), -60 + round % 40);
      const auto name = pattern.format(values(integer(), 0, detail));
      INFO(text << ": " << name);
      const auto parsed = pattern.parse(name);
      if (text == std::string("{epoch_detail:012.3f}_{epoch_detail}")) continue;  // two roundings of one value
      REQUIRE(parsed);
      REQUIRE(pattern.format(*parsed) == name);
    }
  }
}

TEST_CASE("random names are read only when they would be written the same", "[writing][file_name]") {
  std::mt19937_64 random(2);
  const std::string alphabet = "0123456789+-. e_x";
  std::size_t accepted = 0;
  for (const auto* text : {"{iteration}", "{iteration:03}_{epoch}", "{epoch_detail:.1f}", "{iteration:4}"}) {
    const auto pattern = pattern_of(text);
    for (int round = 0; round < 20'000; ++round) {
      std::string name;
      for (auto length = random() % 8; length > 0; --length) name += alphabet[random() % alphabet.size()];
      const auto parsed = pattern.parse(name);
      if (!parsed) continue;
      ++accepted;
      REQUIRE(pattern.format(*parsed) == name);
    }
  }
  CHECK(accepted > 100);
}

TEST_CASE("bad templates are refused at once", "[writing][file_name]") {
  CHECK(contains(complaint_about("snapshot_{iter}"), "{iteration}, {epoch}, {epoch_detail}"));
  CHECK(contains(complaint_about("{.updater.iteration}"), "{iteration}"));
  CHECK(contains(complaint_about("{}"), "placeholders"));
  CHECK(contains(complaint_about("{iteration:.2f}"), "{iteration:08}"));
  CHECK(contains(complaint_about("{epoch_detail:d}"), "{epoch_detail:.2f}"));
  for (const auto* format : {":x", ":>8", ":{epoch}", ":099999999", ":08 ", ":s", ":n", "!r"}) {
    CHECK_FALSE(complaint_about(std::string("{iteration") + format + "}").empty());
  }
  CHECK(contains(complaint_about(""), "not empty"));
  CHECK(contains(complaint_about("/tmp/x"), "output directory"));
  CHECK(contains(complaint_about("a/{iteration}"), "output directory"));
  CHECK(contains(complaint_about("a/../x"), "output directory"));
  CHECK(contains(complaint_about(".."), "dot"));
  CHECK(contains(complaint_about(".hidden_{iteration}"), "dot"));
  CHECK(contains(complaint_about(std::string("a\0b", 3)), "a\\x00b: allowed is a name without control characters"));
  CHECK(contains(complaint_about("a\nb"), "a\\x0ab"));
  CHECK(contains(complaint_about(std::string(201, 'a')), "200 bytes"));
  CHECK(contains(complaint_about("{iteration"), "'}' for every '{'"));
  CHECK(contains(complaint_about("iteration}"), "'{' for every '}'"));
  CHECK(contains(complaint_about("{iteration}{epoch}"), "separator"));
  CHECK(contains(complaint_about("{iteration}00{epoch}"), "separator"));
  CHECK(contains(complaint_about("{epoch_detail}.{iteration}"), "separator"));
  CHECK(complaint_about("%s%n_{iteration}").empty());
}

TEST_CASE("values that make no name are refused", "[writing][file_name]") {
  const auto detail = pattern_of("{epoch_detail:.2f}");
  CHECK_THROWS_AS(detail.format({}), option_error);
  CHECK_THROWS_AS(detail.format({{"epoch_detail", std::int64_t{1}}}), option_error);
  CHECK_THROWS_AS(detail.format(values(0, 0, std::numeric_limits<double>::quiet_NaN())), option_error);
  CHECK_THROWS_AS(detail.format(values(0, 0, std::numeric_limits<double>::infinity())), option_error);
  CHECK_THROWS_AS(detail.format(values(0, 0, 1e300)), option_error);
}

TEST_CASE("a template knows its fields", "[writing][file_name]") {
  const auto pattern = pattern_of("{epoch}_{iteration:08}");
  CHECK(pattern.has_field("iteration"));
  CHECK(pattern.has_field("epoch"));
  CHECK_FALSE(pattern.has_field("epoch_detail"));
  CHECK(pattern.text() == "{epoch}_{iteration:08}");
}

}  // namespace writing_file_name_test
