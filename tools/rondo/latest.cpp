#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <memory>

#include "commands.hpp"
#include "rondo/checkpoint/catalog.hpp"
#include "snapshots.hpp"
#include "text.hpp"

namespace rondo::tool {

namespace {

constexpr const char* not_used = "not used";

struct latest_options {
  std::string directory;
  std::string made_by;
};

outcome print_latest(const latest_options& given) {
  const checkpoint::catalog found(given.directory);
  explain_rejected(found, not_used);
  for (const auto& snapshot : found.snapshots()) {
    if (!given.made_by.empty() && snapshot.info.made_by != given.made_by) continue;
    if (!is_sound_snapshot(snapshot, not_used)) continue;
    const auto path = snapshot.path.string();
    fmt::print("{}\n", ::isatty(STDOUT_FILENO) == 1 ? printable(path) : path);
    return outcome::good;
  }
  complain(fmt::format("there is no good snapshot in '{}'", given.directory));
  return outcome::bad;
}

}  // namespace

action latest_command(CLI::App& app) {
  auto* const command = app.add_subcommand("latest", "Print the path of the newest snapshot in a folder that is sound");
  const auto given = std::make_shared<latest_options>();
  command->add_option("DIR", given->directory, "a folder with snapshots")->required();
  command->add_option("--made-by", given->made_by, "only snapshots of the extension of this name");
  return [given] { return print_latest(*given); };
}

}  // namespace rondo::tool
