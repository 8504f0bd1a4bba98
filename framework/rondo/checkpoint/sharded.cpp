#include "rondo/checkpoint/sharded.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <map>
#include <mutex>
#include <optional>
#include <system_error>
#include <thread>
#include <tuple>
#include <utility>

#include "rondo/checkpoint/crc32.hpp"
#include "rondo/checkpoint/little_endian.hpp"
#include "rondo/checkpoint/verify.hpp"
#include "rondo/error.hpp"

namespace rondo::checkpoint {

namespace {

// A piece's part is still in the L2 cache when its checksum is computed.
constexpr std::size_t step_size = 256 * 1024;
// Below this, starting a thread takes longer than it saves.
constexpr std::uint64_t bytes_per_thread = std::uint64_t{4} << 20;
// Files that stay open between calls: far fewer than a process may have open.
constexpr std::size_t open_files = 256;
constexpr std::int64_t most_ranks = 10'000'000;

const tree::dict* dict_at(const tree& node, std::string_view key) {
  const auto* dict = node.get_if<tree::dict>();
  const auto* child = dict != nullptr ? dict->find(key) : nullptr;
  return child != nullptr ? child->get_if<tree::dict>() : nullptr;
}

template <class T>
const T& field(const tree::dict& dict, std::string_view key, const std::string& where, const std::string& what) {
  const auto* node = dict.find(key);
  const auto* value = node != nullptr ? node->get_if<T>() : nullptr;
  if (value == nullptr)
    throw format_error(where, 0, fmt::format("{} has no '{}', or something else there than expected", what, key));
  return *value;
}

std::vector<std::int64_t> integers(const tree& node, const std::string& where, const std::string& what) {
  const auto* items = node.get_if<tree::list>();
  if (const auto* tuple = node.get_if<tree::tuple>()) items = &tuple->items;
  std::vector<std::int64_t> numbers;
  for (std::size_t i = 0; items != nullptr && i < items->size(); ++i)
    if (const auto* number = (*items)[i].get_if<std::int64_t>()) numbers.push_back(*number);
  if (items == nullptr || numbers.size() != items->size())
    throw format_error(where, 0, fmt::format("{} has sizes that are no tuple of integers", what));
  return numbers;
}

bool is_contiguous(const tensor_descriptor& tensor) {
  std::int64_t expected = 1;
  for (auto d = tensor.sizes.size(); d-- > 0; expected *= tensor.sizes[d])
    if (tensor.sizes[d] != 1 && tensor.strides[d] != expected) return false;
  return true;
}

std::string text_of(const box_view& box) {
  return fmt::format("[{}] from [{}] on", fmt::join(box.sizes, ", "), fmt::join(box.offsets, ", "));
}

std::string text_of(const pieced_tensor& tensor, std::size_t piece) {
  return fmt::format("piece {} of rank {}, {}", tensor.number(piece), tensor.rank(piece), text_of(tensor.box(piece)));
}

std::string text_of(const coverage_fault& fault, const pieced_tensor& tensor) {
  switch (fault.what) {
    case coverage_fault::kind::outside:
      return fmt::format("{}, leads outside of [{}]", text_of(tensor, fault.first), fmt::join(tensor.sizes, ", "));
    case coverage_fault::kind::overlap:
      return fmt::format("{}, overlaps {}", text_of(tensor, fault.first), text_of(tensor, fault.second));
    case coverage_fault::kind::gap:
      break;
  }
  return fmt::format("the pieces hold {} of its {} elements", fault.covered, volume(tensor.sizes).value_or(0));
}

/// Calls `visit(path, node)` for what stands for a tensor in pieces.
template <class Visit>
void for_pieced(const tree& node, std::string& path, const Visit& visit) {
  if (is_in_pieces(node)) return visit(path, node);
  const auto length = path.size();
  const auto enter = [&](const std::string& key, const tree& child) {
    if (length != 0) path += '.';
    path += key;
    for_pieced(child, path, visit);
    path.resize(length);
  };
  const auto* items = node.get_if<tree::list>();
  if (const auto* tuple = node.get_if<tree::tuple>()) items = &tuple->items;
  for (std::size_t i = 0; items != nullptr && i < items->size(); ++i) enter(std::to_string(i), (*items)[i]);
  if (const auto* dict = node.get_if<tree::dict>())
    for (const auto& [key, child] : *dict) enter(key.str(), child);
}

/// A rank's file and the pieces in it.
struct part_file {
  reader file;
  const tree::list* pieces;

  /// Where a piece lies. Throws `format_error` when it is not what the table says.
  struct place {
    std::uint64_t offset;
    const archive::entry* record;
  };
  [[nodiscard]] place find(const pieced_tensor& tensor, std::size_t piece) const {
    const auto number = static_cast<std::size_t>(tensor.number(piece));
    const auto* found = number < pieces->size() ? (*pieces)[number].get_if<tensor_descriptor>() : nullptr;
    if (found == nullptr)
      throw format_error(
          file.where(), 0,
          fmt::format("has {} pieces, but '{}' needs {}", pieces->size(), tensor.path, text_of(tensor, piece)));
    const auto bytes = file.storage(*found);
    const auto* record = file.records().find(fmt::format("{}/data/{}", file.root(), found->storage_key));
    const auto size = static_cast<std::uint64_t>(volume(found->sizes).value_or(-1) * element_size(found->dtype));
    const bool fits = found->dtype == tensor.dtype && std::ranges::equal(found->sizes, tensor.box(piece).sizes) &&
                      is_contiguous(*found) && found->storage_offset == 0 && record->size == size &&
                      bytes.size() == size;
    if (!fits)
      throw format_error(file.where(), record->header_offset,
                         fmt::format("piece {} is {} [{}], but '{}' needs {} [{}] there", number, name(found->dtype),
                                     fmt::join(found->sizes, ", "), tensor.path, name(tensor.dtype),
                                     fmt::join(tensor.box(piece).sizes, ", ")));
    return {static_cast<std::uint64_t>(bytes.data() - file.records().file().data()), record};
  }
};

/// Reads `size` bytes in steps that fit the cache, each of which goes to `to(done)`. Returns their checksum.
template <class Destination>
std::uint32_t read_in_steps(const reader& file, std::uint64_t offset, std::uint64_t size, Destination to) {
  std::uint32_t checksum = 0;
  for (std::uint64_t done = 0; done < size;) {
    const std::span<std::byte> step(to + done,
                                    static_cast<std::size_t>(std::min<std::uint64_t>(step_size, size - done)));
    file.read(offset + done, step);
    checksum = crc32(step, checksum);
    done += step.size();
  }
  return checksum;
}

/// A piece of one file, and everybody who wants some of it.
struct piece_read {
  const pieced_tensor* tensor;
  std::size_t piece;
  std::vector<const wanted_box*> readers;
};

void read_piece(const part_file& from, const piece_read& what, std::vector<std::byte>& scratch) {
  const auto& tensor = *what.tensor;
  const auto box = tensor.box(what.piece);
  const auto place = from.find(tensor, what.piece);
  const auto size = place.record->size;
  const auto element = static_cast<std::size_t>(element_size(tensor.dtype));
  std::byte* whole = nullptr;
  const wanted_box* filled = nullptr;
  for (const auto* reader : what.readers) {
    const auto at = place_in(box, {reader->offsets, reader->sizes});
    if (!at) continue;
    whole = reader->to.data() + *at * element;
    filled = reader;
    break;
  }
  if (whole == nullptr) {
    scratch.resize(std::max(scratch.size(), static_cast<std::size_t>(size)));
    whole = scratch.data();
  }
  if (read_in_steps(from.file, place.offset, size, whole) != place.record->crc32)
    throw format_error(from.file.where(), place.record->header_offset,
                       fmt::format("record '{}' is damaged: wrong checksum ({}, of '{}')", place.record->path,
                                   text_of(tensor, what.piece), tensor.path));
  for (const auto* reader : what.readers) {
    if (reader == filled) continue;
    for_common_runs(box, {reader->offsets, reader->sizes},
                    [&](std::uint64_t in_piece, std::uint64_t in_wanted, std::uint64_t count) {
                      std::memcpy(reader->to.data() + in_wanted * element, whole + in_piece * element,
                                  static_cast<std::size_t>(count) * element);
                    });
  }
}

std::uint64_t byte_size(const pieced_tensor& tensor, std::size_t piece) {
  return static_cast<std::uint64_t>(volume(tensor.box(piece).sizes).value_or(0) * element_size(tensor.dtype));
}

/// Calls `work(i, scratch)` for every i below `count`, on several threads. Throws the first error when all have ended.
template <class Work>
void in_parallel(std::size_t count, std::uint64_t threads, const Work& work) {
  std::atomic<std::size_t> next = 0;
  std::mutex mutex;
  std::exception_ptr failure;
  const auto take_part = [&] {
    try {
      std::vector<std::byte> scratch;
      for (std::size_t i = next++; i < count; i = next++) work(i, scratch);
    } catch (...) {
      next = count;
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  {
    std::vector<std::jthread> helpers;
    try {
      while (helpers.size() + 1 < threads) helpers.emplace_back(take_part);
    } catch (const std::system_error&) {
      // Fewer threads do the same work.
    }
    take_part();
  }
  if (failure) std::rethrow_exception(failure);
}

void check(const wanted_box& wanted) {
  const box_view box{wanted.offsets, wanted.sizes};
  if (!is_inside(box, wanted.tensor->sizes))
    throw state_error(wanted.tensor->path, fmt::format("there is no part {} of a tensor [{}]", text_of(box),
                                                       fmt::join(wanted.tensor->sizes, ", ")));
  const auto size = volume(wanted.sizes).value_or(-1) * element_size(wanted.tensor->dtype);
  if (static_cast<std::uint64_t>(size) != wanted.to.size())
    throw state_error(wanted.tensor->path,
                      fmt::format("the part {} has {} bytes, not {}", text_of(box), size, wanted.to.size()));
}

}  // namespace

bool is_sharded(const std::filesystem::path& path) {
  std::error_code ignored;
  return std::filesystem::symlink_status(path, ignored).type() == std::filesystem::file_type::directory &&
         std::filesystem::symlink_status(path / sharded_index, ignored).type() == std::filesystem::file_type::regular;
}

bool is_in_pieces(const tree& node) {
  const auto* dict = node.get_if<tree::dict>();
  return dict != nullptr && dict->size() == 1 && dict_at(node, sharded_key) != nullptr;
}

std::uint64_t pieced_tensor::byte_size() const {
  return static_cast<std::uint64_t>(volume(sizes).value_or(0) * element_size(dtype));
}

struct sharded_reader::content {
  content(std::filesystem::path where, reader complete) : directory(std::move(where)), index(std::move(complete)) {}

  [[nodiscard]] std::shared_ptr<const part_file> open(int rank) {
    const std::lock_guard lock(mutex);
    auto& known = files[rank];
    if (!known.file) {
      known.file = open_new(rank);
      close_one_of_many(rank);
    }
    known.used = ++uses;
    return known.file;
  }

  [[nodiscard]] std::shared_ptr<const part_file> open_new(int rank) const {
    const auto path = directory / std::to_string(rank);
    auto opened = std::make_shared<part_file>(part_file{open_file(path), nullptr});
    const auto& file = opened->file;
    require_same_attempt(file, rank);
    const auto* root = file.state().get_if<tree::dict>();
    opened->pieces = &field<tree::list>(*root, "pieces", file.where(), "the part of a sharded snapshot");
    return opened;
  }

  std::filesystem::path directory;
  reader index;
  std::int64_t attempt = 0;
  int world_size = 0;
  std::atomic<std::uint64_t> bytes_read = 0;

 private:
  struct cached {
    std::shared_ptr<const part_file> file;
    std::uint64_t used = 0;
  };

  [[nodiscard]] static reader open_file(const std::filesystem::path& path) {
    try {
      return reader::open(path);
    } catch (const io_error& e) {
      if (e.code() != std::errc::no_such_file_or_directory) throw;
      throw io_error(e.operation(), path, e.code(), "the sharded snapshot lacks the part of this rank");
    }
  }

  void require_same_attempt(const reader& file, int rank) const {
    const auto* ours = dict_at(file.state(), "rondo");
    if (ours == nullptr || !file.info()) throw format_error(file.where(), 0, "is no part of a sharded snapshot");
    const std::string what = "the part of a sharded snapshot";
    const auto its_attempt = field<std::int64_t>(*ours, "attempt", file.where(), what);
    const auto its_rank = field<std::int64_t>(*ours, "rank", file.where(), what);
    const auto its_size = field<std::int64_t>(*ours, "world_size", file.where(), what);
    if (its_attempt == attempt && its_rank == rank && its_size == world_size) return;
    throw format_error(
        file.where(), 0,
        fmt::format(
            "is the part of rank {} of {} of the snapshot with the id {:016x}, but '{}' needs that of rank {} of "
            "{} with the id {:016x}; files of several snapshots have been mixed up",
            its_rank, its_size, static_cast<std::uint64_t>(its_attempt), index.where(), rank, world_size,
            static_cast<std::uint64_t>(attempt)));
  }

  void close_one_of_many(int except) {
    if (files.size() <= open_files) return;
    auto oldest = files.end();
    for (auto it = files.begin(); it != files.end(); ++it)
      if (it->first != except && (oldest == files.end() || it->second.used < oldest->second.used)) oldest = it;
    files.erase(oldest);
  }

  std::mutex mutex;
  std::map<int, cached> files;
  std::uint64_t uses = 0;
};

sharded_reader::sharded_reader(std::unique_ptr<content> all) : content_(std::move(all)) {}
sharded_reader::sharded_reader(sharded_reader&&) noexcept = default;
sharded_reader& sharded_reader::operator=(sharded_reader&&) noexcept = default;
sharded_reader::~sharded_reader() = default;

sharded_reader sharded_reader::open(const std::filesystem::path& directory) {
  auto all = std::make_unique<content>(directory, reader::open(directory / sharded_index));
  const auto& index = all->index;
  checkpoint::verify(index);
  const auto* ours = dict_at(index.state(), "rondo");
  const auto* node = ours != nullptr ? ours->find("sharded") : nullptr;
  const auto* about = node != nullptr ? node->get_if<tree::dict>() : nullptr;
  if (about == nullptr || !index.info())
    throw format_error(index.where(), 0,
                       "is not the index of a sharded snapshot: it does not say whose parts it needs");
  all->attempt = field<std::int64_t>(*about, "attempt", index.where(), "the index of a sharded snapshot");
  const auto ranks = field<std::int64_t>(*about, "world_size", index.where(), "the index of a sharded snapshot");
  if (ranks < 1 || ranks > most_ranks)
    throw format_error(index.where(), 0, fmt::format("a sharded snapshot of {} ranks is impossible", ranks));
  all->world_size = static_cast<int>(ranks);
  return sharded_reader(std::move(all));
}

const std::filesystem::path& sharded_reader::directory() const noexcept { return content_->directory; }
const reader& sharded_reader::index() const noexcept { return content_->index; }
std::int64_t sharded_reader::attempt() const noexcept { return content_->attempt; }
int sharded_reader::world_size() const noexcept { return content_->world_size; }
std::uint64_t sharded_reader::bytes_read() const noexcept { return content_->bytes_read; }
reader sharded_reader::rank_file(int rank) const { return content_->open_new(rank)->file; }

pieced_tensor sharded_reader::pieces_of(const tree& node, std::string_view path) const {
  const auto& where = index().where();
  const auto what = fmt::format("the sharded tensor '{}'", path);
  const auto fail = [&](const std::string& problem) -> format_error {
    return {where, 0, fmt::format("{}: {}", what, problem)};
  };
  const auto* about = dict_at(node, sharded_key);
  if (about == nullptr) throw fail("there is none");

  pieced_tensor result;
  result.path = path;
  const auto& dtype = field<std::string>(*about, "dtype", where, what);
  const auto type = scalar_type_from_name(dtype);
  if (!type) throw fail(fmt::format("there is no dtype '{}'", dtype));
  result.dtype = *type;
  const auto* sizes = about->find("sizes");
  if (sizes == nullptr) throw fail("it has no sizes");
  result.sizes = integers(*sizes, where, what);
  const auto count = volume(result.sizes);
  std::int64_t bytes = 0;
  if (!count || __builtin_mul_overflow(*count, element_size(result.dtype), &bytes))
    throw fail(fmt::format("the sizes [{}] are impossible", fmt::join(result.sizes, ", ")));

  const auto& table = field<tensor_descriptor>(*about, "pieces", where, what);
  const auto stored = index().storage(table);
  const auto columns = static_cast<std::int64_t>(result.row_size());
  if (table.dtype != scalar_type::int64 || table.sizes.size() != 2 || table.sizes[1] != columns ||
      !is_contiguous(table))
    throw fail(fmt::format("its table of pieces is {} [{}] instead of int64 [n, {}]", name(table.dtype),
                           fmt::join(table.sizes, ", "), columns));
  const auto numbers = static_cast<std::size_t>(table.sizes[0] * columns);
  result.table.resize(numbers);
  const auto first = numbers == 0 ? 0 : static_cast<std::size_t>(table.storage_offset);
  for (std::size_t i = 0; i < numbers; ++i)
    result.table[i] =
        static_cast<std::int64_t>(little_endian_at<std::uint64_t>(stored, (first + i) * sizeof(std::int64_t)));

  std::vector<box_view> boxes;
  boxes.reserve(result.count());
  for (std::size_t i = 0; i < result.count(); ++i) {
    const auto rank = result.table[i * result.row_size()];
    if (rank < 0 || rank >= world_size() || result.number(i) < 0)
      throw fail(
          fmt::format("it has a piece {} of rank {}, but there are {} ranks", result.number(i), rank, world_size()));
    boxes.push_back(result.box(i));
  }
  if (const auto fault = coverage_fault_of(result.sizes, boxes)) throw fail(text_of(*fault, result));
  return result;
}

std::vector<pieced_tensor> sharded_reader::tensors() const {
  std::vector<pieced_tensor> all;
  std::string path;
  for_pieced(state(), path, [&](const std::string& at, const tree& node) { all.push_back(pieces_of(node, at)); });
  return all;
}

void sharded_reader::read(const pieced_tensor& tensor, std::span<const std::int64_t> offsets,
                          std::span<const std::int64_t> sizes, std::span<std::byte> to) const {
  const wanted_box one{&tensor, {offsets.begin(), offsets.end()}, {sizes.begin(), sizes.end()}, to};
  read(std::span(&one, 1));
}

void sharded_reader::read(std::span<const wanted_box> wanted, int threads) const {
  // By file, in the order in which the pieces lie in it.
  using position = std::tuple<std::int64_t, const pieced_tensor*, std::size_t>;
  std::map<int, std::map<position, piece_read>> files;
  for (const auto& one : wanted) {
    check(one);
    const box_view box{one.offsets, one.sizes};
    for (std::size_t i = 0; i < one.tensor->count(); ++i) {
      if (!have_common_elements(one.tensor->box(i), box)) continue;
      auto& read = files[one.tensor->rank(i)].try_emplace({one.tensor->number(i), one.tensor, i}).first->second;
      read.tensor = one.tensor;
      read.piece = i;
      read.readers.push_back(&one);
    }
  }
  for (const auto& [rank, pieces] : files) {
    const auto from = content_->open(rank);
    std::vector<const piece_read*> all;
    std::uint64_t bytes = 0;
    for (const auto& [unused, read] : pieces) {
      all.push_back(&read);
      bytes += checkpoint::byte_size(*read.tensor, read.piece);
    }
    const auto useful = std::min(static_cast<std::uint64_t>(std::max(threads, 1)), bytes / bytes_per_thread);
    in_parallel(all.size(), useful,
                [&](std::size_t i, std::vector<std::byte>& scratch) { read_piece(*from, *all[i], scratch); });
    content_->bytes_read += bytes;
  }
}

void sharded_reader::require_all() const {
  std::vector<std::vector<std::pair<const pieced_tensor*, std::size_t>>> by_rank(
      static_cast<std::size_t>(world_size()));
  const auto all = tensors();
  for (const auto& tensor : all)
    for (std::size_t i = 0; i < tensor.count(); ++i)
      by_rank[static_cast<std::size_t>(tensor.rank(i))].emplace_back(&tensor, i);
  for (std::size_t rank = 0; rank < by_rank.size(); ++rank) {
    const auto file = content_->open_new(static_cast<int>(rank));
    for (const auto& [tensor, piece] : by_rank[rank]) static_cast<void>(file->find(*tensor, piece));
  }
}

void verify(const sharded_reader& snapshot) {
  snapshot.require_all();
  for (int rank = 0; rank < snapshot.world_size(); ++rank) verify(snapshot.rank_file(rank));
}

}  // namespace rondo::checkpoint
