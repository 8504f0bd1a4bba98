#pragma once

#include <string>
#include <string_view>

#include "rondo/writing/savefun.hpp"

/// The functions that a helper process can run because the program, started again, comes by them before its main.
namespace rondo::writing::helper {

/// The variable that tells a program that it is a helper, and of which function.
inline constexpr const char* savefun_variable = "RONDO_WRITING_SAVEFUN";

/// Does not return where this process is the helper of this function: it then serves its trainer and exits.
/// Throws option_error for a name that there is already.
void add_savefun(const std::string& name, const image_savefun& save);

/// Throws option_error, with the line to write, for a function that a helper process would not find.
void require_savefun(const savefun& wanted);

}  // namespace rondo::writing::helper
