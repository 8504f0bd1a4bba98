#include "rondo/extensions/snapshot/snapshot_directory.hpp"

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <new>
#include <string_view>
#include <system_error>

#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/sharded.hpp"
#include "rondo/extensions/snapshot/sharded_directory.hpp"
#include "rondo/log.hpp"

namespace rondo::extensions {

namespace {

/// Nothing when the file is gone.
std::optional<struct stat> inspect(const std::filesystem::path& file) {
  struct stat about {};
  if (::lstat(file.c_str(), &about) != 0) return std::nullopt;
  return about;
}

/// The file in which a snapshot says what it is.
std::filesystem::path telling_file(const std::filesystem::path& snapshot) {
  return checkpoint::is_sharded(snapshot) ? snapshot / checkpoint::sharded_index : snapshot;
}

std::int64_t created(const std::filesystem::path& file) {
  const auto about = inspect(file);
  return about ? static_cast<std::int64_t>(about->st_mtim.tv_sec) : 0;
}

std::int64_t seconds_now() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

/// Whether the first record of a zip archive is the pickle of a checkpoint: true for damaged checkpoints too, if not at
/// their very beginning, and false for all other files.
bool begins_like_a_checkpoint(const std::filesystem::path& file) {
  char head[128] = {};
  std::ifstream(file, std::ios::binary).read(head, sizeof(head));
  const std::string_view bytes(head, sizeof(head));
  return bytes.starts_with("PK\x03\x04") && bytes.find("/data.pkl") != std::string_view::npos;
}

bool is_preempted(const std::filesystem::path& file) { return file.string().ends_with(preempted_suffix); }

std::string without_preempted(std::string name) {
  if (name.ends_with(preempted_suffix)) name.resize(name.size() - preempted_suffix.size());
  return name;
}

void require_right_to_look_into(const std::filesystem::path& directory) {
  std::error_code failed;
  static_cast<void>(std::filesystem::symlink_status(directory / checkpoint::sharded_index, failed));
  if (failed == std::errc::permission_denied) throw io_error("open", directory, failed);
}

}  // namespace

bool proves_nothing(const std::exception& e) {
  if (dynamic_cast<const std::bad_alloc*>(&e) != nullptr) return true;
  if (const auto* torch = dynamic_cast<const c10::Error*>(&e))
    return std::string_view(torch->what_without_backtrace()).find("memory") != std::string_view::npos;
  const auto no_such_file = [](const std::error_code& code) {
    return code == std::errc::no_such_file_or_directory || code == std::errc::not_a_directory;
  };
  if (const auto* io = dynamic_cast<const io_error*>(&e)) return !no_such_file(io->code());
  if (const auto* system = dynamic_cast<const std::system_error*>(&e)) return !no_such_file(system->code());
  return false;
}

snapshot_directory::snapshot_directory(std::filesystem::path directory, std::string owner,
                                       std::optional<writing::file_name_template> names, bool has_manifest,
                                       std::function<bool(const std::string& name)> is_other)
    : directory_(std::move(directory)),
      owner_(std::move(owner)),
      names_(std::move(names)),
      has_manifest_(has_manifest),
      is_other_(std::move(is_other)) {}

std::vector<snapshot_record> snapshot_directory::list(std::vector<rejected_snapshot>* rejected) {
  std::vector<snapshot_record> found;
  const auto files = writing::posix_file_system();
  for (const auto& entry : files->list(directory_)) {
    if (!may_be_ours(entry)) continue;
    const auto path = directory_ / entry.name;
    try {
      if (auto record = record_of(entry)) found.push_back(std::move(*record));
    } catch (const std::exception& e) {
      if (rejected != nullptr && proves_nothing(e)) throw;
      const bool gone = !inspect(path) && entry.kind == writing::file_kind::regular;
      if (rejected != nullptr && !gone) rejected->push_back({path, e.what()});
    }
  }
  std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    return a.iteration != b.iteration ? a.iteration > b.iteration : a.path > b.path;
  });
  return found;
}

std::optional<snapshot_record> snapshot_directory::record_of(const writing::directory_entry& entry) {
  const auto path = directory_ / entry.name;
  const bool sharded = has_manifest_ && checkpoint::is_sharded(path);
  if (entry.kind == writing::file_kind::directory && !sharded) require_right_to_look_into(path);
  if (entry.kind != writing::file_kind::regular && !sharded)
    throw format_error(path.string(), 0,
                       entry.kind == writing::file_kind::symlink
                           ? "is a symbolic link, which is not followed; copy or move the file itself here"
                           : "has the name of a snapshot, but is no regular file and no complete sharded snapshot");
  if (!has_manifest_) return record_by_name(path);
  const auto seen = stamp_of(path);
  if (!seen) return std::nullopt;
  const auto it = known_.find(entry.name);
  if (it != known_.end() && it->second.seen == *seen) return it->second.record;
  auto record = record_inside(path);
  known_.insert_or_assign(entry.name, known{*seen, record});
  return record;
}

std::optional<snapshot_directory::stamp> snapshot_directory::stamp_of(const std::filesystem::path& file) {
  const auto about = inspect(telling_file(file));
  if (!about) return std::nullopt;
  return stamp{static_cast<std::uint64_t>(about->st_size),
               static_cast<std::int64_t>(about->st_mtim.tv_sec) * 1'000'000'000 + about->st_mtim.tv_nsec};
}

void snapshot_directory::note(snapshot_record written, bool mid_iteration) {
  const auto seen = stamp_of(written.path);
  if (!seen || !has_manifest_) return;
  const auto name = written.path.filename().string();
  known_.insert_or_assign(name, known{*seen, mid_iteration ? std::nullopt : std::optional(std::move(written))});
}

void snapshot_directory::retain(const retention& policy, std::int64_t now,
                                const std::filesystem::path& newest) noexcept {
  try {
    auto all = list();
    std::erase_if(all,
                  [&](const snapshot_record& r) { return r.iteration > now || r.foreign || is_preempted(r.path); });
    const auto keep = policy.keep(all, seconds_now());
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (keep[i] || all[i].path == newest) continue;
      remove(all[i].path);
      known_.erase(all[i].path.filename().string());
    }
  } catch (const std::exception& e) {
    log::warn(std::string("old snapshots cannot be removed: ") + e.what());
  }
}

void snapshot_directory::remove_preempted_but(const std::filesystem::path& newest) noexcept {
  try {
    for (const auto& one : list())
      if (is_preempted(one.path) && one.path != newest) remove(one.path);
  } catch (const std::exception& e) {
    log::warn(std::string("old snapshots cannot be removed: ") + e.what());
  }
}

void snapshot_directory::remove(const std::filesystem::path& snapshot) {
  try {
    if (checkpoint::is_sharded(snapshot))
      remove_sharded(snapshot);
    else
      std::filesystem::remove(snapshot);
  } catch (const std::exception& e) {
    log::warn(fmt::format("the old snapshot '{}' cannot be removed: {}", snapshot.string(), e.what()));
  }
}

std::optional<std::string> snapshot_directory::other_owner(const std::filesystem::path& path) const {
  const auto seen = stamp_of(path);
  if (!has_manifest_ || !seen) return std::nullopt;
  const auto it = known_.find(path.filename().string());
  const bool is_mine =
      it != known_.end() && it->second.seen == *seen && it->second.record && !it->second.record->foreign;
  if (is_mine) return std::nullopt;
  try {
    const auto reader = checkpoint::reader::open(telling_file(path));
    if (!reader.info() || reader.info()->info.made_by == owner_) return std::nullopt;
    return reader.info()->info.made_by;
  } catch (const error&) {
    return std::nullopt;  // a damaged file may be replaced
  }
}

bool snapshot_directory::may_be_ours(const writing::directory_entry& entry) const {
  if (names_) return names_->parse(without_preempted(entry.name)).has_value();
  const auto path = directory_ / entry.name;
  const bool may_be = entry.kind == writing::file_kind::regular || checkpoint::is_sharded(path);
  return may_be && !entry.name.starts_with('.') && begins_like_a_checkpoint(telling_file(path));
}

snapshot_record snapshot_directory::record_by_name(const std::filesystem::path& file) const {
  const auto values = names_->parse(without_preempted(file.filename().string()));
  snapshot_record record;
  record.path = file;
  record.iteration = std::get<std::int64_t>(values->find("iteration")->second);
  record.created = created(file);
  return record;
}

std::optional<snapshot_record> snapshot_directory::record_inside(const std::filesystem::path& file) const {
  const auto reader = checkpoint::reader::open(telling_file(file));
  snapshot_record record;
  record.path = file;
  record.created = created(file);
  if (!reader.info()) {
    const auto* root = reader.state().get_if<checkpoint::tree::dict>();
    const auto* iteration = root != nullptr ? root->find("_start_iteration") : nullptr;
    const auto* number = iteration != nullptr ? iteration->get_if<std::int64_t>() : nullptr;
    if (number == nullptr)
      throw format_error(
          file.string(), 0,
          "is a file of torch.save or another program: it has neither a manifest (record rondo.json) nor "
          "the key _start_iteration of pytorch-pfn-extras");
    record.iteration = *number;
    record.foreign = true;
    return record;
  }
  const auto& info = reader.info()->info;
  const bool ours = info.made_by == owner_ || (names_ && !is_other_(info.made_by));
  if (info.mid_iteration || !ours) return std::nullopt;
  record.iteration = info.iteration;
  record.epoch = info.epoch;
  if (info.created > 0) record.created = info.created;
  record.metrics = info.metrics;
  return record;
}

}  // namespace rondo::extensions
