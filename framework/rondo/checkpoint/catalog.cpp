#include "rondo/checkpoint/catalog.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <system_error>
#include <utility>

#include "rondo/checkpoint/reader.hpp"
#include "rondo/checkpoint/sharded.hpp"
#include "rondo/checkpoint/verify.hpp"
#include "rondo/error.hpp"

namespace rondo::checkpoint {

namespace {

constexpr std::uint64_t looked_at = 1024;  // bytes at each end

std::string part_of(const std::filesystem::path& file, std::uint64_t offset) {
  std::string bytes(looked_at, '\0');
  std::ifstream in(file, std::ios::binary);
  in.seekg(static_cast<std::streamoff>(offset));
  in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  bytes.resize(static_cast<std::size_t>(in.gcount()));
  return bytes;
}

// The first record of a checkpoint is its pickle; the last name in the directory of one of Rondo's is the manifest.
bool looks_like_a_snapshot(const std::filesystem::path& file, std::uint64_t size) {
  const auto head = part_of(file, 0);
  if (head.starts_with("PK\x03\x04") && head.find("/data.pkl") != std::string::npos) return true;
  const auto tail = part_of(file, size - std::min(size, looked_at));
  const auto manifest = tail.find("/" + std::string(manifest_record));
  return manifest != std::string::npos && tail.find("PK\x05\x06", manifest) != std::string::npos;
}

/// The file that says what the snapshot is.
std::filesystem::path telling_file(const std::filesystem::path& snapshot) {
  return is_sharded(snapshot) ? snapshot / sharded_index : snapshot;
}

std::uint64_t size_of_files(const std::filesystem::path& directory) {
  std::uint64_t sum = 0;
  std::error_code failed;
  std::filesystem::directory_iterator entry(directory, failed);
  for (; !failed && entry != std::filesystem::directory_iterator(); entry.increment(failed)) {
    std::error_code gone;
    const auto size = std::filesystem::file_size(entry->path(), gone);
    if (!gone) sum += size;
  }
  return sum;
}

std::string refusal(std::filesystem::file_type kind) {
  if (kind == std::filesystem::file_type::symlink)
    return "is a symbolic link, which is not followed; copy or move the file itself here";
  return "has the name of a snapshot, but is no regular file and no complete sharded snapshot";
}

[[noreturn]] void fail(const char* operation, const std::filesystem::path& path) {
  throw io_error(operation, path, std::error_code(errno, std::generic_category()));
}

void sync_directory(const std::filesystem::path& directory) {
  const int opened = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (opened < 0) fail("open", directory);
  const bool synced = ::fsync(opened) == 0;
  const int reason = errno;
  ::close(opened);
  errno = reason;
  if (!synced) fail("sync", directory);
}

bool is_newer(const cataloged_snapshot& a, const cataloged_snapshot& b) {
  return a.info.iteration != b.info.iteration ? a.info.iteration > b.info.iteration : a.path > b.path;
}

std::vector<std::filesystem::path> names_in(const std::filesystem::path& directory) {
  std::vector<std::filesystem::path> names;
  std::error_code failed;
  std::filesystem::directory_iterator entry(directory, failed);
  for (; !failed && entry != std::filesystem::directory_iterator(); entry.increment(failed))
    names.push_back(entry->path().filename());
  if (failed) throw io_error("list", directory, failed);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace

catalog::catalog(std::filesystem::path directory, name_filter is_snapshot)
    : directory_(std::move(directory)), is_snapshot_(std::move(is_snapshot)) {
  refresh();
}

void catalog::refresh() {
  const auto names = names_in(directory_);
  std::map<std::string, finding> known;
  snapshots_.clear();
  interrupted_.clear();
  rejected_.clear();
  for (const auto& name : names) {
    const bool wanted = is_snapshot_ ? is_snapshot_(name.string()) : !name.string().starts_with('.');
    if (wanted) examine_entry(directory_ / name, known);
  }
  known_ = std::move(known);
  std::sort(snapshots_.begin(), snapshots_.end(), is_newer);
  std::sort(interrupted_.begin(), interrupted_.end(), is_newer);
}

void catalog::examine_entry(const std::filesystem::path& file, std::map<std::string, finding>& known) {
  std::error_code gone;
  const auto kind = std::filesystem::symlink_status(file, gone).type();
  if (kind != std::filesystem::file_type::regular && !is_sharded(file)) {
    if (is_snapshot_ && std::filesystem::status_known(std::filesystem::file_status(kind)) &&
        kind != std::filesystem::file_type::not_found)
      rejected_.push_back({file, refusal(kind)});
    return;
  }
  const auto now = identify(telling_file(file));
  if (!now) return;
  const auto name = file.filename().string();
  const auto before = known_.find(name);
  const auto found = before != known_.end() && before->second.file == *now ? before->second : examine(file);
  if (!found) return;
  known.emplace(name, *found);
  file_under(file, *found);
}

std::optional<catalog::finding> catalog::examine(const std::filesystem::path& file) const {
  const auto telling = telling_file(file);
  const auto now = identify(telling);
  if (!now || (!is_snapshot_ && !looks_like_a_snapshot(telling, now->size))) return std::nullopt;
  const auto size = telling == file ? now->size : size_of_files(file);
  try {
    const auto opened = reader::open(telling);
    if (opened.info()) return finding{*now, opened.info()->info, "", size};
    if (!is_snapshot_) return std::nullopt;
    return finding{*now, std::nullopt,
                   "was written by torch.save or another program: it has no manifest (record rondo.json)", size};
  } catch (const error& problem) {
    if (!identify(telling)) return std::nullopt;  // removed meanwhile
    return finding{*now, std::nullopt, problem.what(), size};
  }
}

void catalog::file_under(const std::filesystem::path& file, const finding& found) {
  if (!found.info) return rejected_.push_back({file, found.problem});
  auto& list = found.info->mid_iteration ? interrupted_ : snapshots_;
  list.push_back({file, *found.info, found.size});
}

std::optional<std::string> catalog::problem_of(const cataloged_snapshot& snapshot) {
  try {
    if (is_sharded(snapshot.path))
      verify(sharded_reader::open(snapshot.path));
    else
      verify(reader::open(snapshot.path));
    return std::nullopt;
  } catch (const error& problem) {
    return problem.what();
  }
}

bool catalog::remove(const cataloged_snapshot& snapshot) {
  const auto known = known_.find(snapshot.path.filename().string());
  const auto telling = telling_file(snapshot.path);
  const auto now = identify(telling);
  if (known == known_.end() || !now || *now != known->second.file) return false;
  if (::unlink(telling.c_str()) != 0) {
    if (errno == ENOENT) return false;
    fail("remove", telling);
  }
  if (telling == snapshot.path) return true;
  sync_directory(snapshot.path);
  std::error_code failed;
  std::filesystem::remove_all(snapshot.path, failed);
  if (failed) throw io_error("remove", snapshot.path, failed);
  return true;
}

std::optional<catalog::identity> catalog::identify(const std::filesystem::path& file) {
  struct stat status {};
  if (::lstat(file.c_str(), &status) != 0) return std::nullopt;
  return identity{static_cast<std::uint64_t>(status.st_dev), static_cast<std::uint64_t>(status.st_ino),
                  static_cast<std::uint64_t>(status.st_size), static_cast<std::int64_t>(status.st_mtim.tv_sec),
                  static_cast<std::int64_t>(status.st_mtim.tv_nsec)};
}

}  // namespace rondo::checkpoint
