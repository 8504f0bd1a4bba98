#include "rondo/checkpoint/manifest.hpp"

#include <fmt/format.h>

#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "rondo/error.hpp"

namespace rondo::checkpoint {

namespace {

// The sorted kind: the ordered one searches linearly on every insertion, and there may be 100,000 names.
using json = nlohmann::json;

const json& field(const json& parent, const char* name, const std::string& where) {
  const auto at = parent.find(name);
  if (at == parent.end()) throw format_error(where, 0, fmt::format("the manifest has no field '{}'", name));
  return *at;
}

template <class T>
bool has_type(const json& value) {
  if constexpr (std::is_same_v<T, bool>) return value.is_boolean();
  if constexpr (std::is_same_v<T, std::uint64_t>) return value.is_number_unsigned();
  if constexpr (std::is_same_v<T, std::int64_t>)
    return value.is_number_integer() &&
           !(value.is_number_unsigned() && value.get<std::uint64_t>() > std::numeric_limits<std::int64_t>::max());
  if constexpr (std::is_same_v<T, std::string>) return value.is_string();
  return false;
}

template <class T>
T read(const json& parent, const char* name, const std::string& where) {
  const auto& value = field(parent, name, where);
  if (!has_type<T>(value))
    throw format_error(where, 0, fmt::format("the manifest's field '{}' has the wrong type", name));
  return value.get<T>();
}

std::map<std::string, std::string> read_texts(const json& parent, const char* name, const std::string& where) {
  std::map<std::string, std::string> texts;
  const auto& object = field(parent, name, where);
  for (const auto& [key, value] : object.items()) {
    if (!object.is_object() || !value.is_string())
      throw format_error(where, 0, fmt::format("the manifest's field '{}' is not a table of texts", name));
    texts.emplace(key, value.get<std::string>());
  }
  return texts;
}

std::string hex(std::uint32_t crc32) { return fmt::format("{:08x}", crc32); }

std::uint32_t read_hex(const std::string& text, const std::string& where) {
  std::uint32_t number = 0;
  const auto [end, problem] = std::from_chars(text.data(), text.data() + text.size(), number, 16);
  if (text.size() != 8 || problem != std::errc() || end != text.data() + text.size())
    throw format_error(where, 0, "a checksum in the manifest is not eight hexadecimal digits");
  return number;
}

manifest read_manifest(const json& document, const std::string& where) {
  if (!document.is_object()) throw format_error(where, 0, "the manifest is not a JSON object");
  const auto version = read<std::int64_t>(document, "format_version", where);
  if (version < 1) throw format_error(where, 0, fmt::format("format version {} does not exist", version));
  if (version > manifest_version)
    throw format_error(where, 0,
                       fmt::format("the file has format version {}, this Rondo reads up to {}; use a newer Rondo",
                                   version, manifest_version));
  manifest about;
  about.info.iteration = read<std::int64_t>(document, "iteration", where);
  about.info.epoch = read<std::int64_t>(document, "epoch", where);
  about.info.mid_iteration = read<bool>(document, "mid_iteration", where);
  about.info.num_threads = read<std::int64_t>(document, "num_threads", where);
  if (document.contains("made_by")) about.info.made_by = read<std::string>(document, "made_by", where);
  about.info.libraries = read_texts(document, "libraries", where);
  about.tensors = read_texts(document, "tensors", where);
  const auto& records = field(document, "records", where);
  if (!records.is_array()) throw format_error(where, 0, "the manifest's field 'records' is not a list");
  about.records.reserve(records.size());
  for (const auto& entry : records) {
    if (!entry.is_object()) throw format_error(where, 0, "the manifest's field 'records' holds something else");
    about.records.push_back({read<std::string>(entry, "name", where), read<std::uint64_t>(entry, "size", where),
                             read_hex(read<std::string>(entry, "crc32", where), where)});
  }
  return about;
}

}  // namespace

std::string to_json(const manifest& about) {
  json records = json::array();
  for (const auto& record : about.records)
    records.push_back({{"name", record.name}, {"size", record.size}, {"crc32", hex(record.crc32)}});
  const json document = {
      {"format_version", manifest_version},
      {"iteration", about.info.iteration},
      {"epoch", about.info.epoch},
      {"made_by", about.info.made_by},
      {"mid_iteration", about.info.mid_iteration},
      {"num_threads", about.info.num_threads},
      {"libraries", about.info.libraries},
      {"tensors", about.tensors},
      {"records", std::move(records)},
  };
  try {
    return document.dump();
  } catch (const json::exception& problem) {
    throw state_error("", fmt::format("the manifest cannot be written: {}", problem.what()));
  }
}

manifest parse_manifest(std::string_view text, const std::string& where) {
  try {
    return read_manifest(json::parse(text), where);
  } catch (const json::parse_error& problem) {
    throw format_error(where, problem.byte, fmt::format("the manifest is not JSON: {}", problem.what()));
  } catch (const json::exception& problem) {
    throw format_error(where, 0, fmt::format("the manifest cannot be read: {}", problem.what()));
  }
}

}  // namespace rondo::checkpoint
