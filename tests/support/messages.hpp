#pragma once

#include <string>
#include <string_view>

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

/// What the `Error` that `f` throws says, or "" when it throws none.
template <class Error, class F>
std::string refusal_of(F f) {
  try {
    f();
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

inline bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

}  // namespace rondo::testing
