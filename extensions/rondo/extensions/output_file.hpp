#pragma once

#include <string>

namespace rondo::detail {

/// The option `filename` of an extension that writes one file. Throws `option_error` if it does not name a file
/// directly in the loop's out directory.
void require_file_name(const std::string& name);

}  // namespace rondo::detail
