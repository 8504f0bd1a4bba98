#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>
#include <vector>

#include "rondo/error.hpp"
#include "rondo/writing/file_system.hpp"

namespace rondo::testing {

/// The operating system's file system on a disk that is full when the `nth` file (from 1) is to be created, and stays
/// so.
class full_disk final : public writing::file_system {
 public:
  explicit full_disk(std::int64_t nth) : nth_(nth), below_(writing::posix_file_system()) {}

  std::unique_ptr<writing::output_file> create(const writing::path& file, std::uint64_t expected_size) override {
    if (++created_ >= nth_)
      throw io_error("write", file, std::make_error_code(std::errc::no_space_on_device), "make room on the disk");
    return below_->create(file, expected_size);
  }
  std::uint64_t sync_file(const writing::path& file) override { return below_->sync_file(file); }
  void rename(const writing::path& from, const writing::path& to) override { below_->rename(from, to); }
  bool remove(const writing::path& file) override { return below_->remove(file); }
  writing::file_kind kind(const writing::path& name) override { return below_->kind(name); }
  std::vector<writing::directory_entry> list(const writing::path& directory) override {
    return below_->list(directory);
  }
  void sync_directory(const writing::path& directory) override { below_->sync_directory(directory); }
  bool create_directory(const writing::path& directory) override { return below_->create_directory(directory); }

 private:
  std::int64_t nth_;
  std::atomic<std::int64_t> created_ = 0;
  std::shared_ptr<writing::file_system> below_;
};

/// The operating system's file system, on a disk that fills up if `nth` is there.
inline std::shared_ptr<writing::file_system> disk_that_fills_up(std::optional<std::int64_t> nth) {
  if (nth) return std::make_shared<full_disk>(*nth);
  return writing::posix_file_system();
}

}  // namespace rondo::testing
