#include "rondo/data/image_folder.hpp"

#include <ATen/Functions.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <utility>

#include "rondo/error.hpp"

namespace rondo::data {

namespace fs = std::filesystem;

namespace {

constexpr std::array<std::string_view, 3> readable = {".png", ".jpg", ".jpeg"};
constexpr std::array<std::string_view, 7> other_images = {".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp"};

constexpr const char* layout_advice = "expected a folder for each class, with PNG or JPEG files in it";

std::string extension(const fs::path& path) {
  auto text = path.extension().string();
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

bool is_among(const auto& list, const std::string& text) {
  return std::find(list.begin(), list.end(), text) != list.end();
}

[[noreturn]] void fail(const char* operation, const fs::path& path, std::error_code code,
                       const std::string& advice = "") {
  throw io_error(operation, path, code, advice);
}

/// What stands in a folder, sorted by name; without hidden names.
std::vector<fs::path> listed(const fs::path& directory) {
  std::error_code code;
  std::vector<fs::path> paths;
  fs::directory_iterator at(directory, code);
  while (!code && at != fs::directory_iterator()) {
    if (!at->path().filename().string().starts_with('.')) paths.push_back(at->path());
    at.increment(code);
  }
  if (code) fail("list", directory, code, layout_advice);
  std::sort(paths.begin(), paths.end(), [](const fs::path& a, const fs::path& b) { return a.native() < b.native(); });
  return paths;
}

fs::file_status status_of(const fs::path& path) {
  std::error_code code;
  const auto status = fs::status(path, code);
  if (status.type() == fs::file_type::none) fail("look at", path, code);
  return status;
}

/// Looks for the images of one class.
class class_scan {
 public:
  explicit class_scan(const fs::path& directory) {
    enter(directory);
    std::sort(found_.begin(), found_.end());
    if (found_.empty())
      fail("find images of a class", directory, make_error_code(std::errc::no_such_file_or_directory), layout_advice);
  }

  /// Each as its folder and its name.
  [[nodiscard]] const std::vector<std::pair<std::string, std::string>>& found() const noexcept { return found_; }

 private:
  void enter(const fs::path& directory) {
    std::error_code code;
    const auto real = fs::canonical(directory, code);
    if (code) fail("follow", directory, code);
    const auto [before, is_new] = visited_.emplace(real.native(), directory);
    if (!is_new)
      fail("take images from", directory, make_error_code(std::errc::too_many_symbolic_link_levels),
           fmt::format("it is the same folder as '{}'; remove one of the symbolic links", before->second.string()));
    for (const auto& path : listed(directory)) visit(path);
  }

  void visit(const fs::path& path) {
    const auto status = status_of(path);
    if (fs::is_directory(status)) return enter(path);
    const auto kind = extension(path);
    if (is_among(other_images, kind))
      throw format_error(path.string(), 0,
                         fmt::format("{} images cannot be read here; convert it to PNG, or remove it", kind));
    if (!is_among(readable, kind)) return;
    if (!fs::is_regular_file(status)) {
      const auto reason = fs::exists(status) ? std::errc::invalid_argument : std::errc::no_such_file_or_directory;
      fail("read", path, make_error_code(reason), "it has the name of an image, and is no file");
    }
    found_.emplace_back(path.parent_path().native(), path.filename().native());
  }

  std::map<std::string, fs::path> visited_;
  std::vector<std::pair<std::string, std::string>> found_;
};

}  // namespace

struct image_folder::image {
  fs::path path;
  std::int64_t target;
};

struct image_folder::contents {
  image_options options;
  std::vector<std::string> classes;
  std::vector<image> images;

  void add_class(const fs::path& directory) {
    const auto target = static_cast<std::int64_t>(classes.size());
    classes.push_back(directory.filename().string());
    const class_scan scan(directory);
    for (const auto& [folder, name] : scan.found()) images.push_back({fs::path(folder) / name, target});
  }
};

image_folder::image_folder(fs::path directory, image_options options) {
  detail::check_image_options(options);
  auto found = std::make_shared<contents>(contents{options, {}, {}});
  for (const auto& path : listed(directory))
    if (fs::is_directory(status_of(path))) found->add_class(path);
  if (found->classes.empty())
    fail("find classes", directory, make_error_code(std::errc::no_such_file_or_directory), layout_advice);
  contents_ = std::move(found);
}

std::int64_t image_folder::size() const {
  return contents_ == nullptr ? 0 : static_cast<std::int64_t>(contents_->images.size());
}

const image_folder::image& image_folder::at(std::int64_t index) const {
  if (index < 0 || index >= size())
    throw std::out_of_range(fmt::format("image {} of a folder with {} images", index, size()));
  return contents_->images[static_cast<std::size_t>(index)];
}

example image_folder::operator[](std::int64_t index) const {
  const auto& image = at(index);
  return {read_image(image.path, contents_->options),
          at::scalar_tensor(image.target, at::TensorOptions().dtype(at::kLong))};
}

fs::path image_folder::path(std::int64_t index) const { return at(index).path; }

std::int64_t image_folder::target(std::int64_t index) const { return at(index).target; }

const std::vector<std::string>& image_folder::classes() const {
  static const std::vector<std::string> none;
  return contents_ == nullptr ? none : contents_->classes;
}

}  // namespace rondo::data
