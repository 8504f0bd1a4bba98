#include "rondo/checkpoint/parallel_read.hpp"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "rondo/checkpoint/crc32.hpp"

namespace rondo::checkpoint {

namespace {

// A piece is still in the L2 cache when its checksum is computed. A chunk is what one thread takes at a time.
constexpr std::uint64_t cached_piece_size = 256 * 1024;
constexpr std::uint64_t thread_chunk_size = std::uint64_t{4} << 20;
// Below this, starting a thread takes longer than it saves.
constexpr std::uint64_t bytes_worth_a_thread = std::uint64_t{4} << 20;

struct chunk {
  std::size_t part;
  read_part what;
};

std::vector<chunk> cut(std::span<const read_part> parts) {
  std::vector<chunk> chunks;
  chunks.reserve(parts.size());
  for (std::size_t i = 0; i < parts.size(); ++i)
    for (std::uint64_t done = 0; done < parts[i].size; done += thread_chunk_size) {
      auto* const to = parts[i].to == nullptr ? nullptr : parts[i].to + done;
      chunks.push_back({i, {parts[i].offset + done, std::min(thread_chunk_size, parts[i].size - done), to, 0}});
    }
  return chunks;
}

class work {
 public:
  work(std::span<const read_part> parts, const read_function& read, read_checksums checksums)
      : chunks_(cut(parts)), read_(read), checksums_(checksums) {}

  // Takes chunks until there are none left. Called from every thread.
  void take_part() noexcept {
    try {
      std::vector<std::byte> scratch;
      for (std::size_t i = next_++; i < chunks_.size(); i = next_++) read_chunk(chunks_[i].what, scratch);
    } catch (...) {
      next_ = chunks_.size();
      const std::lock_guard lock(mutex_);
      if (!failure_) failure_ = std::current_exception();
    }
  }

  void rethrow_failure() const {
    if (failure_) std::rethrow_exception(failure_);
  }
  [[nodiscard]] const std::vector<chunk>& chunks() const noexcept { return chunks_; }

 private:
  void read_chunk(read_part& part, std::vector<std::byte>& scratch) const {
    const bool in_pieces = checksums_ == read_checksums::compute || part.to == nullptr;
    const auto step = in_pieces ? cached_piece_size : thread_chunk_size;
    if (part.to == nullptr) scratch.resize(static_cast<std::size_t>(cached_piece_size));
    for (std::uint64_t done = 0; done < part.size; done += step) {
      const auto size = static_cast<std::size_t>(std::min(step, part.size - done));
      const std::span<std::byte> piece(part.to == nullptr ? scratch.data() : part.to + done, size);
      read_(part.offset + done, piece);
      if (checksums_ == read_checksums::compute) part.crc32 = checkpoint::crc32(piece, part.crc32);
    }
  }

  std::vector<chunk> chunks_;
  const read_function& read_;
  read_checksums checksums_;
  std::atomic<std::size_t> next_ = 0;
  std::mutex mutex_;
  std::exception_ptr failure_;
};

}  // namespace

void read_parts(std::span<read_part> parts, const read_function& read, int threads, read_checksums checksums) {
  work all(parts, read, checksums);
  std::uint64_t bytes = 0;
  for (const auto& part : parts) bytes += part.size;
  const auto useful = std::min(std::uint64_t(std::max(threads, 1)), bytes / bytes_worth_a_thread);
  {
    std::vector<std::jthread> helpers;
    try {
      while (helpers.size() + 1 < useful) helpers.emplace_back([&all] { all.take_part(); });
    } catch (const std::system_error&) {
      // Fewer threads do the same work.
    }
    all.take_part();
  }
  all.rethrow_failure();
  for (auto& part : parts) part.crc32 = 0;
  for (const auto& [i, what] : all.chunks()) parts[i].crc32 = joined_crc32(parts[i].crc32, what.crc32, what.size);
}

}  // namespace rondo::checkpoint
