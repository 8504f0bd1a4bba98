#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "commands.hpp"
#include "input.hpp"
#include "text.hpp"

namespace rondo::tool {

namespace {

std::string kind_of(const checkpoint::reader& file) {
  if (file.info()) return fmt::format("snapshot of iteration {}", file.info()->info.iteration);
  return file.records().has_checksums() ? "checkpoint of torch.save" : "checkpoint of torch.save without checksums";
}

outcome verify_file(const std::string& named) {
  const auto file = open_checkpoint(named);
  const auto found = problems_of(file);
  for (const auto& problem : found) complain(problem);
  const auto verdict = found.empty() ? std::string("good") : "DAMAGED, " + count_of(found.size(), "problem");
  fmt::print("{}: {} ({}, {}, {})\n", printable(named), verdict, kind_of(file),
             count_of(file.records().entries().size(), "record"), human_size(file.records().file().size()));
  return found.empty() ? outcome::good : outcome::bad;
}

}  // namespace

action verify_command(CLI::App& app) {
  auto* const command = app.add_subcommand("verify", "Check every byte of files against their checksums");
  const auto files = std::make_shared<std::vector<std::string>>();
  command->add_option("FILE", *files, "snapshots, or what torch.save wrote")->required();
  return [files] {
    auto worst = outcome::good;
    for (const auto& file : *files) {
      const auto result = run([&] { return verify_file(file); });
      worst = std::max(worst, result);
    }
    return worst;
  };
}

}  // namespace rondo::tool
