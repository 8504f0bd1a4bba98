#include "rondo/extensions/output_file.hpp"

#include "rondo/error.hpp"

namespace rondo::detail {

void require_file_name(const std::string& name) {
  const bool is_folder = name.empty() || name == "." || name == "..";
  if (is_folder || name.find('/') != std::string::npos || name.find('\0') != std::string::npos)
    throw option_error("filename", "'" + name + "'", "the name of a file in the loop's out directory, without '/'");
}

}  // namespace rondo::detail
