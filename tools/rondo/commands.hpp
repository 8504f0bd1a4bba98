#pragma once

#include <functional>

#include "outcome.hpp"

namespace CLI {
class App;
}

/// The commands. Each function describes its command line to `app` and returns what is to be done when it was chosen,
/// to be called after the command line has been parsed. Results go to stdout, everything else to stderr.
/// What cannot be done is thrown (see `run`).
namespace rondo::tool {

using action = std::function<outcome()>;

[[nodiscard]] action inspect_command(CLI::App& app);
[[nodiscard]] action verify_command(CLI::App& app);
[[nodiscard]] action extract_command(CLI::App& app);
[[nodiscard]] action convert_command(CLI::App& app);
[[nodiscard]] action consolidate_command(CLI::App& app);
[[nodiscard]] action diff_command(CLI::App& app);
[[nodiscard]] action prune_command(CLI::App& app);
[[nodiscard]] action latest_command(CLI::App& app);
[[nodiscard]] action run_ranks_command(CLI::App& app);

/// Calls `act` and turns what it throws into a message on stderr and an outcome: `bad` for damaged bytes, `unusable`
/// for everything else.
[[nodiscard]] outcome run(const action& act);

}  // namespace rondo::tool
