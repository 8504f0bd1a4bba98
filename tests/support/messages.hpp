#pragma once

#include <string>

#include "support/catch.hpp"

namespace rondo::testing {

/// What the `Error` that `f` must throw says.
template <class Error, class F>
std::string message_of(F f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  FAIL("nothing of the expected type was thrown");
  return "";
}

inline bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace rondo::testing
