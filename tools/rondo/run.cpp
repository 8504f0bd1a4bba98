#include <fmt/format.h>

#include <cerrno>
#include <cstdio>
#include <new>
#include <system_error>

#include "commands.hpp"
#include "rondo/error.hpp"
#include "text.hpp"

namespace rondo::tool {

namespace {

// A full disk behind stdout shows only here.
void flush_stdout() {
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
    throw std::system_error(errno, std::generic_category(), "cannot write to stdout");
}

}  // namespace

outcome run(const action& act) {
  try {
    const auto result = act();
    flush_stdout();
    return result;
  } catch (const format_error& damaged) {
    complain(damaged.what());
    return outcome::bad;
  } catch (const std::bad_alloc&) {
    complain("there is not enough memory for this");
  } catch (const std::exception& problem) {
    complain(problem.what());
  }
  return outcome::unusable;
}

}  // namespace rondo::tool
