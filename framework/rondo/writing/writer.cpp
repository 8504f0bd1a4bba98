#include "rondo/writing/writer.hpp"

#include <fmt/format.h>

namespace rondo::writing {

void require_format(std::string_view writer, const savefun* own_format, bool asked_for) {
  if (own_format == nullptr || asked_for) return;
  throw option_error("savefun",
                     fmt::format("of the writer '{}', which is written through by one that hides it", writer),
                     "a writer around it whose own_format() and memory() are those of the one inside");
}

}  // namespace rondo::writing
