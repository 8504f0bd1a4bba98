#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <ctime>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <unordered_map>

#include "commands.hpp"
#include "elements.hpp"
#include "input.hpp"
#include "sharded.hpp"
#include "text.hpp"
#include "values.hpp"
#include "walk.hpp"

namespace rondo::tool {

namespace {

using checkpoint::tensor_descriptor;
using checkpoint::tree;

constexpr std::size_t inline_items = 8;

/// What is shown: a file, or a sharded snapshot as one file would have it.
struct subject {
  std::string named;
  const tree& state;
  const checkpoint::snapshot_info* info = nullptr;
  std::uint64_t size = 0;
  std::uint64_t records = 0;             // of a file
  const whole_state* sharded = nullptr;  // null for a file
  int ranks = 0;

  [[nodiscard]] const checkpoint::pieced_tensor* pieces_of(const tensor_descriptor& tensor) const {
    return sharded != nullptr ? sharded->pieces_of(tensor) : nullptr;
  }
};

std::set<int> ranks_of(const checkpoint::pieced_tensor& tensor) {
  std::set<int> ranks;
  for (std::size_t i = 0; i < tensor.count(); ++i) ranks.insert(tensor.rank(i));
  return ranks;
}

/// "0-3, 5".
std::string ranges_text(const std::set<int>& numbers) {
  std::string text;
  for (auto it = numbers.begin(); it != numbers.end();) {
    const auto first = *it;
    auto last = first;
    for (++it; it != numbers.end() && *it == last + 1; ++it) last = *it;
    text += (text.empty() ? "" : ", ") + std::to_string(first);
    if (last != first) text += fmt::format("-{}", last);
  }
  return text;
}

std::string describe_pieces(const checkpoint::pieced_tensor& tensor) {
  const auto ranks = ranks_of(tensor);
  if (ranks.empty()) return "  in no pieces";
  return fmt::format("  {} of rank{} {}", count_of(tensor.count(), "piece"), ranks.size() == 1 ? "" : "s",
                     ranges_text(ranks));
}

struct totals {
  std::uint64_t tensors = 0;
  std::uint64_t elements = 0;
  std::uint64_t tensor_bytes = 0;
  std::uint64_t storages = 0;
  std::uint64_t storage_bytes = 0;
};

// A forged file may claim more than 64 bits can count.
void add(std::uint64_t& sum, std::uint64_t number) {
  if (__builtin_add_overflow(sum, number, &sum)) sum = std::numeric_limits<std::uint64_t>::max();
}

totals totals_of(const tree& state) {
  totals sum;
  std::unordered_map<std::string, std::uint64_t> storages;
  walk(state, [&](const std::string&, const tree& node) {
    if (const auto* tensor = node.get_if<tensor_descriptor>()) {
      ++sum.tensors;
      add(sum.elements, numel(*tensor));
      add(sum.tensor_bytes, byte_size(*tensor));
      auto& bytes = storages[tensor->storage_key];
      bytes = std::max(bytes, static_cast<std::uint64_t>(tensor->storage_numel * element_size(tensor->dtype)));
    }
    return true;
  });
  sum.storages = storages.size();
  for (const auto& [key, bytes] : storages) add(sum.storage_bytes, bytes);
  return sum;
}

bool is_short(const tree& node) {
  return !is_container(node) && !node.is<tensor_descriptor>() && !node.is<state::bytes>();
}

/// The state as lines, indented by level.
class printer {
 public:
  printer(const subject& shown, std::size_t depth) : shown_(shown), depth_(depth) {}

  void print() {
    const auto& root = shown_.state;
    if (is_container(root))
      children(root, 0);
    else
      line("(root)", root, 0);
  }

 private:
  void line(const std::string& key, const tree& node, std::size_t level) {
    const auto indent = 2 * level;
    if (const auto* tensor = node.get_if<tensor_descriptor>()) {
      const auto* pieces = shown_.pieces_of(*tensor);
      return fmt::print("{:{}}{:<{}}  {}{}\n", "", indent, key, 40 - std::min<std::size_t>(indent, 39),
                        describe(*tensor), pieces != nullptr ? describe_pieces(*pieces) : "");
    }
    if (!is_container(node) || is_inline(node)) return fmt::print("{:{}}{}: {}\n", "", indent, key, inline_text(node));
    fmt::print("{:{}}{}: {}\n", "", indent, key, summary(node));
    children(node, level + 1);
  }

  void children(const tree& node, std::size_t level) {
    if (level >= depth_) return;
    if (const auto* dict = node.get_if<tree::dict>())
      for (const auto& [key, child] : *dict) line(printable(key.str()), child, level);
    const auto* items = items_of(node);
    if (items != nullptr && std::ranges::all_of(*items, is_short)) return;  // the summary says it
    for (std::size_t i = 0; items != nullptr && i < items->size(); ++i) line(std::to_string(i), (*items)[i], level);
  }

  static const tree::list* items_of(const tree& node) {
    if (const auto* tuple = node.get_if<tree::tuple>()) return &tuple->items;
    return node.get_if<tree::list>();
  }

  static bool is_inline(const tree& node) {
    const auto* items = items_of(node);
    return items != nullptr && items->size() <= inline_items && std::ranges::all_of(*items, is_short);
  }

  static std::string inline_text(const tree& node) {
    const auto* items = items_of(node);
    if (items == nullptr) return value_text(node);
    std::string text;
    for (const auto& item : *items) text += (text.empty() ? "" : ", ") + value_text(item);
    if (node.is<tree::list>()) return "[" + text + "]";
    return "(" + text + (items->size() == 1 ? ",)" : ")");
  }

  static std::string summary(const tree& node) {
    const auto* items = items_of(node);
    const auto size = items != nullptr ? items->size() : node.get_if<tree::dict>()->size();
    auto text = fmt::format("{} of {}", node.type_name(), grouped(size));
    if (items == nullptr || items->empty()) return text;
    const auto type = items->front().type_name();
    const bool alike = std::ranges::all_of(*items, [&](const tree& item) { return item.type_name() == type; });
    return alike ? text + " " + type : text;
  }

  const subject& shown_;
  std::size_t depth_;
};

std::string utc(std::int64_t seconds) {
  const auto time = static_cast<std::time_t>(seconds);
  std::tm parts{};
  if (::gmtime_r(&time, &parts) == nullptr) return fmt::format("{} s after 1970", seconds);
  return fmt::format("{}-{:02}-{:02} {:02}:{:02}:{:02} UTC", std::int64_t{parts.tm_year} + 1900, parts.tm_mon + 1,
                     parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec);
}

void print_header(const subject& shown, const totals& sum) {
  const auto field = [](std::string_view name, const std::string& value) { fmt::print("  {:<12}{}\n", name, value); };
  fmt::print("{}\n", printable(shown.named));
  field("format", shown.sharded != nullptr ? "Rondo snapshot, sharded"
                  : shown.info != nullptr  ? "Rondo snapshot"
                                           : "PyTorch checkpoint (no manifest)");
  if (shown.info != nullptr) {
    const auto& info = *shown.info;
    field("iteration", fmt::format("{}{}", info.iteration, info.mid_iteration ? ", taken inside an iteration" : ""));
    field("epoch", fmt::format("{}", info.epoch));
    if (!info.made_by.empty()) field("made by", printable(info.made_by));
    std::string libraries;
    for (const auto& [name, version] : info.libraries)
      libraries += (libraries.empty() ? "" : ", ") + printable(name) + " " + printable(version);
    if (!libraries.empty()) field("libraries", libraries);
    field("threads", fmt::format("{}", info.num_threads));
    if (info.created != 0) field("taken", utc(info.created));
    for (const auto& [name, value] : info.metrics) field("metric", fmt::format("{} = {}", printable(name), value));
  }
  const auto size = fmt::format("{} ({} bytes)", human_size(shown.size), grouped(shown.size));
  if (shown.sharded != nullptr)
    field("files", fmt::format("{}, of {}", size, count_of(static_cast<std::uint64_t>(shown.ranks), "rank")));
  else
    field("file", fmt::format("{}, {}", size, count_of(shown.records, "record")));
  field("tensors", fmt::format("{}, {}, {} in {}", grouped(sum.tensors), count_of(sum.elements, "element"),
                               human_size(sum.storage_bytes), count_of(sum.storages, "storage")));
  fmt::print("\n");
}

// Text from a file need not be UTF-8 that JSON can hold.
std::string dump(const nlohmann::ordered_json& json) {
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

nlohmann::ordered_json to_json(const std::string& path, const tensor_descriptor& tensor) {
  return {{"name", path},
          {"dtype", name(tensor.dtype)},
          {"shape", tensor.sizes},
          {"bytes", byte_size(tensor)},
          {"storage", tensor.storage_key},
          {"offset", tensor.storage_offset},
          {"strides", tensor.strides},
          {"requires_grad", tensor.requires_grad},
          {"parameter", tensor.parameter}};
}

nlohmann::ordered_json to_json(const std::string& path, const tree& value) {
  nlohmann::ordered_json entry = {{"name", path}, {"type", value.type_name()}};
  if (const auto* flag = value.get_if<bool>()) entry["value"] = *flag;
  if (const auto* number = value.get_if<std::int64_t>()) entry["value"] = *number;
  if (const auto* text = value.get_if<std::string>()) entry["value"] = *text;
  if (const auto* bytes = value.get_if<state::bytes>()) entry["size"] = bytes->data.size();
  if (const auto* number = value.get_if<double>()) {
    // JSON has no infinity and no NaN.
    if (std::isfinite(*number))
      entry["value"] = *number;
    else
      entry["value"] = value_text(value);
  }
  return entry;
}

/// Entry by entry, so that a big state needs no big document in memory.
template <class Wanted>
void print_entries(const char* title, const tree& state, Wanted wanted) {
  bool first = true;
  fmt::print("\"{}\":[", title);
  walk(state, [&](const std::string& path, const tree& node) {
    if (const auto entry = wanted(path, node)) {
      fmt::print("{}\n{}", first ? "" : ",", dump(*entry));
      first = false;
    }
    return true;
  });
  fmt::print("]");
}

void print_json(const subject& shown, const totals& sum) {
  using json = nlohmann::ordered_json;
  json head = {{"file", shown.named}, {"size", shown.size}, {"format", shown.info != nullptr ? "rondo" : "torch"}};
  if (shown.sharded != nullptr) head["ranks"] = shown.ranks;
  if (shown.info != nullptr) {
    const auto& info = *shown.info;
    head.update(json{{"iteration", info.iteration},
                     {"epoch", info.epoch},
                     {"mid_iteration", info.mid_iteration},
                     {"made_by", info.made_by},
                     {"num_threads", info.num_threads},
                     {"libraries", info.libraries},
                     {"created", info.created},
                     {"metrics", info.metrics}});
  }
  head["totals"] = {{"tensors", sum.tensors},
                    {"elements", sum.elements},
                    {"tensor_bytes", sum.tensor_bytes},
                    {"storages", sum.storages},
                    {"storage_bytes", sum.storage_bytes}};
  if (shown.sharded == nullptr) head["totals"]["records"] = shown.records;
  auto text = dump(head);
  text.pop_back();
  fmt::print("{},\n", text);
  print_entries("tensors", shown.state, [&](const std::string& path, const tree& node) {
    const auto* tensor = node.get_if<tensor_descriptor>();
    if (tensor == nullptr) return std::optional<json>();
    auto entry = to_json(path, *tensor);
    if (const auto* pieces = shown.pieces_of(*tensor)) {
      entry["pieces"] = pieces->count();
      entry["ranks"] = ranks_of(*pieces);
    }
    return std::optional(std::move(entry));
  });
  fmt::print(",\n");
  print_entries("values", shown.state, [](const std::string& path, const tree& node) {
    const bool is_value = !is_container(node) && !node.is<tensor_descriptor>();
    return is_value ? std::optional(to_json(path, node)) : std::nullopt;
  });
  fmt::print("}}\n");
}

void show(const subject& shown, bool as_json, std::size_t depth) {
  const auto sum = totals_of(shown.state);
  if (as_json) return print_json(shown, sum);
  print_header(shown, sum);
  printer(shown, depth).print();
}

struct inspect_options {
  std::string file;
  bool json = false;
  std::size_t depth = std::numeric_limits<std::size_t>::max();
};

}  // namespace

action inspect_command(CLI::App& app) {
  auto* const command = app.add_subcommand("inspect", "Show what a file holds, without reading the tensors' elements");
  const auto given = std::make_shared<inspect_options>();
  command->add_option("FILE", given->file, "a snapshot, a sharded one too, or what torch.save wrote")->required();
  auto* const json = command->add_flag("--json", given->json, "one JSON object, for programs");
  command->add_option("--depth", given->depth, "show so many levels of the state (default: all)")->excludes(json);
  return [given] {
    if (const auto directory = sharded_directory(given->file)) {
      const auto snapshot = checkpoint::sharded_reader::open(*directory);
      const auto whole = whole_state_of(snapshot);
      show({given->file, whole.state, &snapshot.info(), size_of(snapshot), 0, &whole, snapshot.world_size()},
           given->json, given->depth);
      return outcome::good;
    }
    const auto file = open_checkpoint(given->file);
    show({given->file, file.state(), file.info() ? &file.info()->info : nullptr, file.records().file().size(),
          file.records().entries().size()},
         given->json, given->depth);
    return outcome::good;
  };
}

}  // namespace rondo::tool
