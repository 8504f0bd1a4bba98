#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <vector>

#include "commands.hpp"
#include "rondo/checkpoint/catalog.hpp"
#include "rondo/error.hpp"
#include "rondo/writing/file_system.hpp"
#include "snapshots.hpp"
#include "text.hpp"

namespace rondo::tool {

namespace {

using checkpoint::cataloged_snapshot;

constexpr const char* left_alone = "not counted, left alone";

struct prune_options {
  std::string directory;
  std::string made_by;
  std::size_t last = 0;
  bool dry_run = false;
};

/// What a snapshot extension writes beside the file that its trigger has asked for, to go on from. It is none of a
/// series.
constexpr std::string_view beside = ".preempted";

/// The snapshots of one extension, newest first.
using series = std::vector<cataloged_snapshot>;

/// What is older than the `last` newest sound ones. Damaged ones among or above these are not counted and stay: what
/// has become of them should be looked at by somebody.
series superseded(const series& all, std::size_t last) {
  std::size_t kept = 0;
  for (std::size_t i = 0; i < all.size(); ++i) {
    if (kept == last) return {all.begin() + static_cast<std::ptrdiff_t>(i), all.end()};
    if (!is_sound_snapshot(all[i], left_alone)) continue;
    fmt::print("keeps {} (iteration {})\n", printable(all[i].path.string()), all[i].info.iteration);
    ++kept;
  }
  return {};
}

class remover {
 public:
  remover(checkpoint::catalog& found, bool dry_run) : found_(found), dry_run_(dry_run) {}

  void remove(const cataloged_snapshot& snapshot) {
    const auto text = fmt::format("{} (iteration {}, {})", printable(snapshot.path.string()), snapshot.info.iteration,
                                  human_size(snapshot.size));
    try {
      if (dry_run_)
        fmt::print("would remove {}\n", text);
      else if (found_.remove(snapshot))
        fmt::print("removed {}\n", text);
      else
        return fmt::print("leaves {}: another file has got its name meanwhile, or it is gone\n", text);
      ++files_;
      bytes_ += snapshot.size;
    } catch (const io_error& problem) {
      complain(problem.what());
      result_ = outcome::unusable;
    }
  }

  [[nodiscard]] outcome finish(const std::string& directory) const {
    if (!dry_run_ && files_ > 0) writing::posix_file_system()->sync_directory(directory);
    fmt::print("{} {}, {}\n", dry_run_ ? "would remove" : "removed", count_of(files_, "snapshot"), human_size(bytes_));
    return result_;
  }

 private:
  checkpoint::catalog& found_;
  bool dry_run_;
  outcome result_ = outcome::good;
  std::uint64_t files_ = 0;
  std::uint64_t bytes_ = 0;
};

outcome prune(const prune_options& given) {
  checkpoint::catalog found(given.directory);
  explain_rejected(found, left_alone);
  std::map<std::string, series> by_maker;
  for (const auto& snapshot : found.snapshots())
    if ((given.made_by.empty() || snapshot.info.made_by == given.made_by) && !snapshot.path.string().ends_with(beside))
      by_maker[snapshot.info.made_by].push_back(snapshot);
  remover work(found, given.dry_run);
  for (const auto& [maker, all] : by_maker)
    for (const auto& snapshot : superseded(all, given.last)) work.remove(snapshot);
  return work.finish(given.directory);
}

}  // namespace

action prune_command(CLI::App& app) {
  auto* const command = app.add_subcommand("prune", "Remove old snapshots from a folder");
  const auto given = std::make_shared<prune_options>();
  command->add_option("DIR", given->directory, "a folder with snapshots")->required();
  command->add_option("--last", given->last, "how many of the newest sound ones stay, of each extension")
      ->required()
      ->check(CLI::Range(std::size_t{1}, std::size_t{1'000'000'000}));
  command->add_flag("--dry-run", given->dry_run, "only say what would be removed");
  command->add_option("--made-by", given->made_by, "only snapshots of the extension of this name");
  return [given] { return prune(*given); };
}

}  // namespace rondo::tool
