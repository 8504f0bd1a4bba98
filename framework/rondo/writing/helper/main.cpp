// The program of the helper processes that write Rondo's own formats (see writers::process).
#include "rondo/checkpoint/file_format.hpp"
#include "rondo/checkpoint/image.hpp"
#include "rondo/writing/atomic_file.hpp"
#include "rondo/writing/helper/service.hpp"
#include "rondo/writing/save_encoded.hpp"

namespace {

using namespace rondo::writing;

write_receipt write_checkpoint(const path& target, const helper::mapped_image& image) {
  const auto produce = [&](const append_function& append) {
    rondo::checkpoint::seal(image.bytes(), image.spots(),
                            [&](std::span<const std::byte> part) { append.stable(part); });
  };
  return write_atomically(*posix_file_system(), target, image.bytes().size(), produce);
}

write_receipt write_in(const path& target, const helper::mapped_image& image, const std::string& format) {
  if (format.empty()) return write_checkpoint(target, image);
  const auto described = rondo::checkpoint::described_format(format);
  return write_atomically_by_path(*posix_file_system(), target, [&](const path& temporary) {
    save_image(*described, target, temporary, image.bytes());
  });
}

}  // namespace

int main() {
  helper::close_what_was_not_given();
  return helper::serve(write_in);
}
