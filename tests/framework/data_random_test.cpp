#include "rondo/data/random.hpp"

#include <array>
#include <cstdint>
#include <random>
#include <set>

#include "support/catch.hpp"

namespace data_random_test {

using namespace rondo::data;

TEST_CASE("random numbers are SplitMix64's published ones", "[data][random]") {
  random_sequence random(1234567);
  REQUIRE(random() == 6457827717110365317U);
  REQUIRE(random() == 3203168211198807973U);
  REQUIRE(random() == 9817491932198370423U);
  REQUIRE(random() == 4593380528125082431U);
  REQUIRE(random() == 16408922859458223821U);
}

TEST_CASE("any position of a sequence is reached directly", "[data][random]") {
  random_sequence walking(99);
  const random_sequence jumping(99);
  for (std::uint64_t i = 0; i < 100; ++i) REQUIRE(walking() == jumping.at(i));
}

TEST_CASE("sample seeds are as documented", "[data][random]") {
  // Computed with a Python program written from the documentation.
  REQUIRE(sample_seed(0, 0, 0) == 0x238275bc38fcbe91U);
  REQUIRE(sample_seed(42, 3, 7) == 0xab2f97746e2ea953U);
  REQUIRE(sample_seed(~std::uint64_t{0}, -1, -1) == 0x595b17f487c0e71bU);
  static_assert(sample_seed(0, 0, 0) == 0x238275bc38fcbe91U);
}

TEST_CASE("sample seeds differ for neighbouring arguments and for exchanged ones", "[data][random]") {
  std::set<std::uint64_t> seen;
  for (std::uint64_t seed = 0; seed < 20; ++seed)
    for (std::int64_t epoch = 0; epoch < 20; ++epoch)
      for (std::int64_t index = 0; index < 20; ++index) seen.insert(sample_seed(seed, epoch, index));
  REQUIRE(seen.size() == 8000);
}

TEST_CASE("below gives the documented integers, each as often", "[data][random]") {
  SECTION("golden values") {
    random_sequence random(5);
    for (const std::uint64_t expected : {2U, 0U, 5U, 5U, 4U, 1U, 3U, 0U, 3U, 4U, 3U, 5U})
      REQUIRE(random.below(6) == expected);
  }
  SECTION("uniform") {
    random_sequence random(1);
    std::array<int, 6> counts{};
    for (int i = 0; i < 60000; ++i) ++counts.at(random.below(6));
    double chi2 = 0;
    for (const int count : counts) chi2 += (count - 10000.0) * (count - 10000.0) / 10000.0;
    REQUIRE(chi2 < 20.5);  // 5 degrees of freedom, p = 0.001; the seed is fixed
  }
  SECTION("extremes") {
    random_sequence random(1);
    REQUIRE(random.below(1) == 0);
    REQUIRE(random.below(2) < 2);
    REQUIRE(random.below(random_sequence::max()) < random_sequence::max());
  }
}

TEST_CASE("uniform is the documented multiple of 2^-53", "[data][random]") {
  random_sequence random(9);
  REQUIRE(random.uniform() == 0.6823627349789958);
  REQUIRE(random.uniform() == 0.7506948929582787);
  REQUIRE(random.uniform() == 0.2653224405991833);
}

TEST_CASE("a random sequence drives the standard distributions", "[data][random]") {
  static_assert(std::uniform_random_bit_generator<random_sequence>);
  random_sequence random(4);
  const int drawn = std::uniform_int_distribution<int>(3, 5)(random);
  REQUIRE(drawn >= 3);
  REQUIRE(drawn <= 5);
}

}  // namespace data_random_test
