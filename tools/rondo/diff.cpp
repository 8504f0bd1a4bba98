#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <bit>
#include <cmath>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "commands.hpp"
#include "compare.hpp"
#include "elements.hpp"
#include "input.hpp"
#include "sharded.hpp"
#include "text.hpp"
#include "values.hpp"
#include "walk.hpp"

namespace rondo::tool {

namespace {

using checkpoint::tensor_descriptor;
using checkpoint::tree;

constexpr std::size_t compared_at_once = std::size_t{1} << 20;

/// A state of which the bytes are checked before they are used.
class side {
 public:
  virtual ~side() = default;
  [[nodiscard]] virtual const tree& state() const = 0;
  /// What the tensor's storage holds, until the next call.
  [[nodiscard]] virtual std::span<const std::byte> bytes_of(const tensor_descriptor& tensor) = 0;
};

class file_side final : public side {
 public:
  file_side(const std::filesystem::path& named, std::string what)
      : file_(open_checkpoint(named)), storages_(file_, std::move(what)) {}
  [[nodiscard]] const tree& state() const override { return file_.state(); }
  [[nodiscard]] std::span<const std::byte> bytes_of(const tensor_descriptor& tensor) override {
    return storages_.of(tensor);
  }

 private:
  checkpoint::reader file_;
  sound_storages storages_;
};

/// As one file would have it; one tensor at a time is in memory.
class sharded_side final : public side {
 public:
  explicit sharded_side(const std::filesystem::path& directory)
      : from_(checkpoint::sharded_reader::open(directory)), whole_(whole_state_of(from_)) {
    from_.require_all();
  }
  [[nodiscard]] const tree& state() const override { return whole_.state; }
  [[nodiscard]] std::span<const std::byte> bytes_of(const tensor_descriptor& tensor) override {
    const auto* const pieces = whole_.pieces_of(tensor);
    if (pieces == nullptr) return whole_.data_of(tensor);
    read_.resize(static_cast<std::size_t>(pieces->byte_size()));
    const std::vector<std::int64_t> from_the_beginning(pieces->sizes.size(), 0);
    from_.read(*pieces, from_the_beginning, pieces->sizes, read_);
    return read_;
  }

 private:
  checkpoint::sharded_reader from_;
  whole_state whole_;
  std::vector<std::byte> read_;
};

std::unique_ptr<side> open_side(const std::string& named, const std::string& what) {
  if (const auto directory = sharded_directory(named)) return std::make_unique<sharded_side>(*directory);
  return std::make_unique<file_side>(named, what);
}

/// Compares two states and prints what differs, a line each.
class comparison {
 public:
  comparison(side& a, side& b, double tolerance) : a_(a), b_(b), tolerance_(tolerance) {}

  /// The number of differences.
  std::uint64_t run() {
    compare("", a_.state(), b_.state());
    return differences_;
  }

  [[nodiscard]] std::string summary() const {
    return fmt::format("{} and {}", count_of(tensors_, "tensor"), count_of(values_, "other value"));
  }

 private:
  void compare(const std::string& path, const tree& a, const tree& b) {
    if (a.type_name() != b.type_name()) return differ(path, fmt::format("{} and {}", value_text(a), value_text(b)));
    if (const auto* dict = a.get_if<tree::dict>()) return compare_dicts(path, *dict, *b.get_if<tree::dict>());
    if (const auto* list = a.get_if<tree::list>()) return compare_lists(path, *list, *b.get_if<tree::list>());
    if (const auto* tuple = a.get_if<tree::tuple>())
      return compare_lists(path, tuple->items, b.get_if<tree::tuple>()->items);
    if (const auto* tensor = a.get_if<tensor_descriptor>())
      return compare_tensors(path, *tensor, *b.get_if<tensor_descriptor>());
    compare_values(path, a, b);
  }

  void compare_dicts(const std::string& path, const tree::dict& a, const tree::dict& b) {
    for (const auto& [key, value] : a) {
      const auto below = join(path, key.str());
      if (const auto* other = b.find(key))
        compare(below, value, *other);
      else
        only_in("first", below, value);
    }
    for (const auto& [key, value] : b)
      if (!a.contains(key)) only_in("second", join(path, key.str()), value);
  }

  void compare_lists(const std::string& path, const tree::list& a, const tree::list& b) {
    for (std::size_t i = 0; i < std::max(a.size(), b.size()); ++i) {
      const auto below = join(path, std::to_string(i));
      if (i >= b.size())
        only_in("first", below, a[i]);
      else if (i >= a.size())
        only_in("second", below, b[i]);
      else
        compare(below, a[i], b[i]);
    }
  }

  void compare_tensors(const std::string& path, const tensor_descriptor& a, const tensor_descriptor& b) {
    ++tensors_;
    if (a.dtype != b.dtype || a.sizes != b.sizes)
      return differ(path, fmt::format("{} {} and {} {}", name(a.dtype), shape_text(a), name(b.dtype), shape_text(b)));
    elements left(a, a_.bytes_of(a));
    elements right(b, b_.bytes_of(b));
    difference found;
    for (auto piece = left.next(compared_at_once); !piece.empty(); piece = left.next(compared_at_once))
      found.add(a.dtype, piece, right.next(compared_at_once), tolerance_);
    if (found.different == 0) return;
    auto text = fmt::format("{} of {} differ, max abs difference {:.6g}", grouped(found.different),
                            count_of(numel(a), "element"), found.max_abs);
    if (found.with_nan > 0) text += fmt::format(", {} of them because of NaN", grouped(found.with_nan));
    differ(path, text);
  }

  void compare_values(const std::string& path, const tree& a, const tree& b) {
    ++values_;
    if (const auto* number = a.get_if<double>()) {
      const auto other = *b.get_if<double>();
      const bool same_bits = std::bit_cast<std::uint64_t>(*number) == std::bit_cast<std::uint64_t>(other);
      const bool near = tolerance_ > 0 && std::abs(*number - other) <= tolerance_;
      if (!same_bits && !near) differ(path, fmt::format("{} and {}", value_text(a), value_text(b)));
    } else if (a != b) {
      const auto texts = fmt::format("{} and {}", value_text(a), value_text(b));
      differ(path, value_text(a) == value_text(b) ? texts + " with other content" : texts);
    }
  }

  void only_in(const char* which, const std::string& path, const tree& node) {
    differ(path, fmt::format("only in the {} file: {}", which, value_text(node)));
  }

  void differ(const std::string& path, const std::string& how) {
    ++differences_;
    fmt::print("{}: {}\n", path.empty() ? "(root)" : printable(path), how);
  }

  static std::string join(const std::string& path, const std::string& key) {
    return path.empty() ? key : path + "." + key;
  }

  side& a_;
  side& b_;
  double tolerance_;
  std::uint64_t differences_ = 0;
  std::uint64_t tensors_ = 0;
  std::uint64_t values_ = 0;
};

struct diff_options {
  std::string a;
  std::string b;
  double tolerance = 0;
};

}  // namespace

action diff_command(CLI::App& app) {
  auto* const command = app.add_subcommand("diff", "Compare what two files hold");
  const auto given = std::make_shared<diff_options>();
  command->add_option("A", given->a, "a snapshot, sharded or not, or what torch.save wrote")->required();
  command->add_option("B", given->b, "another one")->required();
  command
      ->add_option("--tolerance", given->tolerance,
                   "numbers that differ by no more than this are equal (default: bits must be equal)")
      ->check(CLI::NonNegativeNumber);
  return [given] {
    const auto a = open_side(given->a, "comparing, first file");
    const auto b = open_side(given->b, "comparing, second file");
    comparison work(*a, *b, given->tolerance);
    const auto differences = work.run();
    if (differences != 0) {
      complain(fmt::format("'{}' and '{}' are different: {}", given->a, given->b, count_of(differences, "difference")));
      return outcome::bad;
    }
    fmt::print("equal: {}\n", work.summary());
    return outcome::good;
  };
}

}  // namespace rondo::tool
