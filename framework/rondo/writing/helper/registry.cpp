#include "rondo/writing/helper/registry.hpp"

#include <fmt/format.h>
#include <link.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <set>
#include <string>

#include "rondo/error.hpp"
#include "rondo/writing/helper/service.hpp"

namespace rondo::writing::helper {

namespace {

// Both are used while the program's variables are being made.
std::set<std::string, std::less<>>& names() {
  static std::set<std::string, std::less<>> all;
  return all;
}
bool& too_late() {
  static bool it_is = false;
  return it_is;
}

// Whether this library is part of the program that would be started again, and not of a plugin that another one loads:
// that other one would just run a second time.
bool in_the_program() {
  const auto here = reinterpret_cast<std::uintptr_t>(&names);
  bool found = false;
  auto look = [&](const dl_phdr_info& program) {
    for (int i = 0; i < program.dlpi_phnum; ++i) {
      const auto& part = program.dlpi_phdr[i];
      const auto begin = static_cast<std::uintptr_t>(program.dlpi_addr + part.p_vaddr);
      if (part.p_type == PT_LOAD && here >= begin && here - begin < part.p_memsz) found = true;
    }
  };
  // The program itself comes first.
  const auto first = [](dl_phdr_info* program, std::size_t, void* data) {
    (*static_cast<decltype(look)*>(data))(*program);
    return 1;
  };
  ::dl_iterate_phdr(first, &look);
  return found;
}

[[noreturn]] void serve_and_exit(const image_savefun& save) {
  // Programs that the function starts are no helpers.
  ::unsetenv(savefun_variable);
  const int status = serve([&](const path& target, const mapped_image& image, const std::string&) {
    return write_atomically_by_path(*posix_file_system(), target,
                                    [&](const path& temporary) { save(target, temporary, image.bytes()); });
  });
  std::_Exit(status);
}

// Made after the variables of the program itself, which are linked before the library: who comes by here as a helper
// has not found his function, and must not go on to main.
const bool main_is_next = [] {
  if (std::getenv(savefun_variable) != nullptr && in_the_program()) std::_Exit(3);
  return too_late() = true;
}();

}  // namespace

void add_savefun(const std::string& name, const image_savefun& save) {
  if (const char* const mine = std::getenv(savefun_variable); mine != nullptr && name == mine) serve_and_exit(save);
  if (name.empty() || name.find('\0') != std::string::npos)
    throw option_error("register_savefun", fmt::format("\"{}\"", name), "a name, without null characters");
  if (names().contains(name))
    throw option_error("register_savefun", fmt::format("\"{}\" a second time", name), "a name for each function");
  if (!too_late() && in_the_program()) names().insert(name);
}

void require_savefun(const savefun& wanted) {
  static_cast<void>(main_is_next);
  if (!wanted || wanted.format() || names().contains(wanted.name())) return;
  const auto name = wanted.name().empty() ? std::string("my_format") : std::string(wanted.name());
  throw option_error(
      "savefun",
      wanted.name().empty()
          ? "a function that only this process knows"
          : fmt::format("\"{}\", which was registered in a plugin, behind Rondo's own objects, or after main had begun",
                        name),
      fmt::format("a registered one, as a helper process runs it: write, at namespace scope, \"inline const auto {} = "
                  "rondo::writing::register_savefun(\"{}\", function);\"",
                  name, name));
}

}  // namespace rondo::writing::helper
