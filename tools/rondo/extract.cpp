#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <optional>

#include "commands.hpp"
#include "elements.hpp"
#include "input.hpp"
#include "npy.hpp"
#include "output.hpp"
#include "text.hpp"
#include "values.hpp"
#include "walk.hpp"

namespace rondo::tool {

namespace {

using checkpoint::tensor_descriptor;
using checkpoint::tree;

constexpr std::size_t written_at_once = std::size_t{1} << 20;
constexpr std::size_t longest_file_name = 200;

struct extract_options {
  std::string file;
  std::string name;
  std::string out;
  bool list = false;
  bool force = false;
};

void print_names(const tree& state) {
  walk(state, [](const std::string& path, const tree& node) {
    if (!is_container(node)) fmt::print("{}\t{}\n", printable(path), value_text(node));
    return true;
  });
}

/// The first node that reads like this, as it is or as `--list` prints it.
const tree* find(const tree& state, const std::string& name) {
  const tree* found = nullptr;
  walk(state, [&](const std::string& path, const tree& node) {
    if (found == nullptr && (path == name || printable(path) == name)) found = &node;
    return found == nullptr;
  });
  return found;
}

// Names come out of files, so they must not lead out of the folder or hide in it.
std::string file_name_for(const std::string& name) {
  const bool plain = !name.empty() && name.size() <= longest_file_name && name.front() != '.' && name.front() != '-' &&
                     name.find('/') == std::string::npos && printable(name) == name;
  if (!plain) throw unusable_error(fmt::format("'{}' makes no good file name; choose one with -o", name));
  return name + ".npy";
}

void write_to_stdout(std::span<const std::byte> bytes) {
  if (std::fwrite(bytes.data(), 1, bytes.size(), stdout) != bytes.size())
    throw std::system_error(errno, std::generic_category(), "cannot write to stdout");
}

/// Writes to the file that was asked for; "-" is stdout.
void write(const extract_options& given, const std::string& target, std::uint64_t size, const producer& produce) {
  if (given.out == "-") {
    if (::isatty(STDOUT_FILENO) == 1) throw unusable_error("binary data is not written to a terminal; use -o FILE");
    return produce(write_to_stdout);
  }
  require_free(target, given.force);
  write_file(target, size, produce);
}

void extract_tensor(const checkpoint::reader& file, const tensor_descriptor& tensor, const extract_options& given) {
  sound_storages storages(file, "checking " + printable(given.file));
  elements values(tensor, storages.of(tensor));
  const auto header = npy_header(tensor);
  const auto target = given.out.empty() ? file_name_for(given.name) : given.out;
  write(given, target, header.size() + byte_size(tensor), [&](const checkpoint::byte_sink& append) {
    append(std::as_bytes(std::span(header)));
    for (auto piece = values.next(written_at_once); !piece.empty(); piece = values.next(written_at_once)) append(piece);
  });
  if (tensor.dtype == checkpoint::scalar_type::bfloat16)
    complain(
        "NumPy has no bfloat16: the file holds its bits as uint16; (a.astype('u4') << 16).view('f4') are the values");
  if (given.out != "-") fmt::print("{}: {}\n", printable(target), describe(tensor));
}

/// Text and bytes as they are for files and programs; what a terminal shows is printable.
void extract_value(const tree& value, const extract_options& given) {
  std::span<const std::byte> raw;
  const auto* text = value.get_if<std::string>();
  const auto* bytes = value.get_if<state::bytes>();
  std::string line;
  if (text != nullptr)
    raw = std::as_bytes(std::span(*text));
  else if (bytes != nullptr)
    raw = bytes->data;
  else
    raw = std::as_bytes(std::span(line = value_text(value)));
  if (!given.out.empty()) {
    const auto produce = [raw](const checkpoint::byte_sink& append) { append(raw); };
    return write(given, given.out, raw.size(), produce);
  }
  const bool terminal = ::isatty(STDOUT_FILENO) == 1;
  if (bytes != nullptr && terminal) throw unusable_error("binary data is not written to a terminal; use -o FILE");
  if (text != nullptr && terminal)
    fmt::print("{}\n", printable(*text));
  else
    write_to_stdout(raw);
  if (bytes == nullptr && !(text != nullptr && terminal)) fmt::print("\n");
}

outcome extract(const extract_options& given) {
  const auto file = open_checkpoint(given.file);
  if (given.list) {
    print_names(file.state());
    return outcome::good;
  }
  const auto* node = find(file.state(), given.name);
  if (node == nullptr)
    throw unusable_error(fmt::format("'{}' holds nothing named '{}'; 'rondo extract --list' tells what there is",
                                     given.file, given.name));
  if (is_container(*node))
    throw unusable_error(
        fmt::format("'{}' is a {}; 'rondo extract --list' tells what is in it", given.name, value_text(*node)));
  if (const auto* tensor = node->get_if<tensor_descriptor>())
    extract_tensor(file, *tensor, given);
  else
    extract_value(*node, given);
  return outcome::good;
}

}  // namespace

action extract_command(CLI::App& app) {
  auto* const command = app.add_subcommand("extract", "Take one tensor out as a NumPy file, or print one value");
  const auto given = std::make_shared<extract_options>();
  command->add_option("FILE", given->file, "a snapshot, or what torch.save wrote")->required();
  auto* const name = command->add_option("NAME", given->name, "dotted path, such as models.main.0.weight");
  command->add_option("-o,--out", given->out, "where to (default: NAME.npy; values are printed); - is stdout");
  command->add_flag("--force", given->force, "replace a file that is there already");
  auto* const list = command->add_flag("--list", given->list, "print all names instead")->excludes(name);
  return [given, name, list] {
    if (name->count() == 0 && list->count() == 0)
      throw unusable_error("say which NAME; 'rondo extract --list FILE' tells what there is");
    return extract(*given);
  };
}

}  // namespace rondo::tool
