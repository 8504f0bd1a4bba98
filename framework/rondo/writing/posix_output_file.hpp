#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "rondo/writing/file_system.hpp"
#include "rondo/writing/posix.hpp"

namespace rondo::writing::posix {

class chunk_output;
class write_behind;
class chunk_buffers;

/// A new file, written in large chunks; see posix_file_system. As long as it is small, this thread writes it; then there
/// is one that writes while the next chunk is produced.
class posix_output_file final : public output_file {
 public:
  /// `file` is open for writing and empty.
  posix_output_file(descriptor file, path name, std::uint64_t expected_size);
  ~posix_output_file() override;

  void append(std::span<const std::byte> bytes) override;
  void append_stable(std::span<const std::byte> bytes) override;
  void sync() override;
  void close() override;

 private:
  void expect_usable(const char* operation);
  [[noreturn]] void give_up(const char* operation, int code);
  void write_behind_if_worth_it(std::size_t next);
  [[nodiscard]] std::size_t writable_without_copy(std::span<const std::byte> bytes, bool stable) const noexcept;
  void add(std::span<const std::byte> bytes, bool stable);
  std::size_t stage(std::span<const std::byte> bytes);
  void flush();
  void put(std::span<const std::byte> bytes);
  void finish();

  path name_;
  std::uint64_t expected_size_;
  std::uint64_t appended_ = 0;
  std::size_t chunk_;
  std::size_t staged_ = 0;
  int dead_ = 0;
  std::unique_ptr<chunk_output> output_;
  std::unique_ptr<chunk_buffers> buffers_;
  // Last, because its thread uses the others.
  std::unique_ptr<write_behind> behind_;
};

}  // namespace rondo::writing::posix
