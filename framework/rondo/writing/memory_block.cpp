#include "rondo/writing/memory_block.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <new>
#include <system_error>
#include <utility>

#include "rondo/error.hpp"
#include "rondo/writing/available_memory.hpp"

namespace rondo::writing {

namespace {

constexpr std::size_t page = 4096;
constexpr std::size_t huge_page = std::size_t{2} << 20U;

constexpr std::size_t worth_asking = std::size_t{64} << 20U;

// Since Linux 5.14; older headers do not know it, and older kernels say EINVAL.
constexpr int populate_write = 23;

[[noreturn]] void fail(const char* operation) {
  throw io_error(operation, "shared staging memory", std::error_code(errno, std::generic_category()));
}

void touch(std::span<std::byte> bytes) noexcept {
  for (std::size_t at = 0; at < bytes.size(); at += page) *const_cast<volatile std::byte*>(&bytes[at]) = std::byte{0};
}

}  // namespace

std::size_t memory_block::rounded(std::size_t size) noexcept {
  const auto unit = size > huge_page ? huge_page : page;
  return size == 0 ? page : (size + unit - 1) / unit * unit;
}

memory_block::memory_block(std::size_t size, bool shared) : bytes_(static_cast<std::byte*>(nullptr), rounded(size)) {
  // The kernel promises more than it has, and kills when that is used.
  if (bytes_.size() > worth_asking) {
    const auto available = find_available_memory();
    if (bytes_.size() > available.bytes) throw memory_shortage(std::exchange(bytes_, {}).size(), available);
  }
  try {
    if (shared) make_file();
    map();
    back();
  } catch (...) {
    release();
    throw;
  }
}

memory_block::~memory_block() { release(); }

void memory_block::make_file() {
  descriptor_ = ::memfd_create("rondo-staging", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (descriptor_ < 0) fail("create");
  if (::ftruncate(descriptor_, static_cast<off_t>(bytes_.size())) != 0) fail("size");
  // Whoever maps a file that shrinks is killed by SIGBUS.
  if (::fcntl(descriptor_, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) fail("seal");
}

void memory_block::map() {
  const auto size = bytes_.size();
  // Room for a beginning at a multiple of a huge page, without which older kernels give none.
  const auto slack = size > huge_page ? huge_page : 0;
  auto* const room = ::mmap(nullptr, size + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) throw std::bad_alloc();
  auto* const begin = static_cast<std::byte*>(room);
  const auto skipped = slack == 0 ? 0 : (slack - reinterpret_cast<std::uintptr_t>(begin) % huge_page) % huge_page;
  if (skipped > 0) ::munmap(begin, skipped);
  if (slack > skipped) ::munmap(begin + skipped + size, slack - skipped);
  bytes_ = {begin + skipped, size};
  const int kind = descriptor_ >= 0 ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS;
  if (::mmap(bytes_.data(), size, PROT_READ | PROT_WRITE, kind | MAP_FIXED, descriptor_, 0) == MAP_FAILED) {
    throw std::bad_alloc();
  }
}

void memory_block::back() {
  // A hint: where there are no huge pages, small ones do.
  if (bytes_.size() >= huge_page) (void)::madvise(bytes_.data(), bytes_.size(), MADV_HUGEPAGE);
  if (::madvise(bytes_.data(), bytes_.size(), populate_write) == 0) return;
  if (errno != EINVAL) throw std::bad_alloc();
  // Touching shared pages that cannot be had would kill the process; this is refused instead.
  if (descriptor_ >= 0 && ::fallocate(descriptor_, 0, 0, static_cast<off_t>(bytes_.size())) != 0) fail("allocate");
  touch(bytes_);
}

void memory_block::release() noexcept {
  if (bytes_.data() != nullptr) ::munmap(bytes_.data(), bytes_.size());
  if (descriptor_ >= 0) ::close(descriptor_);
}

}  // namespace rondo::writing
