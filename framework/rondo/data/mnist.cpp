#include "rondo/data/mnist.hpp"

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <system_error>

#include "rondo/data/idx.hpp"
#include "rondo/error.hpp"

namespace rondo::data {

namespace {

namespace fs = std::filesystem;

constexpr const char* fashion_advice =
    "on Debian, 'apt install dataset-fashion-mnist' puts Fashion-MNIST into /usr/share/datasets/fashion-mnist";
constexpr const char* digits_advice =
    "Debian has no package with the digits of MNIST, but 'apt install dataset-fashion-mnist' gives Fashion-MNIST, in "
    "the "
    "same format, in /usr/share/datasets/fashion-mnist";

fs::path find_file(const fs::path& root, const std::string& name, const char* advice) {
  const auto looked_for = fmt::format("looked for '{0}' and '{0}.gz' in that folder; {1}", name, advice);
  std::error_code code;
  const auto folder = fs::status(root, code);
  if (!fs::exists(folder))
    throw io_error("open the data set", root, code ? code : make_error_code(std::errc::no_such_file_or_directory),
                   looked_for);
  if (!fs::is_directory(folder))
    throw io_error("open the data set", root, make_error_code(std::errc::not_a_directory), looked_for);
  for (const auto& candidate : {root / name, root / (name + ".gz")})
    if (fs::exists(candidate, code)) return candidate;
  throw io_error("open the data set", root / name, code ? code : make_error_code(std::errc::no_such_file_or_directory),
                 looked_for);
}

at::Tensor read_bytes(const fs::path& path, std::int64_t dimensions) {
  auto tensor = read_idx(path);
  if (tensor.scalar_type() != at::kByte)
    throw format_error(path.string(), 2, fmt::format("expected bytes, found {}", c10::toString(tensor.scalar_type())));
  if (tensor.dim() != dimensions)
    throw format_error(path.string(), 3, fmt::format("expected {} dimensions, found {}", dimensions, tensor.dim()));
  return tensor;
}

void check(const mnist_options& options) {
  if (!std::isfinite(options.mean)) throw option_error("mean", fmt::format("{}", options.mean), "a finite number");
  if (!std::isfinite(options.std) || options.std <= 0)
    throw option_error("std", fmt::format("{}", options.std), "a finite number above 0");
}

at::Tensor to_pixels(const at::Tensor& bytes, const mnist_options& options) {
  auto pixels = bytes.to(at::kFloat).div_(255.0).unsqueeze_(1);
  if (options.mean != 0.0) pixels.sub_(options.mean);
  if (options.std != 1.0) pixels.div_(options.std);
  return pixels;
}

tensor_dataset read(const fs::path& root, split part, const mnist_options& options, const char* advice) {
  check(options);
  const std::string prefix = part == split::train ? "train" : "t10k";
  const auto image_path = find_file(root, prefix + "-images-idx3-ubyte", advice);
  const auto label_path = find_file(root, prefix + "-labels-idx1-ubyte", advice);
  const auto images = read_bytes(image_path, 3);
  const auto labels = read_bytes(label_path, 1);
  if (images.size(0) != labels.size(0))
    throw format_error(
        label_path.string(), 4,
        fmt::format("{} labels, but '{}' has {} images", labels.size(0), image_path.string(), images.size(0)));
  return {to_pixels(images, options), labels.to(at::kLong)};
}

}  // namespace

tensor_dataset fashion_mnist(const fs::path& root, split part, const mnist_options& options) {
  return read(root, part, options, fashion_advice);
}

tensor_dataset mnist(const fs::path& root, split part, const mnist_options& options) {
  return read(root, part, options, digits_advice);
}

}  // namespace rondo::data
