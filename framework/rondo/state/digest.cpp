#include "rondo/state/digest.hpp"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <new>
#include <string_view>
#include <vector>

#include "rondo/state/bits.hpp"

namespace rondo::state {

static_assert(std::endian::native == std::endian::little, "digests are defined over little-endian numbers");

class digest::hasher {
 public:
  hasher() : state_(XXH3_createState()) {
    if (state_ == nullptr || XXH3_128bits_reset(state_) != XXH_OK) throw std::bad_alloc();
  }
  ~hasher() { XXH3_freeState(state_); }
  hasher(const hasher&) = delete;
  hasher& operator=(const hasher&) = delete;

  void raw(const void* data, std::size_t size) {
    if (size != 0) XXH3_128bits_update(state_, data, size);
  }

  /// Lengths go before contents and a tag before everything, so that different trees never give the same bytes.
  void visit(const value& v) {
    if (const at::Tensor* t = v.get_if<at::Tensor>(); t != nullptr && !t->defined()) return tag(0);
    tag(v.data().index());
    std::visit([this](const auto& content) { add(content); }, v.data());
  }

  [[nodiscard]] std::string hex() const {
    const XXH128_hash_t hash = XXH3_128bits_digest(state_);
    return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  }

 private:
  void tag(std::size_t index) { number(static_cast<std::uint8_t>(index)); }
  template <class Number>
  void number(Number n) {
    raw(&n, sizeof n);
  }
  void text(std::string_view s) {
    number(static_cast<std::uint64_t>(s.size()));
    raw(s.data(), s.size());
  }

  void add(std::monostate) {}
  void add(bool b) { number(static_cast<std::uint8_t>(b)); }
  void add(std::int64_t i) { number(i); }
  void add(double d) { number(std::bit_cast<std::uint64_t>(d)); }
  void add(const std::string& s) { text(s); }
  void add(const bytes& b) {
    number(static_cast<std::uint64_t>(b.data.size()));
    raw(b.data.data(), b.data.size());
  }
  void add(const at::Tensor& t) {
    const at::Tensor plain = plain_bytes(t);
    number(static_cast<std::int8_t>(plain.scalar_type()));
    number(static_cast<std::int64_t>(plain.dim()));
    for (const std::int64_t size : plain.sizes()) number(size);
    raw(plain.data_ptr(), plain.nbytes());
  }
  void add(const list& items) {
    number(static_cast<std::uint64_t>(items.size()));
    for (std::size_t i = 0; i < items.size(); ++i) below(std::to_string(i), items[i]);
  }
  void add(const tuple& items) { add(items.items); }
  void add(const dict& items) {
    std::vector<const dict::value_type*> sorted;
    sorted.reserve(items.size());
    for (const auto& item : items) sorted.push_back(&item);
    std::ranges::sort(sorted, [](const auto* a, const auto* b) {
      if (a->first.is_integer() != b->first.is_integer()) return a->first.is_integer();
      return a->first.is_integer() ? a->first.integer() < b->first.integer() : a->first.text() < b->first.text();
    });
    number(static_cast<std::uint64_t>(sorted.size()));
    for (const auto* item : sorted) {
      tag(item->first.is_integer());
      if (item->first.is_integer())
        number(item->first.integer());
      else
        text(item->first.text());
      below(item->first.str(), item->second);
    }
  }

  void below(const std::string& key, const value& v) {
    try {
      visit(v);
    } catch (const state_error& e) {
      throw e.under(key);
    }
  }

  XXH3_state_t* state_;
};

digest::digest() : hasher_(std::make_unique<hasher>()) {}
digest::~digest() = default;
digest::digest(digest&&) noexcept = default;
digest& digest::operator=(digest&&) noexcept = default;

digest& digest::update(const value& v) {
  hasher_->visit(v);
  return *this;
}

digest& digest::update(std::span<const std::byte> bytes) {
  hasher_->raw(bytes.data(), bytes.size());
  return *this;
}

std::string digest::hex() const { return hasher_->hex(); }

std::string digest_of(const value& v) { return digest().update(v).hex(); }

}  // namespace rondo::state
