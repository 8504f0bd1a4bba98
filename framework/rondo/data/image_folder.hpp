#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <range/v3/range/access.hpp>
#include <range/v3/view/facade.hpp>
#include <string>
#include <vector>

#include "rondo/data/example.hpp"
#include "rondo/data/image.hpp"
#include "rondo/data/stage.hpp"

namespace rondo::data {

/// A folder of images, with a folder for each class in it, as torchvision's ImageFolder reads it:
///
///     directory/cat/1.png, directory/cat/more/2.jpg, directory/dog/1.jpeg, …
///
/// Classes are the folders in `directory`, in the order of their names' bytes. The images of a class are the files that
/// end in .png, .jpg or .jpeg (in capitals, too), in its folder and all folders below, in the order of their folder's
/// path, then of their name. So the order is the same everywhere, and torchvision's. Unlike torchvision, names that
/// begin with a dot are passed over. Symbolic links are followed.
///
/// A random access view of examples: `data` is float32 [channels, height, width] in [0, 1], see `read_image`, and
/// `target` the index of the class, an int64 without dimensions. An image is read and decoded each time it is asked
/// for; only the paths are held in memory, shared by copies. Several threads may read at once.
class image_folder : public ranges::view_facade<image_folder, ranges::finite> {
 public:
  /// No images.
  image_folder() = default;
  /// Looks for the images, without opening them. Throws `option_error` for bad options; `io_error` when a folder cannot
  /// be read, no class or a class without images is found, or symbolic links reach one folder of a class twice, as
  /// links in a circle do; `format_error` for an image of a format that cannot be read here (.bmp, .gif, .pgm, .ppm,
  /// .tif, .tiff, .webp). Files of other kinds are passed over.
  explicit image_folder(std::filesystem::path directory, image_options options = {});

  [[nodiscard]] std::int64_t size() const;
  /// Example `index`. Throws `std::out_of_range` when there is no such image, and what `read_image` throws.
  [[nodiscard]] example operator[](std::int64_t index) const;
  /// Where image `index` is. Throws `std::out_of_range` when there is no such image.
  [[nodiscard]] std::filesystem::path path(std::int64_t index) const;
  /// The class of image `index`, without reading it. Throws `std::out_of_range` when there is no such image.
  [[nodiscard]] std::int64_t target(std::int64_t index) const;
  /// The names of the classes; a target is an index into them.
  [[nodiscard]] const std::vector<std::string>& classes() const;

 private:
  friend ranges::range_access;
  friend detail::index_cursor<image_folder>;

  struct contents;
  struct image;

  [[nodiscard]] const image& at(std::int64_t index) const;
  [[nodiscard]] example element(std::int64_t index) const { return (*this)[index]; }
  [[nodiscard]] auto begin_cursor() const { return detail::index_cursor<image_folder>(this, 0); }
  [[nodiscard]] auto end_cursor() const { return detail::index_cursor<image_folder>(this, size()); }

  std::shared_ptr<const contents> contents_;
};

}  // namespace rondo::data
