#include "rondo/checkpoint/manifest.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <functional>
#include <cmath>
#include <iterator>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <type_traits>
#include <utility>

#include "rondo/checkpoint/utf8.hpp"
#include "rondo/error.hpp"

namespace rondo::checkpoint {

namespace {

using json = nlohmann::json;

std::optional<std::uint32_t> read_hex(const std::string& text) {
  std::uint32_t number = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), number, 16);
  if (text.size() != 8 || problem != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}

// Takes the manifest out of the JSON while that is parsed: there may be 100,000 records. Problems of the content are
// kept for the end, because the version, which may come last, can be their reason.
class manifest_reader final : public nlohmann::json_sax<json> {
 public:
  explicit manifest_reader(const std::string& where) : where_(where) {}

  [[nodiscard]] manifest take() {
    if (!is_object_) fail("the manifest is not a JSON object");
    check_version();
    if (problem_) fail(*problem_);
    for (const auto name : {"iteration", "epoch", "mid_iteration", "num_threads", "libraries", "tensors", "records"})
      if (!fields_.contains(name)) fail(fmt::format("the manifest has no field '{}'", name));
    about_.format_version = *version_;
    return std::move(about_);
  }

  bool null() override { return value(nullptr); }
  bool boolean(bool flag) override { return value(flag); }
  bool number_integer(std::int64_t number) override { return value(number); }
  bool number_unsigned(std::uint64_t number) override { return value(number); }
  bool number_float(double number, const std::string&) override { return value(number); }
  bool string(std::string& text) override { return value(std::move(text)); }
  bool binary(binary_t&) override { return value(nullptr); }

  bool start_object(std::size_t) override {
    if (depth_ == 0) is_object_ = true;
    enter();
    if (depth_ != 3) return true;
    if (section_ == section::records) begin_record();
    if (in_table()) wrong_item();
    return true;
  }
  bool start_array(std::size_t) override {
    enter(true);
    if (depth_ == 3 && section_ != section::skipped) wrong_item();
    return true;
  }
  bool end_object() override {
    if (depth_ == 3 && section_ == section::records) end_record();
    return leave();
  }
  bool end_array() override { return leave(); }
  bool key(std::string& name) override {
    if (depth_ == 1) field_ = std::move(name);
    if (depth_ == 2) path_ = std::move(name);
    if (depth_ == 3) member_ = std::move(name);
    return true;
  }
  bool parse_error(std::size_t offset, const std::string&, const json::exception& problem) override {
    throw format_error(where_, offset, fmt::format("the manifest is not JSON: {}", problem.what()));
  }

 private:
  // Which field's container is being read.
  enum class section { none, skipped, libraries, tensors, metrics, records };
  [[nodiscard]] bool in_table() const noexcept {
    return section_ == section::libraries || section_ == section::tensors || section_ == section::metrics;
  }

  [[noreturn]] void fail(const std::string& problem) const { throw format_error(where_, 0, problem); }
  void note(std::string problem) {
    if (!problem_) problem_ = std::move(problem);
  }

  void check_version() const {
    if (!fields_.contains("format_version")) fail("the manifest has no field 'format_version'");
    if (!version_) fail("the manifest's field 'format_version' has the wrong type");
    if (*version_ < 1) fail(fmt::format("format version {} does not exist", *version_));
    if (*version_ > manifest_version)
      fail(fmt::format("the file has format version {}, this Rondo reads up to {}; use a newer Rondo", *version_,
                       manifest_version));
  }

  void enter(bool array = false) {
    if (++depth_ != 2) return;
    if (!is_object_) return;
    fields_.insert(field_);
    section_ = section::skipped;
    if (field_ == "libraries" || field_ == "tensors" || field_ == "metrics") {
      section_ = field_ == "libraries" ? section::libraries
                 : field_ == "tensors" ? section::tensors
                                       : section::metrics;
      if (array) wrong_item();
    } else if (field_ == "records") {
      section_ = section::records;
      if (!array) note("the manifest's field 'records' is not a list");
    } else if (is_scalar_field()) {
      wrong_type(field_);
    }
  }
  bool leave() {
    if (--depth_ == 1) section_ = section::none;
    return true;
  }

  template <class Value>
  bool value(Value value) {
    if (depth_ == 1) return fields_.insert(field_), read_field(std::move(value)), true;
    if (depth_ == 2 && section_ != section::skipped) read_item(std::move(value));
    if (depth_ == 3 && section_ == section::records) read_member(std::move(value));
    if (depth_ == 3 && in_table()) wrong_item();
    return true;
  }

  [[nodiscard]] bool is_scalar_field() const {
    constexpr std::array<std::string_view, 7> names = {"format_version", "iteration", "epoch",  "mid_iteration",
                                                       "num_threads",    "made_by",   "created"};
    return std::ranges::find(names, field_) != names.end();
  }
  template <class Value>
  void read_field(Value value) {
    if (field_ == "format_version") return read_into(version_.emplace(), std::move(value), field_);
    if (field_ == "iteration") return read_into(about_.info.iteration, std::move(value), field_);
    if (field_ == "epoch") return read_into(about_.info.epoch, std::move(value), field_);
    if (field_ == "mid_iteration") return read_into(about_.info.mid_iteration, std::move(value), field_);
    if (field_ == "num_threads") return read_into(about_.info.num_threads, std::move(value), field_);
    if (field_ == "made_by") return read_into(about_.info.made_by, std::move(value), field_);
    if (field_ == "created") return read_into(about_.info.created, std::move(value), field_);
    if (field_ == "libraries" || field_ == "tensors" || field_ == "metrics") note(not_a_table());
    if (field_ == "records") note("the manifest's field 'records' is not a list");
  }

  template <class Value>
  void read_item(Value value) {
    if constexpr (std::is_same_v<Value, std::string>) {
      if (section_ == section::libraries) return void(about_.info.libraries.insert_or_assign(path_, std::move(value)));
      if (section_ == section::tensors)
        return void(about_.tensors.emplace_hint(about_.tensors.end(), std::move(path_), std::move(value)));
    } else if constexpr (std::is_arithmetic_v<Value> && !std::is_same_v<Value, bool>) {
      if (section_ == section::metrics)
        return void(about_.info.metrics.insert_or_assign(path_, static_cast<double>(value)));
    }
    wrong_item();
  }

  void begin_record() {
    about_.records.emplace_back();
    has_name_ = has_size_ = has_checksum_ = false;
  }
  void end_record() {
    for (const auto& [is_there, name] :
         {std::pair(has_name_, "name"), std::pair(has_size_, "size"), std::pair(has_checksum_, "crc32")})
      if (!is_there) note(fmt::format("the manifest has no field '{}'", name));
  }
  template <class Value>
  void read_member(Value value) {
    if (about_.records.empty()) return wrong_item();
    auto& record = about_.records.back();
    if (member_ == "name") {
      has_name_ = true;
      return read_into(record.name, std::move(value), member_);
    }
    if (member_ == "size") {
      has_size_ = true;
      return read_into(record.size, std::move(value), member_);
    }
    if (member_ != "crc32") return;
    has_checksum_ = true;
    std::string digits;
    read_into(digits, std::move(value), member_);
    const auto number = read_hex(digits);
    if (!number) return note("a checksum in the manifest is not eight hexadecimal digits");
    record.crc32 = *number;
  }

  template <class Target, class Value>
  void read_into(Target& target, Value value, std::string_view name) {
    if constexpr (std::is_same_v<Target, Value>) {
      target = std::move(value);
      return;
    }
    if constexpr (std::is_same_v<Target, std::int64_t> && std::is_same_v<Value, std::uint64_t>) {
      if (value <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
        target = static_cast<std::int64_t>(value);
        return;
      }
    }
    wrong_type(name);
  }
  void wrong_type(std::string_view name) {
    note(fmt::format("the manifest's field '{}' has the wrong type", name));
    if (name == "format_version") version_.reset();
  }
  [[nodiscard]] std::string not_a_table() const {
    return fmt::format("the manifest's field '{}' is not a table of {}", field_,
                       field_ == "metrics" ? "numbers" : "texts");
  }
  void wrong_item() {
    note(section_ == section::records ? "the manifest's field 'records' holds something else" : not_a_table());
  }

  const std::string& where_;
  manifest about_;
  std::optional<std::int64_t> version_;
  std::set<std::string, std::less<>> fields_;
  std::optional<std::string> problem_;
  bool is_object_ = false;
  std::size_t depth_ = 0;
  section section_ = section::none;
  std::string field_, path_, member_;
  bool has_name_ = false;
  bool has_size_ = false;
  bool has_checksum_ = false;
};

const std::string& utf8(const std::string& text) {
  if (!is_utf8(text)) throw state_error("", "the manifest cannot be written: it would hold text that is not UTF-8");
  return text;
}

bool is_plain(char character) {
  return static_cast<unsigned char>(character) >= 0x20 && character != '"' && character != '\\';
}

// As a JSON string, quoted.
void append_text(std::string& out, std::string_view text) {
  out += '"';
  if (std::ranges::all_of(text, is_plain)) {
    out += text;
  } else {
    for (const char character : text) {
      if (is_plain(character))
        out += character;
      else
        fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<unsigned>(character));
    }
  }
  out += '"';
}

void append_pair(std::string& out, bool first, std::string_view key, std::string_view value) {
  if (!first) out += ',';
  append_text(out, key);
  out += ':';
  append_text(out, value);
}

}  // namespace

namespace manifest_json {

std::string begin(const snapshot_info& info, std::int64_t format_version) {
  std::string out = fmt::format(R"({{"format_version":{},"iteration":{},"epoch":{},"made_by":)", format_version,
                                info.iteration, info.epoch);
  append_text(out, utf8(info.made_by));
  out += fmt::format(R"(,"mid_iteration":{},"num_threads":{},"libraries":{{)", info.mid_iteration, info.num_threads);
  for (bool first = true; const auto& [name, version] : info.libraries) {
    append_pair(out, std::exchange(first, false), utf8(name), utf8(version));
  }
  out += fmt::format(R"(}},"created":{},"metrics":{{)", info.created);
  for (bool first = true; const auto& [name, value] : info.metrics) {
    if (!std::isfinite(value)) continue;
    if (!std::exchange(first, false)) out += ',';
    append_text(out, utf8(name));
    out += fmt::format(":{}", value);
  }
  out += R"(},"records":[)";
  return out;
}

std::size_t append_record(std::string& out, bool first, std::string_view name, std::uint64_t size,
                          std::uint32_t crc32) {
  out += first ? R"({"crc32":")" : R"(,{"crc32":")";
  const auto digits = out.size();
  fmt::format_to(std::back_inserter(out), R"({:08x}","name":)", crc32);
  append_text(out, name);
  fmt::format_to(std::back_inserter(out), R"(,"size":{}}})", size);
  return digits;
}

void end_records(std::string& out) { out += R"(],"tensors":{)"; }

void append_tensor(std::string& out, bool first, std::string_view path, std::string_view record) {
  append_pair(out, first, path, record);
}

void end(std::string& out) { out += "}}"; }

}  // namespace manifest_json

std::string to_json(const manifest& about) {
  std::string out = manifest_json::begin(about.info, about.format_version);
  for (bool first = true; const auto& record : about.records)
    manifest_json::append_record(out, std::exchange(first, false), utf8(record.name), record.size, record.crc32);
  manifest_json::end_records(out);
  for (bool first = true; const auto& [path, record] : about.tensors)
    manifest_json::append_tensor(out, std::exchange(first, false), utf8(path), utf8(record));
  manifest_json::end(out);
  return out;
}

manifest parse_manifest(std::string_view text, const std::string& where) {
  manifest_reader reader(where);
  json::sax_parse(text, &reader);
  return reader.take();
}

}  // namespace rondo::checkpoint
