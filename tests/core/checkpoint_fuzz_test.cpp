#include <chrono>
#include <random>

#include "rondo/checkpoint/encoder.hpp"
#include "rondo/checkpoint/verify.hpp"
#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/checkpoint.hpp"
#include "support/processor_time.hpp"

namespace checkpoint_fuzz_test {

using namespace rondo;
using namespace rondo::checkpoint;
using namespace rondo::testing;

// Fixed seeds: the same inputs in every run. The judges are the sanitizers, the error type and the clock.
namespace {

tree rich_state() {
  tensor_descriptor view{scalar_type::float32, "0", 64, 4, {3, 5}, {5, 1}, true, true};
  return tree::dict{
      {"model", tree::dict{{"weight", view}, {"bias", vector_of(scalar_type::float32, "0", 64)}}},
      {"optimizer", tree::dict{{0, tree::dict{{"step", 10}, {"exp_avg", vector_of(scalar_type::float16, "1", 8)}}}}},
      {"mixed", tree::list{1, -1, 1'000'000'000'000, 2.5, nullptr, true, tree::tuple{{"a", "b", 3, 4}}}},
      {"bytes", state::bytes{noise(40)}}};
}

template <class Input>
void mutate(Input& input, std::mt19937& random) {
  const auto below = [&](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random); };
  const auto changes = 1 + below(4);
  for (std::size_t i = 0; i < changes && !input.empty(); ++i) {
    const auto at = input.begin() + static_cast<std::ptrdiff_t>(below(input.size()));
    switch (below(6)) {
      case 0:
        *at ^= std::byte{1} << below(8);
        break;
      case 1:
        *at = static_cast<std::byte>(below(256));
        break;
      case 2:
        input.insert(at, static_cast<std::byte>(below(256)));
        break;
      case 3:
        input.erase(at);
        break;
      case 4: {
        const byte_vector piece(
            at, at + static_cast<std::ptrdiff_t>(below(static_cast<std::size_t>(input.end() - at)) % 32));
        input.insert(input.begin() + static_cast<std::ptrdiff_t>(below(input.size())), piece.begin(), piece.end());
        break;
      }
      default:
        *at = below(2) == 0 ? std::byte{0} : std::byte{0xff};
        break;
    }
  }
}

template <class Action>
bool accepted_in_time(Action action) {
  const auto start = rondo::testing::processor_time();
  bool accepted = true;
  try {
    action();
  } catch (const format_error&) {
    accepted = false;
  }
  REQUIRE(rondo::testing::processor_time() - start < std::chrono::seconds(10));
  return accepted;
}

}  // namespace

TEST_CASE("random bytes never crash the pickle machine", "[checkpoint][fuzz]") {
  std::mt19937 random(1);
  for (int i = 0; i < 50'000; ++i) {
    byte_vector input(std::uniform_int_distribution<std::size_t>(0, 200)(random));
    for (auto& byte : input) byte = static_cast<std::byte>(random());
    input.push_back(std::byte{'.'});
    accepted_in_time([&] { (void)decode_pickle(input, "garbage"); });
  }
}

TEST_CASE("mutated pickles never crash the pickle machine, and what it accepts can be written", "[checkpoint][fuzz]") {
  const auto sound = encode_pickle(rich_state());
  std::mt19937 random(2);
  int accepted = 0;
  for (int i = 0; i < 50'000; ++i) {
    auto input = sound;
    mutate(input, random);
    accepted += accepted_in_time([&] {
      const auto state = decode_pickle(input, "mutated");
      try {
        (void)decode_pickle(encode_pickle(state), "again");
      } catch (const state_error&) {
      }
    });
  }
  CHECK(accepted > 1000);
  CHECK(accepted < 49'000);
}

TEST_CASE("mutated files never crash the reader", "[checkpoint][fuzz]") {
  const auto zero = noise(256);
  const auto one = noise(16);
  const auto sound = write_to_memory(encoder(rich_state(), {{"0", zero}, {"1", one}}, {}, "r"));
  std::mt19937 random(3);
  int accepted = 0;
  for (int i = 0; i < 5'000; ++i) {
    auto input = sound;
    // Most of the file is padding; directory and end records are where the reader can be led astray.
    if (i % 2 == 0) {
      byte_vector tail(input.end() - 700, input.end());
      mutate(tail, random);
      input.erase(input.end() - 700, input.end());
      input.insert(input.end(), tail.begin(), tail.end());
    } else {
      mutate(input, random);
    }
    accepted += accepted_in_time([&] { verify(reader::from_span(input, "mutated")); });
    if (input != sound) continue;
    --accepted;
  }
  CHECK(accepted == 0);
}

}  // namespace checkpoint_fuzz_test
