#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <system_error>
#include <utility>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/writing/file_system.hpp"

namespace rondo::testing {

/// The operating system's file system on a disk on which something happens, `then`, whenever a file is to be created,
/// from the `nth` (from 1) on.
class bad_disk final : public writing::file_system {
 public:
  using happening = std::function<void(const writing::path& file)>;

  bad_disk(std::int64_t nth, happening then) : nth_(nth), then_(std::move(then)) {}

  std::unique_ptr<writing::output_file> create(const writing::path& file, std::uint64_t expected_size) override {
    if (++created_ >= nth_) then_(file);
    return below_->create(file, expected_size);
  }
  std::uint64_t sync_file(const writing::path& file) override { return below_->sync_file(file); }
  void rename(const writing::path& from, const writing::path& to) override { below_->rename(from, to); }
  bool remove(const writing::path& file) override { return below_->remove(file); }
  writing::file_kind kind(const writing::path& name) override { return below_->kind(name); }
  std::vector<writing::directory_entry> list(const writing::path& directory) override {
    return below_->list(directory);
  }
  writing::file_use use_of(const writing::path& file) override { return below_->use_of(file); }
  void sync_directory(const writing::path& directory) override { below_->sync_directory(directory); }
  bool create_directory(const writing::path& directory) override { return below_->create_directory(directory); }

 private:
  std::int64_t nth_;
  happening then_;
  std::atomic<std::int64_t> created_ = 0;
  std::shared_ptr<writing::file_system> below_ = writing::posix_file_system();
};

/// Such a happening.
inline bad_disk::happening fails_with(std::errc why) {
  return [why](const writing::path& file) {
    throw io_error("write", file, std::make_error_code(why), "use another disk");
  };
}

}  // namespace rondo::testing
