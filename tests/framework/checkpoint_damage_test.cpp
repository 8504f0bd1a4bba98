// Damage anywhere in a snapshot of a real loop is found by loading and by autoload. What verification finds in single
// files is in tests/core/checkpoint_verify_test.cpp.
#include <cstddef>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/tensors.hpp"
#include "rondo/error.hpp"
#include "rondo/event/interval.hpp"
#include "rondo/extensions/snapshot/snapshot.hpp"
#include "support/captured_stderr.hpp"
#include "support/catch.hpp"
#include "support/counting_loop.hpp"
#include "support/temporary_directory.hpp"

namespace checkpoint_damage_test {

using namespace rondo;
using namespace rondo::literals;
using rondo::testing::captured_stderr;
using rondo::testing::counting;
using rondo::testing::temporary_directory;
using rondo::testing::the_number_in;

namespace {

using byte_vector = std::vector<std::byte>;

/// `snapshot_iter_1` and `snapshot_iter_2`.
void take_two_snapshots(const std::filesystem::path& folder) {
  const counting training;
  auto loop = training.loop(folder, 2);
  loop | snapshot().triggered(every(1_iterations));
  loop.run();
}

byte_vector bytes_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  const std::string text(std::istreambuf_iterator<char>(in), {});
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

void put(const std::filesystem::path& file, std::span<const std::byte> bytes) {
  std::ofstream out(file, std::ios::binary);
  out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

bool found_bad(std::span<const std::byte> bytes) {
  try {
    (void)checkpoint::materialize_verified(checkpoint::reader::from_span(bytes, "damaged"));
  } catch (const format_error&) {
    return true;
  }
  return false;
}

/// Which iteration autoload resumes from.
std::int64_t resumed_iteration(const std::filesystem::path& folder) {
  const captured_stderr explanations;
  const counting training;
  auto loop = training.loop(folder, 1);
  loop | snapshot({.autoload = true}).triggered(every(1000_iterations));
  loop.run();
  return static_cast<std::int64_t>(training.model->parameters()[0].min().item<double>());
}

/// How many damages of a kind where each costs a whole loop, or a large file.
int how_many(int otherwise) {
  const char* text = std::getenv("RONDO_TEST_FLIPS");
  return text != nullptr ? std::atoi(text) : otherwise;
}

}  // namespace

TEST_CASE("a changed bit in any byte of a snapshot is found by loading it", "[checkpoint][damage]") {
  const temporary_directory dir;
  take_two_snapshots(dir.path());
  auto bytes = bytes_of(dir / "snapshot_iter_2");
  REQUIRE_FALSE(found_bad(bytes));
  std::mt19937_64 random(1);
  std::vector<std::size_t> missed;
  for (std::size_t at = 0; at < bytes.size(); ++at) {
    const auto bit = std::byte{1} << (random() % 8);
    bytes[at] ^= bit;
    if (!found_bad(bytes)) missed.push_back(at);
    bytes[at] ^= bit;
  }
  CHECK(missed.empty());
  CHECK_FALSE(found_bad(bytes));
}

TEST_CASE("a snapshot that ends too early is found by loading it", "[checkpoint][damage]") {
  const temporary_directory dir;
  take_two_snapshots(dir.path());
  const auto bytes = bytes_of(dir / "snapshot_iter_2");
  std::vector<std::size_t> missed;
  for (std::size_t size = 0; size < bytes.size(); ++size)
    if (!found_bad(std::span(bytes).first(size))) missed.push_back(size);
  CHECK(missed.empty());
}

TEST_CASE("random changed bits of a large file are found by loading it", "[checkpoint][damage]") {
  const temporary_directory dir;
  const state::dict state = {{"a", torch::rand({15 << 20})}, {"b", torch::rand({1 << 20})}};
  const auto described = checkpoint::describe(state::value(state));
  const checkpoint::encoder file(described.tree, described.views(), {});
  byte_vector bytes;
  bytes.reserve(file.size());
  file.write([&](std::span<const std::byte> part) { bytes.insert(bytes.end(), part.begin(), part.end()); });
  REQUIRE_FALSE(found_bad(bytes));
  std::mt19937_64 random(2);
  std::vector<std::size_t> missed;
  for (int i = 0; i < how_many(50); ++i) {
    const auto bit = random() % (bytes.size() * 8);
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    if (!found_bad(bytes)) missed.push_back(bit);
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
  }
  CHECK(missed.empty());
}

TEST_CASE("autoload passes over a damaged snapshot, wherever the damage is", "[checkpoint][damage][snapshot]") {
  const temporary_directory dir;
  take_two_snapshots(dir.path());
  const auto newest = dir / "snapshot_iter_2";
  const auto sound = bytes_of(newest);
  REQUIRE(resumed_iteration(dir.path()) == 2);
  std::mt19937_64 random(3);
  for (int i = 0; i < how_many(100); ++i) {
    auto damaged = sound;
    const auto at = random() % sound.size();
    CAPTURE(i, at);
    const bool cut = i % 4 == 0;
    if (cut)
      damaged.resize(at);
    else
      damaged[at] ^= std::byte{1} << (random() % 8);
    put(newest, damaged);
    REQUIRE(resumed_iteration(dir.path()) == 1);
  }
  put(newest, sound);
  REQUIRE(resumed_iteration(dir.path()) == 2);
}

}  // namespace checkpoint_damage_test
