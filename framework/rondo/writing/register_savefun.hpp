#pragma once

#include <filesystem>
#include <string>

#include "rondo/writing/savefun.hpp"

namespace rondo::writing {

/// Makes `save` a function that the writers with processes can run:
///
///     inline const auto sums = rondo::writing::register_savefun("sums", save_sums);
///     …
///     loop | snapshot({.writer = writers::process({.savefun = sums})});
///
/// at namespace scope, in a program or in what is linked into it, not in a plugin that it loads: its helper process is
/// the same program, started again, which comes by this line before its main, runs the function for every file that it
/// is given, and never gets to main. So what the function needs must be made before. `save` may be a `formats::format`.
/// Other writers take the result as well. Throws option_error for a name that there is already.
[[nodiscard]] savefun register_savefun(std::string name, savefun save);

/// What `save` makes of a snapshot in staging memory, whose tensors it is shown where they are. What it throws is a
/// savefun_error that names the target, unless it is an error of Rondo's.
[[nodiscard]] image_savefun saving_image(savefun save);

/// Calls it, with errors likewise.
void save_by(const savefun& save, const path& target, const path& temporary, const state::value& state);

}  // namespace rondo::writing
