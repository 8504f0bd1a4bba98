// rondo: looks at snapshots and other checkpoint files, and looks after them. docs/tool.md describes every command.

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <utility>
#include <vector>

#include "commands.hpp"
#include "rondo/version.hpp"

namespace {

using rondo::tool::outcome;

// Files are mapped. Where the disk fails under a mapping, or somebody shortens the file, the kernel sends this.
void end_on_unreadable_page(int) {
  constexpr char message[] =
      "rondo: a part of the file cannot be read: the disk is failing, or the file became shorter\n";
  const auto ignored = ::write(STDERR_FILENO, message, sizeof(message) - 1);
  static_cast<void>(ignored);
  ::_exit(static_cast<int>(outcome::unusable));
}

void set_up_signals() {
  std::signal(SIGBUS, end_on_unreadable_page);
  std::signal(SIGPIPE, SIG_DFL);  // `rondo inspect FILE | head` ends quietly
  std::signal(SIGXFSZ, SIG_IGN);  // a size limit is an error of write
}

}  // namespace

int main(int argc, char** argv) {
  set_up_signals();
  CLI::App app("Looks at snapshots and other PyTorch checkpoint files, and looks after them.", "rondo");
  app.set_version_flag("--version", fmt::format("rondo {}", rondo::version));
  app.footer("Exit status: 0 good or equal, 1 damaged or different, 2 wrong usage or unreadable.");
  app.require_subcommand(1);
  const std::vector<rondo::tool::action> actions = {
      rondo::tool::inspect_command(app), rondo::tool::verify_command(app),      rondo::tool::extract_command(app),
      rondo::tool::convert_command(app), rondo::tool::diff_command(app),        rondo::tool::prune_command(app),
      rondo::tool::latest_command(app),  rondo::tool::consolidate_command(app), rondo::tool::run_ranks_command(app)};
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& end) {
    return app.exit(end) == 0 ? 0 : static_cast<int>(outcome::unusable);
  }
  const auto subcommands = app.get_subcommands({});
  for (std::size_t i = 0; i < subcommands.size(); ++i)
    if (subcommands[i]->parsed()) return static_cast<int>(run(actions[i]));
  return static_cast<int>(outcome::unusable);
}
