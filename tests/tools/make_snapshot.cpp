// Writes a small snapshot as a training does, without LibTorch: for the tests of the command-line tool.
//
//   rondo_make_snapshot FILE ITERATION [MADE_BY] [mid_iteration]

#include <cstdlib>
#include <fstream>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "rondo/checkpoint/encoder.hpp"

using namespace rondo;

namespace {

checkpoint::tensor_descriptor matrix(std::vector<std::int64_t> sizes, std::vector<std::int64_t> strides) {
  return {checkpoint::scalar_type::float32, "0", 6, 0, std::move(sizes), std::move(strides), true, true};
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() < 2) return EXIT_FAILURE;
  checkpoint::snapshot_info info;
  info.iteration = std::stoll(arguments[1]);
  info.epoch = info.iteration / 10;
  info.made_by = arguments.size() > 2 ? arguments[2] : "snapshot";
  info.mid_iteration = arguments.size() > 3;
  info.libraries = {{"rondo", "0.1.0"}, {"torch", "1.13.1"}};

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
