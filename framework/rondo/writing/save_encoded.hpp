#pragma once

#include <cstddef>
#include <span>

#include "rondo/checkpoint/file_format.hpp"
#include "rondo/writing/file_system.hpp"

namespace rondo::writing {

/// Writes `content` to a file at a path at which nothing exists, and closes it. Brings nothing to stable storage.
/// Throws io_error, and what `content` throws; then the file may be there in part.
void save_encoded(const path& file, const checkpoint::encoded_file& content);

/// The same for the state in the image of the checkpoint of `target`, in another format.
void save_image(const checkpoint::file_format& format, const path& target, const path& temporary,
                std::span<const std::byte> image);

}  // namespace rondo::writing
