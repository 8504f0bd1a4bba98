// Writes a small snapshot as a training does, without LibTorch: for the tests of the command-line tool.
//
//   rondo_make_snapshot FILE ITERATION [MADE_BY] [mid_iteration]
//   rondo_make_snapshot DIRECTORY ITERATION MADE_BY sharded RANKS

#include <cstdlib>
#include <fstream>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "rondo/checkpoint/encoder.hpp"
#include "support/sharded_files.hpp"

using namespace rondo;

namespace {

checkpoint::tensor_descriptor matrix(std::vector<std::int64_t> sizes, std::vector<std::int64_t> strides) {
  return {checkpoint::scalar_type::float32, "0", 6, 0, std::move(sizes), std::move(strides), true, true};
}

testing::byte_vector numbers_from(std::int64_t first, std::size_t count) {
  std::vector<float> numbers(count);
  std::iota(numbers.begin(), numbers.end(), static_cast<float>(first));
  const auto bytes = std::as_bytes(std::span(numbers));
  return {bytes.begin(), bytes.end()};
}

/// A tensor [101, 300] in pieces of 7 rows, tied to another; one [40, 6] of which ranks 0 and 1 have three columns
/// each; and a small one.
void write_sharded(const std::string& directory, const checkpoint::snapshot_info& info, int ranks) {
  using checkpoint::tree;
  testing::sharded_files files(ranks, 1, checkpoint::scalar_type::float32);
  const auto weight = files.by_rows(101, 300, numbers_from(info.iteration, 101 * 300), 7);
  const auto left = files.piece(0, {0, 0}, {40, 3}, numbers_from(info.iteration, 120));
  const auto right = files.piece(ranks - 1, {0, 3}, {40, 3}, numbers_from(info.iteration + 1000, 120));
  tree::dict state{{"models", tree::dict{{"main", tree::dict{{"weight", weight}, {"tied", weight}}}}},
                   {"moment", files.tensor({40, 6}, {left, right})},
                   {"list", tree::list{files.small(testing::to_bytes("abc")), 1.5}},
                   {"_start_iteration", info.iteration}};
  files.write_all(directory, std::move(state), info);
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() < 2) return EXIT_FAILURE;
  checkpoint::snapshot_info info;
  info.iteration = std::stoll(arguments[1]);
  info.epoch = info.iteration / 10;
  info.made_by = arguments.size() > 2 ? arguments[2] : "snapshot";
  const bool sharded = arguments.size() > 4 && arguments[3] == "sharded";
  info.mid_iteration = arguments.size() > 3 && !sharded;
  info.libraries = {{"rondo", "0.1.0"}, {"torch", "1.13.1"}};
  if (sharded) {
    write_sharded(arguments[0], info, std::stoi(arguments[4]));
    return EXIT_SUCCESS;
  }

  std::vector<float> numbers(6);
  std::iota(numbers.begin(), numbers.end(), static_cast<float>(info.iteration));
  using checkpoint::tree;
  const tree state = tree::dict{
      {"models",
       tree::dict{{"main", tree::dict{{"weight", matrix({2, 3}, {3, 1})}, {"tied", matrix({3, 2}, {1, 3})}}}}},
      {"_start_iteration", info.iteration}};
  const checkpoint::encoder file(state, {{"0", std::as_bytes(std::span(numbers))}}, info);
  std::ofstream out(arguments[0], std::ios::binary);
  file.write([&](std::span<const std::byte> bytes) {
    out.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  });
  return out.flush() ? EXIT_SUCCESS : EXIT_FAILURE;
}
