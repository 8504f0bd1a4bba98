#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "rondo/checkpoint/little_endian.hpp"
#include "rondo/checkpoint/pickle_opcodes.hpp"
#include "rondo/state/tree.hpp"

namespace rondo::checkpoint {

/// A pickle of protocol 2 in the making: opcodes and the plain values.
class pickle_output {
 public:
  using opcode = pickle::opcode;

  void reserve(std::size_t size) { bytes_.reserve(size); }
  [[nodiscard]] std::size_t size() const noexcept { return bytes_.size(); }
  [[nodiscard]] const std::vector<std::byte>& bytes() const noexcept { return bytes_; }
  [[nodiscard]] std::vector<std::byte> take() && { return std::move(bytes_); }
  void clear() noexcept { bytes_.clear(); }

  void begin() {
    put(opcode::proto);
    number(std::uint8_t{2});
  }
  void end() { put(opcode::stop); }
  void put(opcode code) { bytes_.push_back(static_cast<std::byte>(code)); }

  void write(std::monostate) { put(opcode::none); }
  void write(bool value) { put(value ? opcode::newtrue : opcode::newfalse); }
  void write(std::int64_t value) {
    using narrow = std::numeric_limits<std::int32_t>;
    if (value >= 0 && value <= 0xff) {
      put(opcode::binint1);
      number(static_cast<std::uint8_t>(value));
    } else if (value >= 0 && value <= 0xffff) {
      put(opcode::binint2);
      number(static_cast<std::uint16_t>(value));
    } else if (value >= narrow::min() && value <= narrow::max()) {
      put(opcode::binint);
      number(static_cast<std::uint32_t>(value));
    } else {
      // Always eight bytes: LibTorch's own unpickler knows no other length.
      put(opcode::long1);
      number(std::uint8_t{8});
      number(static_cast<std::uint64_t>(value));
    }
  }
  void write(double value) {
    put(opcode::binfloat);
    const auto bits = std::bit_cast<std::uint64_t>(value);
    for (int shift = 56; shift >= 0; shift -= 8) bytes_.push_back(static_cast<std::byte>(bits >> shift & 0xff));
  }
  /// As text: the Latin-1 characters of the same numbers.
  void write(const state::bytes& value) {
    std::string characters;
    characters.reserve(value.data.size() * 2);
    for (const auto byte : value.data) {
      const auto code = std::to_integer<unsigned>(byte);
      if (code >= 0x80) characters += static_cast<char>(0xc0 | code >> 6);
      characters += static_cast<char>(code < 0x80 ? code : 0x80 | (code & 0x3f));
    }
    write_text(characters);
  }
  void write_text(std::string_view text) {
    put(opcode::binunicode);
    number(static_cast<std::uint32_t>(text.size()));
    append_text(bytes_, text);
  }
  void write_global(std::string_view module, std::string_view name) {
    put(opcode::global);
    append_text(bytes_, module);
    append_text(bytes_, "\n");
    append_text(bytes_, name);
    append_text(bytes_, "\n");
  }

  /// Keeps what was written last under a number, with which `get` brings it back.
  [[nodiscard]] std::uint32_t store() {
    put_slot(opcode::binput, opcode::long_binput, next_slot_);
    return next_slot_++;
  }
  void get(std::uint32_t slot) { put_slot(opcode::binget, opcode::long_binget, slot); }

 private:
  template <class Number>
  void number(Number value) {
    append_little_endian(bytes_, value);
  }
  void put_slot(opcode narrow, opcode wide, std::uint32_t slot) {
    put(slot <= 0xff ? narrow : wide);
    if (slot <= 0xff)
      number(static_cast<std::uint8_t>(slot));
    else
      number(slot);
  }

  std::vector<std::byte> bytes_;
  std::uint32_t next_slot_ = 0;
};

}  // namespace rondo::checkpoint
