#include "rondo/extensions/snapshot/snapshot_directory.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <string_view>

#include "rondo/checkpoint/reader.hpp"
#include "rondo/log.hpp"

namespace rondo::extensions {

namespace {

/// Nothing when the file is gone.
std::optional<std::int64_t> modification_time(const std::filesystem::path& file) {
  std::error_code failed;
  const auto time = std::filesystem::last_write_time(file, failed);
  if (failed) return std::nullopt;
  return static_cast<std::int64_t>(time.time_since_epoch().count());
}

/// Whether the first record of a zip archive is the pickle of a checkpoint: true for damaged checkpoints too, if not at
/// their very beginning, and false for all other files.
bool begins_like_a_checkpoint(const std::filesystem::path& file) {
  char head[128] = {};
  std::ifstream(file, std::ios::binary).read(head, sizeof(head));
  const std::string_view bytes(head, sizeof(head));
  return bytes.starts_with("PK\x03\x04") && bytes.find("/data.pkl") != std::string_view::npos;
}

}  // namespace

snapshot_directory::snapshot_directory(std::filesystem::path directory, std::string owner,
                                       std::optional<writing::file_name_template> names, bool has_manifest)
    : directory_(std::move(directory)),
      owner_(std::move(owner)),
      names_(std::move(names)),
      has_manifest_(has_manifest) {}

std::vector<snapshot_candidate> snapshot_directory::list(std::vector<rejected_snapshot>* rejected) {
  std::vector<snapshot_candidate> found;
  const auto files = writing::posix_file_system();
  for (const auto& entry : files->list(directory_)) {
    if (!may_be_ours(entry)) continue;
    const auto path = directory_ / entry.name;
    try {
      if (const auto iteration = iteration_of(entry)) found.push_back({path, *iteration});
    } catch (const std::exception& e) {
      const bool gone = !modification_time(path) && entry.kind == writing::file_kind::regular;
      if (rejected != nullptr && !gone) rejected->push_back({path, e.what()});
    }
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    return a.iteration != b.iteration ? a.iteration > b.iteration : a.path > b.path;
  });
  return found;
}

std::optional<std::int64_t> snapshot_directory::iteration_of(const writing::directory_entry& entry) {
  const auto path = directory_ / entry.name;
  if (entry.kind != writing::file_kind::regular)
    throw format_error(path.string(), 0,
                       entry.kind == writing::file_kind::symlink
                           ? "is a symbolic link, which is not followed; copy or move the file itself here"
                           : "has the name of a snapshot, but is no regular file");
  return has_manifest_ ? iteration_inside(path, entry.size) : iteration_in_name(entry.name);
}

void snapshot_directory::retain(std::int64_t keep, std::int64_t now, const std::filesystem::path& newest) noexcept {
  try {
    auto all = list();
    std::erase_if(all, [&](const snapshot_candidate& c) { return c.iteration > now || c.path == newest; });
    for (std::size_t i = static_cast<std::size_t>(keep - 1); i < all.size(); ++i) {
      std::error_code failed;
      std::filesystem::remove(all[i].path, failed);
      if (failed)
        log::warn(fmt::format("the old snapshot '{}' cannot be removed: {}", all[i].path.string(), failed.message()));
      known_.erase(all[i].path.filename().string());
    }
  } catch (const std::exception& e) {
    log::warn(std::string("old snapshots cannot be removed: ") + e.what());
  }
}

std::optional<std::string> snapshot_directory::other_owner(const std::filesystem::path& path) const {
  if (!has_manifest_ || !modification_time(path)) return std::nullopt;
  try {
    const auto reader = checkpoint::reader::open(path);
    if (!reader.info() || reader.info()->info.made_by == owner_) return std::nullopt;
    return reader.info()->info.made_by;
  } catch (const error&) {
    return std::nullopt;  // a damaged file may be replaced
  }
}

bool snapshot_directory::may_be_ours(const writing::directory_entry& entry) const {
  if (names_) return names_->parse(entry.name).has_value();
  return entry.kind == writing::file_kind::regular && !entry.name.starts_with('.') &&
         begins_like_a_checkpoint(directory_ / entry.name);
}

std::optional<std::int64_t> snapshot_directory::iteration_in_name(const std::string& name) const {
  const auto values = names_->parse(name);
  return std::get<std::int64_t>(values->find("iteration")->second);
}

std::optional<std::int64_t> snapshot_directory::iteration_inside(const std::filesystem::path& file,
                                                                 std::uint64_t size) {
  const auto name = file.filename().string();
  const auto modified = modification_time(file);
  if (!modified) return std::nullopt;
  const auto it = known_.find(name);
  if (it != known_.end() && it->second.size == size && it->second.modified == *modified) return it->second.iteration;

  const auto reader = checkpoint::reader::open(file);
  if (!reader.info())
    throw format_error(file.string(), 0,
                       "is a file of torch.save or another program: it has no manifest (record rondo.json)");
  const auto& info = reader.info()->info;
  const bool ours = names_ || info.made_by == owner_;
  const auto iteration = info.mid_iteration || !ours ? std::nullopt : std::optional(info.iteration);
  known_.insert_or_assign(name, known{size, *modified, iteration});
  return iteration;
}

}  // namespace rondo::extensions
