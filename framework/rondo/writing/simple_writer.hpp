#pragma once

#include <memory>

#include "rondo/writing/writer.hpp"

namespace rondo::writers {

/// Writes on the calling (training) thread, straight from live memory: no copy of the state, no other thread, and
/// training waits until the file is durable. A write cannot be cancelled once it was started.
/// A serializer of the user's own (write_request::save) needs `files` to be the file system of the operating system.
[[nodiscard]] std::shared_ptr<writing::writer> simple(
    std::shared_ptr<writing::file_system> files = writing::posix_file_system());

}  // namespace rondo::writers
