#pragma once

#include <stdexcept>

namespace rondo::tool {

/// The program's exit status. Where several files give several outcomes, the highest one counts.
enum class outcome : int {
  good = 0,      ///< sound, equal, done
  bad = 1,       ///< damaged or different, or no good snapshot where one was asked for
  unusable = 2,  ///< wrong usage, or something that cannot be read or written
};

/// Why nothing could be done: a file that is no file, a name that is not there. Becomes `outcome::unusable`.
class unusable_error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace rondo::tool
