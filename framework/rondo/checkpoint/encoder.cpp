#include "rondo/checkpoint/encoder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "rondo/checkpoint/crc32.hpp"
#include "rondo/checkpoint/joining_sink.hpp"
#include "rondo/checkpoint/pickle_writer.hpp"
#include "rondo/checkpoint/tensor_table.hpp"
#include "rondo/error.hpp"

namespace rondo::checkpoint {

namespace {

// Half of a small L2 cache, so that a piece is still there when the sink reads what the checksum has just read.
constexpr std::size_t piece_size = 256 * 1024;

std::span<const std::byte> as_bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

constexpr std::string_view pickle_record = "data.pkl";
constexpr std::string_view byte_order = "little";
constexpr std::string_view torch_version = "3\n";

void check_key(const std::string& key) {
  if (key.empty() || key.find('/') != std::string::npos)
    throw option_error("storage key", fmt::format("'{}'", key), "a name that is not empty and holds no '/'");
}

// Checks every tensor of a tree against the storages that there are, and notes which record it lives in.
class stored_tensors {
 public:
  explicit stored_tensors(const std::vector<storage>& storages) : storages_(storages), first_views_(storages.size()) {
    for (const auto& item : storages) {
      check_key(item.key);
      if (!keys_.add(item.key).is_new)
        throw option_error("storage key", fmt::format("'{}' twice", item.key), "each once");
    }
  }

  std::optional<tensor_view> survey(const tensor_descriptor& tensor, const std::string& path) {
    const auto number = keys_.find(tensor.storage_key);
    if (number == text_table::npos)
      throw state_error(path, fmt::format("its storage '{}' is not among those given", tensor.storage_key));
    check(tensor, number, path);
    table_.add(path, tensor.storage_key);
    numbers_.push_back(number);
    return view_of(tensor, number);
  }
  std::optional<tensor_view> again(const tensor_descriptor& tensor) { return view_of(tensor, numbers_[next_++]); }

  [[nodiscard]] std::string take_table() && { return std::move(table_).take(); }

 private:
  void check(const tensor_descriptor& tensor, std::size_t number, const std::string& path) {
    // An impossible number of elements is refused by whoever asked.
    std::int64_t expected = 0;
    const bool impossible = __builtin_mul_overflow(tensor.storage_numel, element_size(tensor.dtype), &expected);
    const auto size = storages_[number].size();
    if (!impossible && size != static_cast<std::uint64_t>(expected))
      throw state_error(path,
                        fmt::format("its storage '{}' has {} bytes instead of {}", tensor.storage_key, size, expected));
    auto& first = first_views_[number];
    if (first == nullptr) first = &tensor;
    // Python gives a storage the dtype under which it meets it first.
    if (first->dtype != tensor.dtype)
      throw state_error(path, fmt::format("its storage '{}' is viewed both as {} and as {}", tensor.storage_key,
                                          name(first->dtype), name(tensor.dtype)));
  }

  const std::vector<storage>& storages_;
  std::vector<const tensor_descriptor*> first_views_;
  text_table keys_;
  std::vector<std::size_t> numbers_;
  std::size_t next_ = 0;
  tensor_table table_;
};

std::uint32_t write_data(joining_sink& out, std::span<const std::byte> data) {
  std::uint32_t checksum = 0;
  while (!data.empty()) {
    const auto piece = data.first(std::min(piece_size, data.size()));
    checksum = crc32(piece, checksum);
    out.write(piece);
    data = data.subspan(piece.size());
  }
  return checksum;
}

// `read(offset, piece)` fills in a piece.
template <class Read>
std::uint32_t write_promised(joining_sink& out, std::uint64_t size, const Read& read) {
  std::uint32_t checksum = 0;
  std::vector<std::byte> buffer(static_cast<std::size_t>(std::min<std::uint64_t>(piece_size, size)));
  for (std::uint64_t done = 0; done < size;) {
    const auto piece =
        std::span(buffer).first(static_cast<std::size_t>(std::min<std::uint64_t>(buffer.size(), size - done)));
    read(done, piece);
    checksum = crc32(piece, checksum);
    out.write(piece);
    done += piece.size();
  }
  return checksum;
}

void put(std::span<std::byte> image, std::uint64_t offset, std::span<const std::byte> bytes) {
  if (!bytes.empty()) std::memcpy(image.data() + offset, bytes.data(), bytes.size());
}

void put_digits(std::string& json, std::size_t at, std::uint32_t checksum) {
  fmt::format_to(json.begin() + static_cast<std::ptrdiff_t>(at), "{:08x}", checksum);
}

}  // namespace

encoder::encoder(const tree& state, std::vector<storage> storages, snapshot_info info, std::string_view root)
    : encoder(describe(state, std::move(storages)), info, root) {}

encoder::encoder(description about, const snapshot_info& info, std::string_view root)
    : pickle_(std::move(about.pickle)),
      storages_(std::move(about.storages)),
      plan_(root, lay_out_manifest(info, about.tensors)) {}

encoder::description encoder::describe(const tree& state, std::vector<storage> storages) {
  stored_tensors tensors(storages);
  auto pickle = pickle_writer<tensor_descriptor, stored_tensors>(tensors).write(state);
  return {std::move(pickle.bytes), std::move(storages), std::move(tensors).take_table()};
}

// Up to and including the first record, which is the pickle.
std::string encoder::begin_manifest(const snapshot_info& info) {
  auto head = manifest_json::begin(info);
  pickle_digits_ = manifest_json::append_record(head, true, pickle_record, pickle_.size(), 0);
  return head;
}

// The size of the manifest, which this writes, is that of the last record.
std::vector<record_size> encoder::lay_out_manifest(const snapshot_info& info, std::string_view tensors) {
  std::vector<record_size> sizes;
  sizes.reserve(storages_.size() + 4);
  sizes.push_back({std::string(pickle_record), pickle_.size()});
  sizes.push_back({"byteorder", byte_order.size()});
  for (const auto& item : storages_) sizes.push_back({storage_record(item.key), item.size()});
  sizes.push_back({"version", torch_version.size()});

  manifest_ = begin_manifest(info);
  head_size_ = manifest_.size();
  constexpr std::size_t expected_record_size = 56;
  manifest_.reserve(head_size_ + sizes.size() * expected_record_size + tensors.size());
  digits_.reserve(sizes.size());
  for (const auto& [name, size] : std::span(sizes).subspan(1))
    digits_.push_back(manifest_json::append_record(manifest_, false, name, size, 0) - head_size_);
  manifest_json::end_records(manifest_);
  manifest_ += tensors;
  manifest_json::end(manifest_);
  sizes.push_back({std::string(manifest_record), manifest_.size()});
  return sizes;
}

void encoder::renew(std::vector<std::byte> pickle, const snapshot_info& info) {
  pickle_ = std::move(pickle);
  const auto head = begin_manifest(info);
  manifest_.replace(0, head_size_, head);
  head_size_ = head.size();
  plan_.resize(0, pickle_.size());
  plan_.resize(plan_.records().size() - 1, manifest_.size());
}

// In the manifest.
std::size_t encoder::digits_offset(std::size_t record) const {
  return record == 0 ? pickle_digits_ : head_size_ + digits_[record - 1];
}

std::span<const std::byte> encoder::content(std::size_t record) const {
  if (record == 0) return pickle_;
  if (record == 1) return as_bytes(byte_order);
  if (record < first_storage + storages_.size()) return storages_[record - first_storage].data;
  return as_bytes(record == first_storage + storages_.size() ? torch_version : std::string_view(manifest_));
}

void encoder::write(const byte_sink& sink) const {
  for (const auto& item : storages_)
    if (item.data.size() != item.size())
      throw std::logic_error(fmt::format("the bytes of storage '{}' are not there to be written", item.key));
  write(sink, nullptr);
}

void encoder::write(const byte_sink& sink, const storage_source& source) const {
  joining_sink out(sink);
  std::vector<std::uint32_t> checksums;
  std::vector<std::byte> frame;
  const auto write_frame = [&](auto append) {
    frame.clear();
    append();
    out.write(frame);
  };
  const auto write_record = [&](std::span<const std::byte> data) {
    const auto i = checksums.size();
    const auto& place = plan_.records()[i];
    write_frame([&] { plan_.append_header(frame, place); });
    const auto read = [&](std::uint64_t offset, std::span<std::byte> to) { source(i - first_storage, offset, to); };
    checksums.push_back(data.empty() ? write_promised(out, place.size, read) : write_data(out, data));
    write_frame([&] { plan_.append_descriptor(frame, place, checksums.back()); });
  };

  std::string about = manifest_;
  for (std::size_t i = 0; i + 1 < plan_.records().size(); ++i) {
    write_record(content(i));
    put_digits(about, digits_offset(i), checksums[i]);
  }
  write_record(as_bytes(about));
  write_frame([&] { plan_.append_directory(frame, checksums); });
  out.flush();
}

void encoder::write_frame(std::span<std::byte> image) const {
  const auto& records = plan_.records();
  for (std::size_t i = 0; i < records.size(); ++i) {
    plan_.write_header(image.data() + records[i].header_offset, records[i]);
    if (!is_storage(i)) put(image, records[i].data_offset, content(i));
    plan_.write_descriptor(image.data() + records[i].descriptor_offset(), records[i], 0);
  }
  plan_.write_directory(image.data() + plan_.directory_offset(), std::vector<std::uint32_t>(records.size()));
}

std::vector<checksum_spot> encoder::checksum_spots() const {
  const auto& records = plan_.records();
  std::vector<checksum_spot> spots;
  spots.reserve(records.size());
  auto entry = plan_.directory_offset();
  for (std::size_t i = 0; i < records.size(); ++i) {
    const auto& r = records[i];
    const auto digits = i + 1 < records.size() ? records.back().data_offset + digits_offset(i) : 0;
    spots.push_back({r.data_offset, r.size, r.descriptor_offset() + plan::descriptor_checksum,
                     entry + plan::entry_checksum, digits});
    entry += plan::entry_size(r);
  }
  return spots;
}

}  // namespace rondo::checkpoint
