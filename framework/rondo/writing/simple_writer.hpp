#pragma once

#include <memory>

#include "rondo/writing/writer.hpp"

namespace rondo::writers {

struct simple_options {
  std::shared_ptr<writing::file_system> files = writing::posix_file_system();
  /// The format of the files, if it is not Rondo's own; it runs on the training thread, with the live state.
  writing::savefun savefun = nullptr;
};

/// Writes on the calling (training) thread, straight from live memory: no copy of the state, no other thread, and
/// training waits until the file is durable. A write cannot be cancelled once it was started.
[[nodiscard]] std::shared_ptr<writing::writer> simple(simple_options options = {});

}  // namespace rondo::writers
