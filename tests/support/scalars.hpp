// What TensorBoard shows of a directory of event files: a reader that heeds START and shares nothing with the writer.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace rondo::testing {

/// Per tag, the points that are left, in the order in which they were written.
using scalar_points = std::map<std::string, std::vector<std::pair<std::int64_t, float>>>;

namespace detail {

/// The fields of a protocol buffer.
class message_fields {
 public:
  explicit message_fields(std::string_view data) : data_(data) {}

  bool next() {
    if (data_.empty()) return false;
    const auto key = varint();
    number = static_cast<int>(key >> 3U);
    switch (key & 7U) {
      case 0: integer = static_cast<std::int64_t>(varint()); break;
      case 1: bytes = take(8); break;
      case 2: bytes = take(varint()); break;
      case 5: bytes = take(4); break;
      default: throw std::runtime_error("an unknown wire type");
    }
    return true;
  }

  int number = 0;
  std::int64_t integer = 0;
  std::string_view bytes;

 private:
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1).front());
      value |= static_cast<std::uint64_t>(byte & 127U) << shift;
      if (byte < 128) return value;
    }
  }
  std::string_view take(std::uint64_t count) {
    if (count > data_.size()) throw std::runtime_error("a torn event");
    const auto taken = data_.substr(0, count);
    data_.remove_prefix(count);
    return taken;
  }

  std::string_view data_;
};

inline void add_event(scalar_points& all, std::string_view event) {
  std::int64_t step = 0;
  bool starts = false;
  std::vector<std::pair<std::string, float>> values;
  for (message_fields fields(event); fields.next();) {
    if (fields.number == 2) step = fields.integer;
    if (fields.number == 7) starts = true;
    if (fields.number != 5) continue;
    for (message_fields summary(fields.bytes); summary.next();) {
      auto& [tag, number] = values.emplace_back();
      for (message_fields value(summary.bytes); value.next();) {
        if (value.number == 1) tag = value.bytes;
        if (value.number == 2) std::memcpy(&number, value.bytes.data(), sizeof number);
      }
    }
  }
  if (starts)
    for (auto& [tag, points] : all) std::erase_if(points, [&](const auto& point) { return point.first >= step; });
  for (const auto& [tag, number] : values) all[tag].emplace_back(step, number);
}

}  // namespace detail

inline scalar_points scalars_in(const std::filesystem::path& directory) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  scalar_points all;
  for (const auto& path : files) {
    std::ifstream in(path, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(in), {}};
    for (std::size_t at = 0; at < text.size();) {
      std::uint64_t length = 0;
      std::memcpy(&length, text.data() + at, sizeof length);
      detail::add_event(all, std::string_view(text).substr(at + 12, length));
      at += 16 + length;
    }
  }
  std::erase_if(all, [](const auto& tag) { return tag.second.empty(); });
  return all;
}

}  // namespace rondo::testing
