// The program of the helper processes that write Rondo's own format (see writers::process).
#include "rondo/checkpoint/image.hpp"
#include "rondo/writing/atomic_file.hpp"
#include "rondo/writing/helper/service.hpp"

namespace {

using namespace rondo::writing;

write_receipt write_checkpoint(const path& target, const helper::mapped_image& image) {
  const auto produce = [&](const append_function& append) {
    rondo::checkpoint::seal(image.bytes(), image.spots(),
                            [&](std::span<const std::byte> part) { append.stable(part); });
  };
  return write_atomically(*posix_file_system(), target, image.bytes().size(), produce);
}

}  // namespace

int main() {
  helper::close_what_was_not_given();
  return helper::serve(write_checkpoint);
}
