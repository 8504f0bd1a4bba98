#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "commands.hpp"
#include "input.hpp"
#include "sharded.hpp"
#include "text.hpp"

namespace rondo::tool {

namespace {

std::string kind_of(const checkpoint::reader& file) {
  if (file.info()) return fmt::format("snapshot of iteration {}", file.info()->info.iteration);
  return file.records().has_checksums() ? "checkpoint of torch.save" : "checkpoint of torch.save without checksums";
}

/// `what`: what it is, as "snapshot of iteration 200".
outcome report(const std::string& named, const std::vector<std::string>& problems, const std::string& what,
               std::uint64_t records, std::uint64_t bytes) {
  for (const auto& problem : problems) complain(problem);
  const auto verdict = problems.empty() ? std::string("good") : "DAMAGED, " + count_of(problems.size(), "problem");
  fmt::print("{}: {} ({}, {}, {})\n", printable(named), verdict, what, count_of(records, "record"), human_size(bytes));
  return problems.empty() ? outcome::good : outcome::bad;
}

outcome verify_directory(const std::string& named, const std::filesystem::path& directory) {
  const auto found = check_sharded(directory);
  std::string what = "sharded snapshot";
  if (found.problems.empty()) {
    const auto snapshot = checkpoint::sharded_reader::open(directory);
    what += fmt::format(" of iteration {} by {}", snapshot.info().iteration,
                        count_of(static_cast<std::uint64_t>(snapshot.world_size()), "rank"));
  }
  return report(named, found.problems, what, found.records, found.bytes);
}

outcome verify_file(const std::string& named) {
  if (const auto directory = sharded_directory(named)) return verify_directory(named, *directory);
  const auto file = open_checkpoint(named);
  return report(named, problems_of(file), kind_of(file), file.records().entries().size(), file.records().file().size());
}

/// Whether it is surely something else: a text, such as a log, or a directory without what makes a sharded snapshot. A
/// checkpoint whose beginning is damaged is neither.
bool is_no_checkpoint(const std::filesystem::path& named) {
  std::error_code failed;
  if (std::filesystem::is_directory(named, failed)) return !checkpoint::is_sharded(named);
  std::array<char, 4096> head{};
  std::ifstream in(named, std::ios::binary);
  in.read(head.data(), head.size());
  const std::string_view read(head.data(), static_cast<std::size_t>(in.gcount()));
  return !read.empty() && std::ranges::all_of(read, [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte >= 0x20 ? byte != 0x7f : byte == '\n' || byte == '\r' || byte == '\t';
  });
}

}  // namespace

action verify_command(CLI::App& app) {
  auto* const command = app.add_subcommand("verify", "Check every byte of files against their checksums");
  const auto files = std::make_shared<std::vector<std::string>>();
  command->add_option("FILE", *files, "snapshots, sharded ones too, or what torch.save wrote")->required();
  return [files] {
    auto worst = outcome::good;
    for (const auto& file : *files) {
      if (files->size() > 1 && is_no_checkpoint(file)) {
        fmt::print("{}: skipped, no checkpoint\n", printable(file));
        continue;
      }
      const auto result = run([&] { return verify_file(file); });
      worst = std::max(worst, result);
    }
    return worst;
  };
}

}  // namespace rondo::tool
