#include "rondo/writing/atomic_file.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>

#include "rondo/async/trace.hpp"
#include "rondo/error.hpp"
#include "rondo/writing/posix.hpp"
#include "rondo/writing/temporary_name.hpp"

namespace rondo::writing {

namespace {

using clock = std::chrono::steady_clock;

// Made when they are needed: files may be written before main (see register_savefun).
const trace::label& write_span() {
  static const trace::label& label = trace::intern("write", "writer");
  return label;
}
const trace::label& sync_span() {
  static const trace::label& label = trace::intern("sync", "writer");
  return label;
}
const trace::label& commit_span() {
  static const trace::label& label = trace::intern("commit", "writer");
  return label;
}

double seconds(clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

// The temporaries that this process is writing, so that the clean-up can tell them from those that it left.
class names_in_use {
 public:
  void insert(const std::string& name) {
    const std::lock_guard lock(mutex_);
    names_.insert(name);
  }
  void erase(const std::string& name) {
    const std::lock_guard lock(mutex_);
    names_.erase(name);
  }
  bool contains(const std::string& name) {
    const std::lock_guard lock(mutex_);
    return names_.count(name) > 0;
  }

 private:
  std::mutex mutex_;
  std::set<std::string> names_;
};

names_in_use& in_use() {
  // Never destroyed: a thread that was given up may still be writing when the program ends.
  static auto& names = *new names_in_use;
  return names;
}

/// Whether a file under this name is what somebody has left who will not come back to it.
bool stale(file_system& files, const path& directory, const std::string& name) {
  using state = temporary_owner::state;
  const auto owner = owner_of(name);
  if (!owner) return false;
  if (owner->what == state::here) return !in_use().contains(name);
  if (owner->what == state::elsewhere) return files.use_of(directory / name) == file_use::idle;
  return owner->what == state::gone;
}

/// Whether another process is known to be at work on it.
bool alive(file_system& files, const path& directory, const std::string& name, const temporary_owner& owner) {
  using state = temporary_owner::state;
  if (owner.what == state::elsewhere) return files.use_of(directory / name) == file_use::locked;
  return owner.what == state::running;
}

// A file under a temporary name, removed unless it was committed. Errors of the removal are dropped: the error that led
// to it matters more, and the next start removes what is left.
class temporary {
 public:
  temporary(file_system& files, const path& target)
      : files_(files), target_(target), name_(temporary_name(target, ::getpid())), file_(directory_of(target) / name_) {
    in_use().insert(name_);
  }
  temporary(const temporary&) = delete;
  temporary& operator=(const temporary&) = delete;
  ~temporary() {
    if (exists_) try_to_remove();
    in_use().erase(name_);
  }

  [[nodiscard]] const path& file() const noexcept { return file_; }
  void exists() noexcept { exists_ = true; }

  void commit() {
    files_.rename(file_, target_);
    exists_ = false;
    try {
      files_.sync_directory(directory_of(target_));
    } catch (const io_error& error) {
      throw io_error(error.operation(), error.path(), error.code(),
                     fmt::format("'{}' is whole and in place, but might not survive a power loss; keep older files",
                                 target_.string()));
    }
  }

 private:
  void try_to_remove() noexcept {
    try {
      files_.remove(file_);
    } catch (...) {
      // A serializer that writes by itself may have left anything.
      std::error_code ignored;
      if (std::filesystem::is_directory(std::filesystem::symlink_status(file_, ignored)))
        std::filesystem::remove_all(file_, ignored);
    }
  }

  file_system& files_;
  path target_;
  std::string name_;
  path file_;
  bool exists_ = false;
};

[[noreturn]] void refuse(const path& target, std::errc code, const std::string& why) {
  throw io_error("write", target, std::make_error_code(code), why);
}

void expect_replaceable(file_system& files, const path& target) {
  if (!target.has_filename()) refuse(target, std::errc::invalid_argument, "it does not name a file");
  switch (files.kind(target)) {
    case file_kind::none:
    case file_kind::regular:
      return;
    case file_kind::directory:
      refuse(target, std::errc::is_a_directory, "remove it or choose another name");
    case file_kind::symlink:
      refuse(target, std::errc::too_many_symbolic_link_levels,
             "it is a symbolic link, and links are not followed: remove it or choose another name");
    case file_kind::other:
      refuse(target, std::errc::file_exists, "it is not a regular file: remove it or choose another name");
  }
}

void prepare(file_system& files, const path& target) {
  const auto directory = directory_of(target);
  if (files.kind(directory) == file_kind::none) create_directories(files, directory);
  expect_replaceable(files, target);
}

[[noreturn]] void refuse_size(const path& target, std::uint64_t expected, std::uint64_t found) {
  refuse(target, std::errc::invalid_argument,
         fmt::format("{} bytes were announced, {} were produced", expected, found));
}

}  // namespace

write_receipt write_atomically(file_system& files, const path& target, std::uint64_t expected_size,
                               const producer& produce) {
  prepare(files, target);
  write_receipt receipt;
  receipt.target = target;
  temporary unfinished(files, target);
  trace::span phase(write_span());
  const auto started = clock::now();
  const auto file = files.create(unfinished.file(), expected_size);
  unfinished.exists();
  const auto count = [&](std::span<const std::byte> bytes) {
    receipt.bytes += bytes.size();
    if (receipt.bytes > expected_size) refuse_size(target, expected_size, receipt.bytes);
  };
  const auto append = [&](std::span<const std::byte> bytes) {
    count(bytes);
    file->append(bytes);
  };
  const auto append_stable = [&](std::span<const std::byte> bytes) {
    count(bytes);
    file->append_stable(bytes);
  };
  produce(append_function(append, append_stable));
  if (receipt.bytes != expected_size) refuse_size(target, expected_size, receipt.bytes);
  phase.next(sync_span());
  const auto written = clock::now();
  file->sync();
  file->close();
  phase.next(commit_span());
  const auto synced = clock::now();
  unfinished.commit();
  receipt.write_seconds = seconds(written - started);
  receipt.sync_seconds = seconds(synced - written);
  receipt.commit_seconds = seconds(clock::now() - synced);
  return receipt;
}

write_receipt write_atomically_by_path(file_system& files, const path& target, const path_producer& produce) {
  prepare(files, target);
  write_receipt receipt;
  receipt.target = target;
  temporary unfinished(files, target);
  trace::span phase(write_span());
  const auto started = clock::now();
  unfinished.exists();
  produce(unfinished.file());
  const auto found = files.kind(unfinished.file());
  if (found == file_kind::none) refuse(target, std::errc::no_such_file_or_directory, "the serializer wrote no file");
  if (found != file_kind::regular) {
    refuse(target, std::errc::invalid_argument, "the serializer left something that is not a regular file");
  }
  // What is buffered for it would come after its name.
  if (posix::is_open_here(unfinished.file()))
    refuse(target, std::errc::device_or_resource_busy, "the serializer left its file open");
  phase.next(sync_span());
  const auto written = clock::now();
  receipt.bytes = files.sync_file(unfinished.file());
  phase.next(commit_span());
  const auto synced = clock::now();
  unfinished.commit();
  receipt.write_seconds = seconds(written - started);
  receipt.sync_seconds = seconds(synced - written);
  receipt.commit_seconds = seconds(clock::now() - synced);
  return receipt;
}

std::vector<path> remove_stale_temporaries(file_system& files, const path& directory) {
  std::vector<path> removed;
  for (const auto& entry : files.list(directory)) {
    if (entry.kind != file_kind::regular || !stale(files, directory, entry.name)) continue;
    if (files.remove(directory / entry.name)) removed.push_back(directory / entry.name);
  }
  return removed;
}

std::vector<live_temporary> live_temporaries(file_system& files, const path& directory) {
  std::vector<live_temporary> found;
  for (const auto& entry : files.list(directory)) {
    const auto owner = entry.kind == file_kind::regular ? owner_of(entry.name) : std::nullopt;
    if (owner && alive(files, directory, entry.name, *owner)) found.push_back({directory / entry.name, owner->process});
  }
  return found;
}

std::vector<live_temporary> wait_for_live_temporaries(file_system& files, const path& directory,
                                                      clock::duration limit) {
  constexpr std::chrono::milliseconds between_looks(10);
  const auto end = clock::now() + limit;
  auto found = live_temporaries(files, directory);
  while (!found.empty() && clock::now() < end) {
    std::this_thread::sleep_for(between_looks);
    found = live_temporaries(files, directory);
  }
  return found;
}

path announce_writing(file_system& files, const path& target, pid_t process) {
  const auto announcement = directory_of(target) / temporary_name(target, process);
  bool made = false;
  try {
    const auto file = files.create(announcement, 0);
    made = true;
    file->close();
    return announcement;
  } catch (const io_error&) {
  }
  try {
    if (made) files.remove(announcement);
  } catch (const io_error&) {
  }
  return {};
}

void remove_temporaries_of(file_system& files, const path& target, pid_t process) {
  const auto directory = directory_of(target);
  if (files.kind(directory) != file_kind::directory) return;
  const auto beginning = fmt::format(".{}.tmp-{}-", target.filename().string(), process);
  for (const auto& entry : files.list(directory)) {
    const auto owner = owner_of(entry.name);
    const bool theirs = owner && owner->what != temporary_owner::state::elsewhere && entry.name.starts_with(beginning);
    if (theirs && entry.kind == file_kind::regular) files.remove(directory / entry.name);
  }
}

}  // namespace rondo::writing
