#include "rondo/writing/save_encoded.hpp"

namespace rondo::writing {

void save_encoded(const path& file, const checkpoint::encoded_file& content) {
  const auto output = posix_file_system()->create(file, content.size);
  content.write([&](std::span<const std::byte> piece) { output->append(piece); });
  output->close();
}

void save_image(const checkpoint::file_format& format, const path& target, const path& temporary,
                std::span<const std::byte> image) {
  save_encoded(temporary, checkpoint::encode_image(format, image, target.string()));
}

}  // namespace rondo::writing
