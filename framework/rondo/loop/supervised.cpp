#include "rondo/loop/supervised.hpp"

#include <c10/util/Type.h>

#include <string>

#include "rondo/error.hpp"

namespace rondo::detail {

void throw_other_type(const char* what, const std::type_info& found, const std::type_info& expected) {
  throw option_error(what, "a " + c10::demangle(found.name()),
                     "what the model is trained with, a " + c10::demangle(expected.name()) +
                         "; give the evaluation a function of its own for other batches");
}

}  // namespace rondo::detail
