#include "rondo/checkpoint/verify.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <optional>

#include "rondo/checkpoint/crc32.hpp"
#include "rondo/checkpoint/layout.hpp"
#include "rondo/error.hpp"

namespace rondo::checkpoint {

namespace {

// Called with each problem; may throw to end the search.
using report = std::function<void(const format_error&)>;

class checker {
  static constexpr std::uint64_t window_size = 16 * 1024;

 public:
  checker(const reader& file, const report& found, const record_names* unread = nullptr)
      : file_(file), records_(file.records()), found_(found), unread_(unread) {}

  void check() {
    if (file_.info())
      check_own(*file_.info());
    else
      check_foreign();
    check_tensors(file_.state());
  }

 private:
  void problem(std::uint64_t offset, const std::string& text) { found_(format_error(file_.where(), offset, text)); }

  void check_foreign() {
    for (const auto& entry : records_.entries()) attempt([&] { check_foreign(entry); });
  }

  void check_foreign(const archive::entry& entry) {
    file_.require_readable(entry.header_offset, entry.limit - entry.size);
    const auto offset = static_cast<std::uint64_t>(records_.data(entry).data() - records_.file().data());
    if (!records_.has_checksums() || is_unread(entry.path)) return;
    if (checksum(offset, entry.size) != entry.crc32)
      problem(entry.header_offset, fmt::format("record '{}' is damaged: wrong checksum", entry.path));
  }

  void check_own(const manifest& about) {
    if (!matches_directory(about)) return;
    const auto layout = rebuild(about.format_version);
    if (!layout) return;
    std::vector<std::uint32_t> checksums;
    for (const auto& record : about.records) checksums.push_back(record.crc32);
    checksums.push_back(crc32(file_.record(manifest_record)));
    for (std::size_t i = 0; i < checksums.size(); ++i) check_record(*layout, layout->records()[i], checksums[i]);
    expected_.clear();
    layout->append_directory(expected_, checksums);
    compare(layout->directory_offset(), "the directory");
  }

  bool matches_directory(const manifest& about) {
    const auto& entries = records_.entries();
    if (entries.size() != about.records.size() + 1) {
      problem(0, fmt::format("the file has {} records, its manifest tells of {}", entries.size(),
                             about.records.size() + 1));
      return false;
    }
    for (std::size_t i = 0; i < entries.size(); ++i) {
      const bool is_manifest = i == about.records.size();
      const std::string_view name = is_manifest ? manifest_record : std::string_view(about.records[i].name);
      if (entries[i].path == fmt::format("{}/{}", file_.root(), name) &&
          (is_manifest || entries[i].size == about.records[i].size))
        continue;
      problem(entries[i].header_offset,
              fmt::format("record '{}' of {} bytes is not what the manifest has in its place ('{}')", entries[i].path,
                          entries[i].size, name));
      return false;
    }
    return true;
  }

  // Nothing when the file's records cannot have come out of a plan.
  std::optional<plan> rebuild(std::int64_t format_version) {
    std::vector<record_size> sizes;
    for (const auto& entry : records_.entries())
      sizes.push_back({std::string(entry.path.substr(file_.root().size() + 1)), entry.size});
    try {
      plan layout(file_.root(), sizes, format_version);
      if (layout.file_size() == records_.file().size()) return layout;
      problem(records_.file().size(),
              fmt::format("the file has {} bytes instead of {}", records_.file().size(), layout.file_size()));
    } catch (const option_error& impossible) {
      problem(0, impossible.what());
    }
    return std::nullopt;
  }

  void check_record(const plan& layout, const plan::record& place, std::uint32_t checksum) {
    expected_.clear();
    layout.append_header(expected_, place);
    compare(place.header_offset, fmt::format("the header of record '{}'", place.path));
    if (!is_unread(place.path) && this->checksum(place.data_offset, place.size) != checksum)
      problem(place.data_offset, fmt::format("record '{}' is damaged: wrong checksum", place.path));
    expected_.clear();
    layout.append_descriptor(expected_, place, checksum);
    compare(place.descriptor_offset(), fmt::format("the data descriptor of record '{}'", place.path));
  }

  void compare(std::uint64_t offset, const std::string& what) {
    const auto actual = part(offset, expected_.size());
    const auto [difference, _] = std::ranges::mismatch(actual, expected_);
    if (difference != actual.end())
      problem(offset + static_cast<std::uint64_t>(difference - actual.begin()), what + " is damaged");
  }

  void check_tensors(const tree& node) {
    if (const auto* tensor = node.get_if<tensor_descriptor>()) return attempt([&] { (void)file_.storage(*tensor); });
    const auto* list = node.get_if<tree::list>();
    if (const auto* tuple = node.get_if<tree::tuple>()) list = &tuple->items;
    if (list) std::ranges::for_each(*list, [this](const tree& item) { check_tensors(item); });
    if (const auto* dict = node.get_if<tree::dict>())
      for (const auto& item : *dict) check_tensors(item.second);
  }

  bool is_unread(std::string_view path) const {
    return unread_ != nullptr && path.starts_with(file_.root() + "/") &&
           unread_->contains(path.substr(file_.root().size() + 1));
  }

  // Parts are asked for in the order of the file and are often small, so a little more than they are is read at once.
  std::span<const std::byte> part(std::uint64_t offset, std::uint64_t size) {
    if (offset < window_offset_ || offset + size > window_offset_ + window_.size()) {
      const auto wanted = std::min(std::max(size, window_size), records_.file().size() - offset);
      std::vector<std::byte> next(static_cast<std::size_t>(wanted));
      file_.read(offset, next);
      window_ = std::move(next);
      window_offset_ = offset;
    }
    return std::span<const std::byte>(window_).subspan(static_cast<std::size_t>(offset - window_offset_),
                                                       static_cast<std::size_t>(size));
  }
  std::uint32_t checksum(std::uint64_t offset, std::uint64_t size) {
    return size > window_size ? file_.checksum(offset, size) : crc32(part(offset, size));
  }

  template <class Action>
  void attempt(Action action) {
    std::optional<format_error> caught;
    try {
      action();
    } catch (const format_error& error) {
      caught = error;
    }
    if (caught) found_(*caught);
  }

  const reader& file_;
  const archive& records_;
  const report& found_;
  const record_names* unread_;
  std::vector<std::byte> expected_;
  std::vector<std::byte> window_;
  std::uint64_t window_offset_ = 0;
};

}  // namespace

void verify(const reader& file) {
  const report stop = [](const format_error& problem) { throw problem; };
  checker(file, stop).check();
}

void verify_except(const reader& file, const record_names& unread) {
  const report stop = [](const format_error& problem) { throw problem; };
  checker(file, stop, &unread).check();
}

std::vector<std::string> problems(const reader& file) {
  std::vector<std::string> all;
  const report collect = [&](const format_error& problem) { all.emplace_back(problem.what()); };
  checker(file, collect).check();
  return all;
}

}  // namespace rondo::checkpoint
