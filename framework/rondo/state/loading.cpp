#include "rondo/state/loading.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "rondo/log.hpp"

namespace rondo::state {

namespace {

// A state of another architecture differs in thousands of names, of which the first few tell everything.
constexpr std::size_t lines_per_kind = 50;

std::string joined(std::string_view path, std::string_view name) {
  if (path.empty()) return std::string(name);
  if (name.empty()) return std::string(path);
  return fmt::format("{}.{}", path, name);
}

/// What follows `beginning` in `name`, without the dot between them; nothing if the name begins otherwise.
std::optional<std::string_view> rest_after(std::string_view beginning, std::string_view name) {
  if (beginning.empty()) return name;
  if (!name.starts_with(beginning)) return std::nullopt;
  name.remove_prefix(beginning.size());
  if (name.empty()) return name;
  if (name.front() != '.') return std::nullopt;
  return name.substr(1);
}

void drop_last_dot(std::string& name) {
  if (name.ends_with('.')) name.pop_back();
}

/// Where the elements are; null where there are none to point at.
const void* memory_of(const at::Tensor& t) {
  return t.defined() && t.layout() == at::kStrided && t.has_storage() && t.numel() > 0 ? t.data_ptr() : nullptr;
}

std::string problem_of(const state_error& e) {
  const std::string what = e.what();
  return what.substr(std::string_view(state_error(e.key(), "").what()).size());
}

}  // namespace

loading::loading(load_options options, std::string subject)
    : options_(std::move(options)), subject_(std::move(subject)), pair_was_used_(options_.rename.size()) {
  for (auto& [from, to] : options_.rename) {
    drop_last_dot(from);
    drop_last_dot(to);
  }
}

loading::scope::scope(loading& of, std::string path, std::string stored_path)
    : of_(of),
      outer_path_(std::exchange(of.path_, std::move(path))),
      outer_stored_path_(std::exchange(of.stored_path_, std::move(stored_path))) {}

loading::scope::~scope() {
  of_.path_ = std::move(outer_path_);
  of_.stored_path_ = std::move(outer_stored_path_);
}

loading::scope loading::within(std::string path, std::string stored_path) {
  return {*this, std::move(path), std::move(stored_path)};
}

std::optional<std::string> loading::renamed(std::string_view name) {
  names_matter_ = true;
  if (options_.rename.empty()) return std::nullopt;
  const std::string full = joined(stored_path_, name);
  for (std::size_t i = 0; i < options_.rename.size(); ++i) {
    const auto& [from, to] = options_.rename[i];
    std::optional<std::string> found;
    if (const auto rest = rest_after(from, name)) {
      found = joined(to, *rest);
    } else if (const auto rest_of_path = rest_after(from, full); rest_of_path && from.size() > stored_path_.size()) {
      const std::string moved = joined(to, *rest_of_path);
      const auto inside = rest_after(path_, moved);
      if (!inside || inside->empty()) {
        pair_was_used_[i] = true;
        findings_.push_back({kind::rename, full, fmt::format("'{}' leads out of '{}'", moved, path_)});
        return std::nullopt;
      }
      found = std::string(*inside);
    }
    if (!found) continue;
    pair_was_used_[i] = true;
    if (!found->empty()) return found;
    findings_.push_back({kind::rename, full, "nothing is left of the name"});
    return std::nullopt;
  }
  return std::nullopt;
}

std::string loading::renamed_object(std::string_view part, const std::string& name) {
  names_matter_ = true;
  const std::string full = joined(part, name);
  for (std::size_t i = 0; i < options_.rename.size(); ++i) {
    const auto& [from, to] = options_.rename[i];
    if (from != full) continue;
    pair_was_used_[i] = true;
    const auto inside = rest_after(part, to);
    if (inside && !inside->empty()) return std::string(*inside);
    findings_.push_back({kind::rename, full, fmt::format("'{}' leads out of '{}'", to, part)});
    break;
  }
  return name;
}

void loading::add(kind what, std::string_view name, std::string problem) {
  findings_.push_back({what, joined(path_, name), std::move(problem)});
}

void loading::missing(std::string_view name, std::string expected) { add(kind::missing, name, std::move(expected)); }

void loading::unexpected(std::string_view name, std::string found) { add(kind::unexpected, name, std::move(found)); }

void loading::mismatched(std::string_view name, std::string problem) {
  add(kind::mismatched, name, std::move(problem));
}

void loading::mismatched(const state_error& e) { mismatched(e.key(), problem_of(e)); }

void loading::ambiguous(std::string_view name, std::string problem) {
  ambiguous_ = true;
  add(kind::rename, name, std::move(problem));
}

void loading::count(std::size_t fitting, std::size_t all) {
  fitting_ += fitting;
  tensors_ += all;
}

void loading::displace(const at::Tensor& parameter) {
  if (const void* memory = memory_of(parameter)) displaced_.insert(memory);
}

bool loading::is_displaced(const at::Tensor& parameter) const { return displaced_.contains(memory_of(parameter)); }

void loading::add_idle_pairs() {
  if (!names_matter_) return;
  for (std::size_t i = 0; i < options_.rename.size(); ++i) {
    if (pair_was_used_[i]) continue;
    const auto& [from, to] = options_.rename[i];
    findings_.push_back({kind::rename, "", fmt::format("{{\"{}\", \"{}\"}} fits no stored name", from, to)});
  }
}

std::string loading::listed() const {
  static constexpr std::pair<kind, const char*> kinds[] = {{kind::missing, "missing in the state"},
                                                           {kind::unexpected, "unexpected in the state"},
                                                           {kind::mismatched, "on both sides, but different"},
                                                           {kind::rename, "rename"}};
  std::string text;
  for (const auto& [kind, title] : kinds) {
    const auto is_of_kind = [kind = kind](const finding& f) { return f.what == kind; };
    const auto all = static_cast<std::size_t>(std::ranges::count_if(findings_, is_of_kind));
    if (all == 0) continue;
    fmt::format_to(std::back_inserter(text), "\n  {} ({}):", title, all);
    std::size_t shown = 0;
    for (const auto& f : findings_) {
      if (!is_of_kind(f)) continue;
      if (shown++ == lines_per_kind) break;
      text += "\n    " + f.path;
      if (!f.path.empty() && !f.problem.empty()) text += ": ";
      text += f.problem;
    }
    if (all > lines_per_kind) fmt::format_to(std::back_inserter(text), "\n    … and {} more", all - lines_per_kind);
  }
  return text;
}

void loading::require_fit() {
  add_idle_pairs();
  if (findings_.empty() || (tolerant() && !ambiguous_)) return;
  const bool single = findings_.size() == 1;
  throw state_error(
      single ? findings_.front().path : "",
      fmt::format("{} does not fit ({} problem{}; nothing was changed):{}\n"
                  "Build what was saved, or tell with load_options::rename which names are meant, or load what fits "
                  "with load_options::on_mismatch = mismatch::warn",
                  subject_, findings_.size(), single ? "" : "s", listed()));
}

void loading::report() const {
  if (findings_.empty()) return;
  const auto say = options_.on_mismatch == mismatch::warn ? &log::warn : &log::debug;
  say(
      fmt::format("{} fits in part: {} of {} tensors of modules are loaded, and what did not fit keeps what it has "
                  "({} difference{}):{}",
                  subject_, fitting_, tensors_, findings_.size(), findings_.size() == 1 ? "" : "s", listed()));
}

}  // namespace rondo::state
