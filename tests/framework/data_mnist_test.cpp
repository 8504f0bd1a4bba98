#include "rondo/data/mnist.hpp"

#include <ATen/Functions.h>

#include <cmath>
#include <cstdio>
#include <limits>
#include <sstream>
#include <string>

#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/idx_files.hpp"

namespace data_mnist_test {

using namespace rondo;
using namespace rondo::test;

namespace {

std::string python(const idx_folder& folder, const std::string& program) {
  const auto script = folder / "program.py";
  write_plain(script, program);
  std::FILE* pipe = ::popen(("/usr/bin/python3 '" + script.string() + "'").c_str(), "r");
  if (pipe == nullptr) throw std::runtime_error("cannot start /usr/bin/python3");
  std::string output;
  char buffer[4096];
  while (const auto got = std::fread(buffer, 1, sizeof buffer, pipe)) output.append(buffer, got);
  if (::pclose(pipe) != 0) throw std::runtime_error("/usr/bin/python3 failed");
  return output;
}

// Prints, decoded without Rondo: the counts, the label histogram, and for every 997th image its label, the sum of its
// bytes and the sum of bytes times position.
const char* const decoder = R"(
import gzip, struct
root, part = "ROOT", "PART"
images = gzip.open(f"{root}/{part}-images-idx3-ubyte.gz").read()
labels = gzip.open(f"{root}/{part}-labels-idx1-ubyte.gz").read()
magic, n, h, w = struct.unpack(">IIII", images[:16])
assert magic == 0x803 and struct.unpack(">II", labels[:8]) == (0x801, n)
images, labels = images[16:], labels[8:]
print(n, h, w, *[labels.count(bytes([c])) for c in range(10)])
for i in range(0, n, 997):
    pixels = images[i * h * w:(i + 1) * h * w]
    print(labels[i], sum(pixels), sum(k * p for k, p in enumerate(pixels)))
)";

std::string describe(const data::tensor_dataset& set) {
  std::ostringstream out;
  const auto& all = set.tensors();
  out << set.size() << ' ' << all.data.size(2) << ' ' << all.data.size(3);
  for (int label = 0; label < 10; ++label) out << ' ' << all.target.eq(label).sum().item<std::int64_t>();
  out << '\n';
  for (std::int64_t i = 0; i < set.size(); i += 997) {
    const auto e = set[i];
    const auto bytes = e.data.to(at::kDouble).mul(255).round().to(at::kLong).flatten();
    out << e.target.item<std::int64_t>() << ' ' << bytes.sum().item<std::int64_t>() << ' '
        << (bytes * at::arange(bytes.numel(), at::kLong)).sum().item<std::int64_t>() << '\n';
  }
  return out.str();
}

std::string replaced(std::string text, const std::string& what, const std::string& with) {
  return text.replace(text.find(what), what.size(), with);
}

std::string decoded(const std::string& part) {
  const idx_folder folder;
  return python(folder, replaced(replaced(decoder, "ROOT", data::fashion_mnist_root), "PART", part));
}

void write_small(const idx_folder& folder) {
  write_plain(folder / "train-images-idx3-ubyte",
              idx_header(0x08, {2, 1, 3}) + std::string("\x00\x33\x66\x99\xcc\xff", 6));
  write_gzip(folder / "train-labels-idx1-ubyte.gz", idx_header(0x08, {2}) + std::string("\x07\x01", 2));
}

std::string problem_of(const std::filesystem::path& root, data::split part = data::split::train,
                       const data::mnist_options& options = {}) {
  try {
    static_cast<void>(data::mnist(root, part, options));
  } catch (const error& e) {
    return e.what();
  }
  return "none";
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("Fashion-MNIST is what Python decodes", "[data][mnist]") {
  SECTION("training images") {
    const auto set = data::fashion_mnist();
    REQUIRE(set.size() == 60000);
    REQUIRE(set.tensors().data.sizes() == at::IntArrayRef({60000, 1, 28, 28}));
    REQUIRE(set.tensors().data.scalar_type() == at::kFloat);
    REQUIRE(set.tensors().target.scalar_type() == at::kLong);
    REQUIRE(set.tensors().data.min().item<float>() == 0.0F);
    REQUIRE(set.tensors().data.max().item<float>() == 1.0F);
    REQUIRE(set.tensors().target.bincount().equal(at::full({10}, 6000, at::kLong)));
    REQUIRE(describe(set) == decoded("train"));
  }
  SECTION("test images") {
    const auto set = data::fashion_mnist(data::fashion_mnist_root, data::split::test);
    REQUIRE(set.size() == 10000);
    REQUIRE(set.tensors().target.bincount().equal(at::full({10}, 1000, at::kLong)));
    REQUIRE(describe(set) == decoded("t10k"));
  }
}

TEST_CASE("the documented statistics normalise Fashion-MNIST", "[data][mnist]") {
  const auto set = data::fashion_mnist(data::fashion_mnist_root, data::split::train, data::fashion_mnist_normalised);
  REQUIRE(std::abs(set.tensors().data.mean().item<double>()) < 1e-3);
  REQUIRE(std::abs(set.tensors().data.std().item<double>() - 1.0) < 1e-3);
}

TEST_CASE("a folder in MNIST's format is read, plain and compressed files mixed", "[data][mnist]") {
  const idx_folder folder;
  write_small(folder);
  SECTION("to [0, 1]") {
    const auto set = data::mnist(folder.path());
    REQUIRE(set.tensors().data.equal(
        at::tensor({0.0F, 51.0F, 102.0F, 153.0F, 204.0F, 255.0F}).div(255).reshape({2, 1, 1, 3})));
    REQUIRE(set.tensors().target.equal(at::tensor({7, 1}, at::kLong)));
  }
  SECTION("normalised") {
    const auto set = data::mnist(folder.path(), data::split::train, {.mean = 0.5, .std = 0.25});
    REQUIRE(set.tensors().data.allclose(at::tensor({-2.0F, -1.2F, -0.4F, 0.4F, 1.2F, 2.0F}).reshape({2, 1, 1, 3})));
  }
  SECTION("the plain file wins") {
    write_plain(folder / "train-labels-idx1-ubyte", idx_header(0x08, {2}) + std::string("\x03\x04", 2));
    REQUIRE(data::mnist(folder.path()).tensors().target.equal(at::tensor({3, 4}, at::kLong)));
  }
}

TEST_CASE("missing data says what was looked for and where to get it", "[data][mnist]") {
  const idx_folder folder;
  SECTION("no folder") {
    try {
      static_cast<void>(data::fashion_mnist(folder / "nowhere"));
      FAIL("read a folder that does not exist");
    } catch (const io_error& e) {
      REQUIRE(e.path() == folder / "nowhere");
      REQUIRE(e.code() == std::errc::no_such_file_or_directory);
      REQUIRE(contains(e.what(), "'train-images-idx3-ubyte' and 'train-images-idx3-ubyte.gz'"));
      REQUIRE(contains(e.what(), "apt install dataset-fashion-mnist"));
    }
  }
  SECTION("no labels for the test part") {
    write_plain(folder / "t10k-images-idx3-ubyte", idx_header(0x08, {0, 1, 1}));
    REQUIRE(contains(problem_of(folder.path(), data::split::test), "'t10k-labels-idx1-ubyte.gz'"));
  }
  SECTION("a file in place of the folder") {
    write_plain(folder / "file", "");
    REQUIRE(contains(problem_of(folder / "file"), "Not a directory"));
  }
}

TEST_CASE("files that do not fit together are refused", "[data][mnist]") {
  const idx_folder folder;
  write_small(folder);
  REQUIRE(problem_of(folder.path()) == "none");
  SECTION("fewer labels than images") {
    write_plain(folder / "train-labels-idx1-ubyte", idx_header(0x08, {1}) + "\x01");
    REQUIRE(contains(problem_of(folder.path()), "1 labels, but"));
  }
  SECTION("images that are no images") {
    write_plain(folder / "train-images-idx3-ubyte", idx_header(0x08, {2}) + "\x01\x02");
    REQUIRE(contains(problem_of(folder.path()), "expected 3 dimensions, found 1"));
  }
  SECTION("labels that are no bytes") {
    write_plain(folder / "train-labels-idx1-ubyte", idx_header(0x0b, {2}) + std::string("\x00\x01\x00\x02", 4));
    REQUIRE(contains(problem_of(folder.path()), "expected bytes"));
  }
}

TEST_CASE("options that make no sense are refused by name", "[data][mnist]") {
  const idx_folder folder;
  write_small(folder);
  const double nan = std::numeric_limits<double>::quiet_NaN();
  REQUIRE(contains(problem_of(folder.path(), data::split::train, {.mean = nan, .std = 1}), "option 'mean'"));
  REQUIRE(contains(problem_of(folder.path(), data::split::train, {.mean = 0, .std = 0}), "option 'std' = 0"));
  REQUIRE(contains(problem_of(folder.path(), data::split::train, {.mean = 0, .std = -1}), "option 'std' = -1"));
}

}  // namespace data_mnist_test
