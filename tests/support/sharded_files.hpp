#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "rondo/checkpoint/sharded.hpp"
#include "support/checkpoint.hpp"

namespace rondo::testing {

/// The files of a sharded snapshot, made without LibTorch.
class sharded_files {
 public:
  using integers = std::vector<std::int64_t>;
  using tree = checkpoint::tree;

  explicit sharded_files(int world_size, std::int64_t attempt = 1,
                         checkpoint::scalar_type dtype = checkpoint::scalar_type::uint8)
      : attempt_(attempt), dtype_(dtype), parts_(static_cast<std::size_t>(world_size)) {}

  /// A piece of bytes in the file of `rank`. Returns its row for a table.
  integers piece(int rank, const integers& offsets, const integers& sizes, byte_vector content) {
    auto& part = parts_[static_cast<std::size_t>(rank)];
    const auto number = static_cast<std::int64_t>(part.pieces.size());
    part.pieces.push_back({dtype_, std::to_string(number),
                           static_cast<std::int64_t>(content.size()) / checkpoint::element_size(dtype_), 0, sizes,
                           strides_of(sizes), false, false});
    part.contents.push_back(std::move(content));
    integers row{rank, number};
    row.insert(row.end(), offsets.begin(), offsets.end());
    row.insert(row.end(), sizes.begin(), sizes.end());
    return row;
  }

  /// A leaf of "complete" with these rows.
  tree tensor(const integers& sizes, const std::vector<integers>& rows) {
    return tensor(sizes, rows, std::string(checkpoint::name(dtype_)));
  }
  tree tensor(const integers& sizes, const std::vector<integers>& rows, const std::string& dtype) {
    integers table;
    for (const auto& row : rows) table.insert(table.end(), row.begin(), row.end());
    const auto columns = static_cast<std::int64_t>(2 + 2 * sizes.size());
    const auto count = static_cast<std::int64_t>(rows.size());
    const auto bytes = std::as_bytes(std::span(table));
    tables_.emplace_back(bytes.begin(), bytes.end());
    checkpoint::tensor_descriptor described{checkpoint::scalar_type::int64,
                                            std::to_string(tables_.size() - 1),
                                            count * columns,
                                            0,
                                            {count, columns},
                                            {columns, 1},
                                            false,
                                            false};
    tree::tuple all;
    for (const auto size : sizes) all.items.emplace_back(size);
    return tree::dict{{checkpoint::sharded_key, tree::dict{{"sizes", all}, {"dtype", dtype}, {"pieces", described}}}};
  }

  /// The bytes of a small tensor in "complete".
  tree small(byte_vector content) {
    tables_.push_back(std::move(content));
    return vector_of(checkpoint::scalar_type::uint8, std::to_string(tables_.size() - 1),
                     static_cast<std::int64_t>(tables_.back().size()));
  }

  /// A tensor [rows, columns] of these bytes, spread over the ranks by rows and cut into pieces of at most
  /// `piece_rows`.
  tree by_rows(std::int64_t rows, std::int64_t columns, const byte_vector& content, std::int64_t piece_rows) {
    std::vector<integers> table;
    const auto ranks = static_cast<std::int64_t>(parts_.size());
    for (std::int64_t rank = 0; rank < ranks; ++rank)
      for (auto at = rows * rank / ranks, end = rows * (rank + 1) / ranks; at < end;) {
        const auto count = std::min(piece_rows, end - at);
        const auto row = columns * checkpoint::element_size(dtype_);
        const auto* const begin = content.data() + at * row;
        table.push_back(
            piece(static_cast<int>(rank), {at, 0}, {count, columns}, byte_vector(begin, begin + count * row)));
        at += count;
      }
    return tensor({rows, columns}, table);
  }

  void write_part(const std::filesystem::path& directory, int rank) const {
    const auto& part = parts_[static_cast<std::size_t>(rank)];
    tree::list pieces(part.pieces.begin(), part.pieces.end());
    tree::dict mark{{"attempt", attempt_}, {"rank", rank}, {"world_size", static_cast<std::int64_t>(parts_.size())}};
    write(directory / std::to_string(rank), tree::dict{{"pieces", std::move(pieces)}, {"rondo", std::move(mark)}},
          part.contents, {});
  }

  void write_complete(const std::filesystem::path& directory, tree::dict state,
                      checkpoint::snapshot_info info = {}) const {
    tree::dict mark{{"attempt", attempt_}, {"world_size", static_cast<std::int64_t>(parts_.size())}};
    state["rondo"] = tree::dict{{"sharded", std::move(mark)}};
    write(directory / checkpoint::sharded_index, std::move(state), tables_, std::move(info));
  }

  /// All of them.
  void write_all(const std::filesystem::path& directory, tree::dict state, checkpoint::snapshot_info info = {}) const {
    std::filesystem::create_directories(directory);
    for (std::size_t rank = 0; rank < parts_.size(); ++rank) write_part(directory, static_cast<int>(rank));
    write_complete(directory, std::move(state), std::move(info));
  }

 private:
  struct part {
    std::vector<checkpoint::tensor_descriptor> pieces;
    std::vector<byte_vector> contents;
  };

  static integers strides_of(const integers& sizes) {
    integers strides(sizes.size(), 1);
    for (std::size_t d = sizes.size(); d-- > 1;) strides[d - 1] = strides[d] * sizes[d];
    return strides;
  }

  static void write(const std::filesystem::path& file, tree state, const std::vector<byte_vector>& contents,
                    checkpoint::snapshot_info info) {
    std::vector<checkpoint::storage> storages;
    for (std::size_t i = 0; i < contents.size(); ++i) storages.push_back({std::to_string(i), contents[i]});
    write_to_file(file.string(), write_to_memory(checkpoint::encoder(state, storages, std::move(info))));
  }

  std::int64_t attempt_;
  checkpoint::scalar_type dtype_;
  std::vector<part> parts_;
  std::vector<byte_vector> tables_;
};

}  // namespace rondo::testing
