#include "rondo/report/event_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>
#include <system_error>
#include <vector>

#include "rondo/checkpoint/little_endian.hpp"
#include "rondo/error.hpp"

namespace rondo {

namespace {

namespace posix = writing::posix;
using std::filesystem::path;
using byte_string = std::vector<std::byte>;

// ---- protocol buffers ----

enum class wire : std::uint64_t { varint = 0, fixed64 = 1, delimited = 2, fixed32 = 5 };

void put_varint(byte_string& out, std::uint64_t value) {
  for (; value >= 0x80; value >>= 7U) out.push_back(static_cast<std::byte>((value & 0x7fU) | 0x80U));
  out.push_back(static_cast<std::byte>(value));
}

void put_key(byte_string& out, std::uint64_t field, wire type) {
  put_varint(out, field << 3U | static_cast<std::uint64_t>(type));
}

void put_delimited(byte_string& out, std::uint64_t field, std::span<const std::byte> content) {
  put_key(out, field, wire::delimited);
  put_varint(out, content.size());
  out.insert(out.end(), content.begin(), content.end());
}

void put_text(byte_string& out, std::uint64_t field, std::string_view text) {
  put_delimited(out, field, std::as_bytes(std::span(text)));
}

// ---- tensorflow.Event ----

byte_string event_at(std::int64_t step) {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  byte_string event;
  put_key(event, 1, wire::fixed64);  // wall_time
  checkpoint::append_little_endian(event, std::bit_cast<std::uint64_t>(now.count()));
  put_key(event, 2, wire::varint);  // step
  put_varint(event, static_cast<std::uint64_t>(step));
  return event;
}

byte_string version_event() {
  byte_string event = event_at(0);
  put_text(event, 3, "brain.Event:2");  // file_version
  return event;
}

byte_string start_event(std::int64_t step) {
  constexpr std::uint64_t start = 1;
  byte_string log;
  put_key(log, 1, wire::varint);  // SessionLog.status
  put_varint(log, start);
  byte_string event = event_at(step);
  put_delimited(event, 7, log);  // session_log
  return event;
}

// A tag that is not UTF-8 would make the event, or the whole file, unreadable.
std::string as_utf8(const std::string& text) {
  using json = nlohmann::json;
  return json::parse(json(text).dump(-1, ' ', false, json::error_handler_t::replace)).get<std::string>();
}

// The language does not say what becomes of a double that no float can hold.
float as_float(double value) {
  constexpr double most = std::numeric_limits<float>::max();
  if (std::abs(value) > most) value = std::copysign(std::numeric_limits<double>::infinity(), value);
  return static_cast<float>(value);
}

byte_string summary_event(std::int64_t step, std::span<const event_file::scalar> scalars) {
  byte_string summary;
  byte_string value;
  for (const auto& [tag, number] : scalars) {
    value.clear();
    put_text(value, 1, as_utf8(tag));  // Value.tag
    put_key(value, 2, wire::fixed32);  // Value.simple_value
    checkpoint::append_little_endian(value, std::bit_cast<std::uint32_t>(as_float(number)));
    put_delimited(summary, 1, value);  // Summary.value
  }
  byte_string event = event_at(step);
  put_delimited(event, 5, summary);  // summary
  return event;
}

// ---- records ----

constexpr std::array<std::uint32_t, 256> crc32c_table = [] {
  constexpr std::uint32_t castagnoli = 0x82f63b78;  // RFC 3720, bits reversed
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < table.size(); ++i) {
    table[i] = i;
    for (int bit = 0; bit < 8; ++bit) table[i] = (table[i] >> 1U) ^ ((table[i] & 1U) != 0 ? castagnoli : 0U);
  }
  return table;
}();

std::uint32_t crc32c(std::span<const std::byte> bytes) noexcept {
  std::uint32_t crc = ~0U;
  for (const auto byte : bytes) crc = crc32c_table[(crc ^ std::to_integer<std::uint32_t>(byte)) & 0xffU] ^ (crc >> 8U);
  return ~crc;
}

std::uint32_t masked_crc32c(std::span<const std::byte> bytes) noexcept {
  return std::rotr(crc32c(bytes), 15) + 0xa282ead8U;
}

void put_record(byte_string& out, std::span<const std::byte> data) {
  byte_string length;
  checkpoint::append_little_endian<std::uint64_t>(length, data.size());
  out.insert(out.end(), length.begin(), length.end());
  checkpoint::append_little_endian(out, masked_crc32c(length));
  out.insert(out.end(), data.begin(), data.end());
  checkpoint::append_little_endian(out, masked_crc32c(data));
}

// ---- names ----

constexpr std::string_view name_begin = "events.out.tfevents.";
constexpr std::size_t digits = 10;  // as TensorBoard's own writers have it, so that names sort like times

/// The time in the name of an event file, else 0.
std::int64_t seconds_in(std::string_view name) {
  if (name.substr(0, name_begin.size()) != name_begin) return 0;
  name.remove_prefix(name_begin.size());
  if (name.size() <= digits || name[digits] != '.') return 0;
  std::int64_t seconds = 0;
  const auto parsed = std::from_chars(name.data(), name.data() + digits, seconds);
  return parsed.ptr == name.data() + digits ? seconds : 0;
}

std::int64_t newest_in(const path& directory) {
  std::int64_t newest = 0;
  std::error_code problem;
  for (std::filesystem::directory_iterator at(directory, problem), end; !problem && at != end; at.increment(problem))
    newest = std::max(newest, seconds_in(at->path().filename().string()));
  if (problem) throw io_error("list", directory, problem);
  return newest;
}

std::string host_name() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0 || name[0] == '\0') return "localhost";
  std::string host = name.data();
  std::replace(host.begin(), host.end(), '/', '_');
  return host;
}

path new_name(const path& directory) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto seconds =
      std::max<std::int64_t>(std::chrono::duration_cast<std::chrono::seconds>(now).count(), newest_in(directory) + 1);
  return directory / fmt::format("{}{:0{}}.{}.{}.rondo", name_begin, seconds, digits, host_name(), ::getpid());
}

void make_directory(const path& directory) {
  std::error_code problem;
  std::filesystem::create_directories(directory, problem);
  if (problem) throw io_error("create directory", directory, problem);
}

/// Opens a file that was not there before. `name` becomes its path.
posix::descriptor make_file(const path& directory, path& name) {
  make_directory(directory);
  constexpr int flags = O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC | O_NOFOLLOW;
  constexpr int most_attempts = 1000;  // each that fails means that somebody else has just made a file
  for (int attempt = 1;; ++attempt) {
    name = new_name(directory);
    posix::descriptor file(posix::uninterrupted([&] { return ::open(name.c_str(), flags, 0666); }));
    if (file.valid()) return file;
    if (errno != EEXIST || attempt == most_attempts) throw posix::failure("open", name, errno);
  }
}

}  // namespace

event_file::event_file(const std::filesystem::path& directory, std::int64_t first_step)
    : file_(make_file(directory, path_)) {
  byte_string records;
  put_record(records, version_event());
  put_record(records, start_event(first_step));
  try {
    append(records);
  } catch (const io_error&) {
    ::unlink(path_.c_str());
    throw;
  }
}

void event_file::write(std::int64_t step, std::span<const scalar> scalars) {
  if (scalars.empty()) return;
  byte_string record;
  put_record(record, summary_event(step, scalars));
  append(record);
}

void event_file::append(std::span<const std::byte> records) {
  const auto whole = size_ + records.size();
  while (!records.empty()) {
    const auto count = posix::uninterrupted([&] { return ::write(file_.get(), records.data(), records.size()); });
    if (count <= 0) {
      const int reason = count < 0 ? errno : EIO;
      // A torn record would hide all that comes after it. When this fails as well, the first reason is the one to tell.
      (void)!::ftruncate(file_.get(), static_cast<off_t>(size_));
      throw posix::failure("write", path_, reason, posix::advice_for(reason, path_, records.size()));
    }
    records = records.subspan(static_cast<std::size_t>(count));
  }
  size_ = whole;
}

}  // namespace rondo
