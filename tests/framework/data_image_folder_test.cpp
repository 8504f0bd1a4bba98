#include "rondo/data/image_folder.hpp"

#include <sys/stat.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "rondo/data/batch.hpp"
#include "rondo/data/prefetch.hpp"
#include "rondo/data/shuffle.hpp"
#include "rondo/error.hpp"
#include "support/catch.hpp"
#include "support/idx_files.hpp"
#include "support/images.hpp"
#include "support/messages.hpp"
#include "support/python.hpp"
#include "support/temporary_directory.hpp"

namespace data_image_folder_test {

using namespace rondo;
using namespace rondo::test;
using rondo::testing::contains;
using rondo::testing::message_of;
using rondo::testing::run_python;
using rondo::testing::temporary_directory;

namespace fs = std::filesystem;

namespace {

/// A folder of images that differ in one byte.
class image_tree {
 public:
  void add(const std::string& name) {
    fs::create_directories((root() / name).parent_path());
    write_png(root() / name, 1, 1, {static_cast<std::uint8_t>(++count_), 0, 0});
  }
  void add_other(const std::string& name) const {
    fs::create_directories((root() / name).parent_path());
    write_plain(root() / name, "no image");
  }
  void link(const std::string& target, const std::string& name) const { fs::create_symlink(target, root() / name); }

  [[nodiscard]] const fs::path& root() const { return folder_.path(); }

 private:
  temporary_directory folder_;
  int count_ = 0;
};

std::vector<std::string> names(const data::image_folder& images, const fs::path& root) {
  std::vector<std::string> all;
  for (std::int64_t i = 0; i < images.size(); ++i)
    all.push_back(images.path(i).lexically_relative(root).string() + " " + std::to_string(images.target(i)));
  return all;
}

template <class Error>
std::string refusal(const fs::path& root) {
  return message_of<Error>([&] { data::image_folder images(root); });
}

}  // namespace

TEST_CASE("each folder is a class, and each image an example of it", "[data][image_folder]") {
  image_tree tree;
  tree.add("dog/2.png");
  tree.add("cat/1.png");
  tree.add("dog/10.png");
  tree.add_other("readme.txt");
  tree.add_other("dog/notes.txt");
  const data::image_folder images(tree.root());
  static_assert(ranges::random_access_range<const data::image_folder>);
  static_assert(ranges::view_<data::image_folder>);
  REQUIRE(images.classes() == std::vector<std::string>{"cat", "dog"});
  REQUIRE(names(images, tree.root()) == std::vector<std::string>{"cat/1.png 0", "dog/10.png 1", "dog/2.png 1"});
  const std::vector<float> reds = {2, 3, 1};
  std::size_t i = 0;
  for (const data::example& e : images) {
    REQUIRE(e.data.sizes() == at::IntArrayRef({3, 1, 1}));
    REQUIRE(e.data[0].item<float>() * 255 == Approx(reds[i]));
    REQUIRE(e.target.dim() == 0);
    REQUIRE(e.target.scalar_type() == at::kLong);
    REQUIRE(e.target.item<std::int64_t>() == images.target(static_cast<std::int64_t>(i)));
    ++i;
  }
  REQUIRE(i == 3);
  REQUIRE(images[2].data[0].item<float>() * 255 == Approx(1));
  for (const std::int64_t outside : {-1, 3}) {
    REQUIRE_THROWS_AS(images[outside], std::out_of_range);
    REQUIRE_THROWS_AS(images.path(outside), std::out_of_range);
    REQUIRE_THROWS_AS(images.target(outside), std::out_of_range);
  }
  REQUIRE(data::image_folder().size() == 0);
  REQUIRE(data::image_folder().classes().empty());
}

TEST_CASE("the order is that of torchvision's ImageFolder", "[data][image_folder]") {
  image_tree tree;
  for (const auto* name :
       {"b/x/1.png", "b/x-1/1.png", "b/x/y/1.JPG", "b/x.png", "b/10.jpeg", "b/9.PnG", "B/1.png", "a b/1.png", "é/1.png",
        "z/1.png", "z/ä.png", "z/Z.png", "z/a.png.txt", "z/sub.png/1.png", "_/_.png"})
    tree.add(name);
  tree.link("../b/x", "a b/link");
  tree.link("../z/Z.png", "B/link.png");
  const data::image_folder images(tree.root(), {.channels = 1});
  // torchvision's documented way of looking: classes sorted, each walked with links followed, folders and names sorted.
  const auto judged = run_python(R"(
import json, os, sys
root = sys.argv[1]
classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
found = []
for target, name in enumerate(classes):
    for folder, _, files in sorted(os.walk(os.path.join(root, name), followlinks=True)):
        for file in sorted(files):
            if file.lower().endswith((".png", ".jpg", ".jpeg")):
                found.append(f"{os.path.relpath(os.path.join(folder, file), root)} {target}")
print(json.dumps([classes, found]))
)",
                                 {tree.root().string()});
  REQUIRE(judged.status == 0);
  const auto expected = nlohmann::json::parse(judged.output);
  REQUIRE(images.classes() == expected[0].get<std::vector<std::string>>());
  REQUIRE(names(images, tree.root()) == expected[1].get<std::vector<std::string>>());
  REQUIRE(images.size() == 17);
}

TEST_CASE("hidden names are passed over", "[data][image_folder]") {
  image_tree tree;
  tree.add("a/1.png");
  tree.add_other("a/._1.png");
  tree.add_other("a/.trash/2.png");
  tree.add_other(".ipynb_checkpoints/3.png");
  REQUIRE(names(data::image_folder(tree.root()), tree.root()) == std::vector<std::string>{"a/1.png 0"});
}

TEST_CASE("options are those of read_image, and batches hold images of one size", "[data][image_folder]") {
  image_tree tree;
  for (const auto* name : {"a/1.png", "a/2.png", "b/3.png"}) tree.add(name);
  write_png(tree.root() / "a/2.png", 3, 4, bytes(36, 51));
  auto batches = data::image_folder(tree.root(), {.channels = 1, .size = {{5, 6}}}) | data::batch(3);
  const data::example batch = *batches.begin();
  REQUIRE(batch.data.sizes() == at::IntArrayRef({3, 1, 5, 6}));
  REQUIRE(batch.data[1].sub(0.2).abs().max().item<float>() < 1e-6);
  REQUIRE(batch.target.equal(at::tensor({0, 0, 1}, at::kLong)));
  REQUIRE_THROWS_AS(data::image_folder(tree.root(), {.channels = 7}), option_error);
}

TEST_CASE("several threads read the same images", "[data][image_folder]") {
  image_tree tree;
  for (int i = 0; i < 20; ++i) tree.add((i % 2 == 0 ? "a/" : "b/") + std::to_string(i) + ".png");
  write_bytes(tree.root() / "b/photo.jpg", encode_jpeg(2, 2, bytes(12, 77)));
  const data::image_folder images(tree.root(), {.size = {{2, 2}}});
  const auto sum = [](const auto& range) {
    std::vector<double> sums;
    for (const data::example& e : range) sums.push_back(e.data.sum().template item<double>());
    return sums;
  };
  const auto expected = sum(images);
  SECTION("at once") {
    std::vector<std::vector<double>> found(3);
    std::vector<std::thread> threads;
    for (auto& each : found) threads.emplace_back([&, copy = images] { each = sum(copy); });
    for (auto& thread : threads) thread.join();
    for (const auto& each : found) REQUIRE(each == expected);
  }
  SECTION("for prefetch") {
    auto view = images | data::prefetch(4, 2);
    std::vector<double> found;
    for (auto&& e : view) found.push_back(e.data.sum().template item<double>());
    REQUIRE(found == expected);
  }
}

TEST_CASE("a damaged image is a format_error with its path when it is read", "[data][image_folder]") {
  image_tree tree;
  tree.add("a/1.png");
  tree.add_other("a/2.jpg");
  const data::image_folder images(tree.root());
  REQUIRE(images.size() == 2);
  REQUIRE(images[0].data.numel() == 3);
  try {
    static_cast<void>(images[1]);
    FAIL("read");
  } catch (const format_error& e) {
    REQUIRE(e.where() == (tree.root() / "a/2.jpg").string());
    REQUIRE(contains(e.what(), "neither a PNG nor a JPEG"));
  }
  SECTION("and one that has gone is an io_error") {
    fs::remove(tree.root() / "a/1.png");
    REQUIRE_THROWS_AS(images[0], io_error);
  }
}

TEST_CASE("symbolic links in a circle are refused by name", "[data][image_folder]") {
  image_tree tree;
  tree.add("a/sub/1.png");
  SECTION("to the folder above") {
    tree.link("..", "a/sub/up");
    const auto message = refusal<io_error>(tree.root());
    REQUIRE(contains(message, (tree.root() / "a/sub/up").string()));
    REQUIRE(contains(message, "the same folder as '" + (tree.root() / "a").string() + "'"));
  }
  SECTION("to itself") {
    tree.link("loop.png", "a/loop.png");
    REQUIRE(contains(refusal<io_error>(tree.root()), "a/loop.png"));
  }
  SECTION("to the same folder twice") {
    tree.link("sub", "a/twin");
    REQUIRE(contains(refusal<io_error>(tree.root()), "the same folder"));
  }
  SECTION("but two classes may have the same images") {
    tree.link("a", "b");
    REQUIRE(names(data::image_folder(tree.root()), tree.root()) ==
            std::vector<std::string>{"a/sub/1.png 0", "b/sub/1.png 1"});
  }
}

TEST_CASE("folders without the right content are refused", "[data][image_folder]") {
  image_tree tree;
  tree.add("a/1.png");
  SECTION("nothing there") { REQUIRE(contains(refusal<io_error>(tree.root() / "missing"), "a folder for each class")); }
  SECTION("a file") { REQUIRE(contains(refusal<io_error>(tree.root() / "a/1.png"), "a/1.png")); }
  SECTION("images without classes") { REQUIRE(contains(refusal<io_error>(tree.root() / "a"), "find classes")); }
  SECTION("a class without images") {
    tree.add_other("b/notes.txt");
    REQUIRE(contains(refusal<io_error>(tree.root()), "'" + (tree.root() / "b").string() + "'"));
  }
  SECTION("an image of a format that is not read") {
    tree.add_other("a/2.WebP");
    const auto message = refusal<format_error>(tree.root());
    REQUIRE(contains(message, (tree.root() / "a/2.WebP").string()));
    REQUIRE(contains(message, "convert it to PNG"));
  }
  SECTION("a link to an image that is not there") {
    tree.link("nowhere.png", "a/2.png");
    REQUIRE(contains(refusal<io_error>(tree.root()), "a/2.png"));
  }
  SECTION("a pipe with the name of an image") {
    REQUIRE(::mkfifo((tree.root() / "a/2.png").c_str(), 0600) == 0);
    REQUIRE(contains(refusal<io_error>(tree.root()), "is no file"));
  }
  SECTION("a link to a text that is not there, which is no image") {
    tree.link("nowhere.txt", "a/2.txt");
    REQUIRE(data::image_folder(tree.root()).size() == 1);
  }
}

}  // namespace data_image_folder_test
