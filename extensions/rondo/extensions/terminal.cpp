#include "rondo/extensions/terminal.hpp"

#include <unistd.h>

#include <cstdlib>
#include <iostream>

namespace rondo::extensions {

bool is_terminal(const std::ostream& out) {
  const char* kind = std::getenv("TERM");
  if (kind == nullptr || std::string_view(kind) == "dumb") return false;
  if (&out == &std::cout) return ::isatty(STDOUT_FILENO) == 1;
  if (&out == &std::cerr || &out == &std::clog) return ::isatty(STDERR_FILENO) == 1;
  return false;
}

}  // namespace rondo::extensions
