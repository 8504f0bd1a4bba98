#include "snapshots.hpp"

#include <fmt/format.h>

#include "input.hpp"
#include "rondo/error.hpp"
#include "sharded.hpp"
#include "text.hpp"

namespace rondo::tool {

bool is_sound_snapshot(const checkpoint::cataloged_snapshot& snapshot, std::string_view verdict) {
  try {
    const auto problems = checkpoint::is_sharded(snapshot.path) ? check_sharded(snapshot.path).problems
                                                                : problems_of(checkpoint::reader::open(snapshot.path));
    for (const auto& problem : problems) complain(fmt::format("{}: {}", verdict, problem));
    return problems.empty();
  } catch (const error& problem) {
    complain(fmt::format("{}: {}", verdict, problem.what()));
    return false;
  }
}

void explain_rejected(const checkpoint::catalog& found, std::string_view verdict) {
  for (const auto& file : found.rejected()) complain(fmt::format("{}: {}", verdict, file.reason));
}

}  // namespace rondo::tool
