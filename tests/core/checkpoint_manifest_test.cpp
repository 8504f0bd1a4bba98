#include "rondo/checkpoint/manifest.hpp"

#include <cmath>
#include <limits>

#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/checkpoint.hpp"
#include "support/messages.hpp"

namespace checkpoint_manifest_test {

using namespace rondo;
using namespace rondo::checkpoint;
using namespace rondo::testing;

namespace {

manifest example() {
  manifest about;
  about.info = {1234, 5, true, {{"libtorch", "1.13.1"}, {"rondo", "0.1.0"}}, 8};
  about.info.created = 1'712'345'678;
  about.info.metrics = {{"accuracy", 1.0}, {"loss", 0.1}, {"worst", -1e300}};
  about.tensors = {{"models.main.weight", "data/0"}};
  about.records = {{"data.pkl", 77, 0}, {"data/0", 5'000'000'000, 0}};
  return about;
}

std::string refusal(const std::string& json) {
  return refusal_of<format_error>([&] { (void)parse_manifest(json, "file"); });
}

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const auto at = text.find(from);
  REQUIRE(at != std::string::npos);
  return text.replace(at, from.size(), to);
}

}  // namespace

TEST_CASE("a manifest survives a round trip", "[checkpoint][manifest]") {
  auto about = example();
  about.records[1].crc32 = 0xdeadbeef;
  CHECK(parse_manifest(to_json(about), "file") == about);
  CHECK(parse_manifest(to_json(manifest()), "file") == manifest());
}

TEST_CASE("a manifest's length does not depend on the checksums", "[checkpoint][manifest]") {
  auto about = example();
  const auto size = to_json(about).size();
  for (const std::uint32_t checksum : {1u, 0xffffffffu, 0x00ff00ffu}) {
    for (auto& record : about.records) record.crc32 = checksum;
    CHECK(to_json(about).size() == size);
  }
}

TEST_CASE("metrics are finite numbers in a table", "[checkpoint][manifest]") {
  auto about = example();
  about.info.metrics = {{"infinite", std::numeric_limits<double>::infinity()}, {"nan", std::nan("")}, {"one", 1.0}};
  CHECK(parse_manifest(to_json(about), "file").info.metrics == std::map<std::string, double>{{"one", 1.0}});
  const auto json = to_json(example());
  CHECK(contains(refusal(replaced(json, "\"loss\":0.1", "\"loss\":\"0.1\"")), "'metrics' is not a table of numbers"));
  CHECK(contains(refusal(replaced(json, "\"loss\":0.1", "\"loss\":true")), "'metrics' is not a table of numbers"));
  CHECK(contains(refusal(replaced(json, "\"created\":1712345678", "\"created\":0.5")), "'created'"));
}

TEST_CASE("manifests of other versions", "[checkpoint][manifest]") {
  const auto json = to_json(example());
  CHECK(contains(refusal(replaced(json, "\"format_version\":2", "\"format_version\":3")), "use a newer Rondo"));
  CHECK(contains(refusal(replaced(json, "\"format_version\":2", "\"format_version\":0")), "does not exist"));
  CHECK(parse_manifest(replaced(json, "{", "{\"from_the_future\":[1,{}],"), "file") == example());
}

TEST_CASE("a later version is named as the reason even where it comes last and all else is wrong",
          "[checkpoint][manifest]") {
  CHECK(contains(refusal("{\"iteration\":{},\"records\":7,\"format_version\":99}"), "use a newer Rondo"));
}

TEST_CASE("text of all kinds survives", "[checkpoint][manifest]") {
  manifest about = example();
  about.info.made_by = "quote \" backslash \\ line\n tab\t zero \x01 del\x7f ü 漢 😀";
  about.info.libraries = {{about.info.made_by, ""}, {"", "1"}};
  about.tensors = {{"a\"b", "data/\\"}, {about.info.made_by, "data/1"}};
  about.records[0].name = about.info.made_by;
  CHECK(parse_manifest(to_json(about), "file") == about);
  about.info.made_by = "\xff";
  CHECK_THROWS_AS(to_json(about), state_error);
}

TEST_CASE("what is not a manifest is refused with a reason", "[checkpoint][manifest]") {
  const auto json = to_json(example());
  CHECK(contains(refusal(""), "not JSON"));
  CHECK(contains(refusal("{"), "not JSON"));
  CHECK(contains(refusal("[]"), "not a JSON object"));
  CHECK(contains(refusal("{}"), "'format_version'"));
  CHECK(contains(refusal(std::string(1'000'000, '[')), "not JSON"));
  CHECK(contains(refusal(replaced(json, "\"iteration\":1234", "\"iteration\":1.5")), "'iteration' has the wrong type"));
  CHECK(contains(refusal(replaced(json, "1234", "99999999999999999999")), "'iteration' has the wrong type"));
  CHECK(contains(refusal(replaced(json, "1234", "9999999999999999999")), "'iteration' has the wrong type"));
  CHECK(contains(refusal(replaced(json, "\"mid_iteration\":true", "\"mid_iteration\":1")), "'mid_iteration'"));
  CHECK(contains(refusal(replaced(json, "\"data/0\"}", "7}")), "'tensors'"));
  for (const auto* wrong : {"[]", "{}", "[1]", "{\"a\":\"b\"}", "null", "1"}) {
    CAPTURE(wrong);
    CHECK(contains(refusal(replaced(json, "\"1.13.1\"", wrong)), "'libraries'"));
    CHECK(contains(refusal(replaced(json, "\"data/0\"}", std::string(wrong) + "}")), "'tensors'"));
    CHECK(contains(refusal(replaced(json, "1234", wrong)), "'iteration'") != (std::string(wrong) == "1"));
  }
  CHECK(contains(refusal(replaced(json, "\"records\":[", "\"records\":3,\"other\":[")), "'records' is not a list"));
  CHECK(contains(refusal(replaced(json, "\"records\":[", "\"records\":[[],")), "'records'"));
  CHECK(contains(refusal(replaced(json, "\"records\":[", "\"records\":[{},")), "'name'"));
  CHECK(contains(refusal(replaced(json, "\"tensors\":{", "\"tensors\":7,\"other\":{")), "'tensors'"));
  CHECK(contains(refusal(replaced(json, "\"tensors\"", "\"others\"")), "no field 'tensors'"));
  CHECK(contains(refusal(replaced(json, "5000000000", "-5")), "'size'"));
  CHECK(contains(refusal(replaced(json, "00000000", "0000000g")), "hexadecimal"));
  CHECK(contains(refusal(replaced(json, "00000000", "000")), "hexadecimal"));
  CHECK(contains(refusal(replaced(json, "\"records\":[", "\"records\":[3,")), "'records'"));
}

}  // namespace checkpoint_manifest_test
