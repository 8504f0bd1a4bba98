#include "rondo/writing/memory_file_system.hpp"

#include <algorithm>
#include <cerrno>
#include <limits>
#include <random>
#include <utility>

#include "rondo/error.hpp"
#include "rondo/writing/posix.hpp"

namespace rondo::writing {

using posix::failure;

// A file or directory. Files only grow, so what is durable of a file is a prefix.
struct memory_file_system::node {
  struct change {
    enum class type { link, unlink, rename } what;
    std::string from;
    std::string to;
    std::shared_ptr<node> target;
  };
  using names = std::map<std::string, std::shared_ptr<node>>;

  explicit node(file_kind what) : kind(what) {}

  static void apply(names& entries, const change& change) {
    if (change.what != change::type::link) {
      const auto found = entries.find(change.from);
      if (found != entries.end() && found->second == change.target) entries.erase(found);
    }
    if (change.what != change::type::unlink) entries[change.to] = change.target;
  }

  void record(change next) {
    apply(entries, next);
    pending.push_back(std::move(next));
  }

  file_kind kind;
  std::vector<std::byte> content;
  std::size_t durable_size = 0;
  names entries;
  names durable_entries;
  std::vector<change> pending;
};

class memory_file_system::file final : public output_file {
 public:
  file(memory_file_system& owner, std::shared_ptr<node> target, path name)
      : owner_(owner), target_(std::move(target)), name_(std::move(name)) {}

  void append(std::span<const std::byte> bytes) override {
    perform(operation::append, "write",
            [&] { target_->content.insert(target_->content.end(), bytes.begin(), bytes.end()); });
  }

  void sync() override {
    perform(operation::sync, "sync", [&] { target_->durable_size = target_->content.size(); });
  }

  void close() override {
    perform(operation::close, "close", [&] { unusable_ = EBADF; });
  }

 private:
  template <class Action>
  void perform(operation kind, const char* verb, Action action) {
    if (unusable_ != 0) throw failure(verb, name_, unusable_);
    try {
      owner_.begin(kind, verb, name_);
    } catch (const io_error& error) {
      unusable_ = error.code().value();
      throw;
    }
    const std::lock_guard lock(owner_.mutex_);
    action();
  }

  memory_file_system& owner_;
  std::shared_ptr<node> target_;
  path name_;
  int unusable_ = 0;
};

// One way in which a crash may turn out: for everything that is not certain, which of its outcomes came true.
struct memory_file_system::crash {
  enum outcome : std::size_t { lost, half, zeros, kept, outcomes };

  explicit crash(const std::shared_ptr<node>& root) { collect(root); }

  void collect(const std::shared_ptr<node>& found) {
    if (known.count(found.get()) > 0) return;
    known[found.get()] = choices.size();
    if (found->content.size() > found->durable_size) choices.push_back(outcomes);
    choices.insert(choices.end(), found->pending.size(), std::size_t{2});
    for (const auto& [name, entry] : found->durable_entries) collect(entry);
    for (const auto& change : found->pending) collect(change.target);
  }

  [[nodiscard]] std::size_t states() const {
    std::size_t product = 1;
    for (const auto choice : choices) {
      if (product > std::numeric_limits<std::size_t>::max() / choice) return std::numeric_limits<std::size_t>::max();
      product *= choice;
    }
    return product;
  }

  void choose(std::size_t number) {
    chosen.clear();
    for (const auto choice : choices) {
      chosen.push_back(number % choice);
      number /= choice;
    }
  }

  void choose_at_random(std::mt19937_64& random) {
    chosen.clear();
    for (const auto choice : choices) chosen.push_back(random() % choice);
  }

  void choose_everything() {
    chosen.clear();
    for (const auto choice : choices) chosen.push_back(choice - 1);
  }

  std::shared_ptr<node> build(const std::shared_ptr<node>& from) {
    auto& built = copies[from.get()];
    if (built) return built;
    built = std::make_shared<node>(from->kind);
    const auto result = built;
    auto next = known.at(from.get());
    result->content = from->content;
    if (from->content.size() > from->durable_size) cut(*result, from->durable_size, chosen[next++]);
    result->durable_size = result->content.size();
    auto entries = from->durable_entries;
    for (const auto& change : from->pending) {
      if (chosen[next++] == 1) node::apply(entries, change);
    }
    for (const auto& [name, entry] : entries) result->entries[name] = build(entry);
    result->durable_entries = result->entries;
    return result;
  }

  static void cut(node& file, std::size_t durable, std::size_t what) {
    auto& bytes = file.content;
    if (what == lost) bytes.resize(durable);
    if (what == half) bytes.resize(durable + (bytes.size() - durable) / 2);
    if (what == zeros) std::fill(bytes.begin() + static_cast<std::ptrdiff_t>(durable), bytes.end(), std::byte{0});
  }

  std::map<const node*, std::size_t> known;
  std::vector<std::size_t> choices;
  std::vector<std::size_t> chosen;
  std::map<const node*, std::shared_ptr<node>> copies;
};

memory_file_system::memory_file_system() : root_(std::make_shared<node>(file_kind::directory)) {}
memory_file_system::~memory_file_system() = default;

void memory_file_system::begin(operation kind, const char* verb, const path& name) {
  if (observer_) observer_(kind, name);
  const std::lock_guard lock(mutex_);
  auto& faults = faults_[kind];
  const auto fault = faults.find(++counts_[kind]);
  if (fault == faults.end()) return;
  const int code = fault->second;
  faults.erase(fault);
  throw failure(verb, name, code);
}

std::shared_ptr<memory_file_system::node> memory_file_system::find(const path& name) const {
  auto at = root_;
  for (const auto& part : name.lexically_normal().relative_path()) {
    if (part.empty() || part == ".") continue;
    const auto next = at->entries.find(part.string());
    if (next == at->entries.end()) return nullptr;
    at = next->second;
  }
  return at;
}

std::shared_ptr<memory_file_system::node> memory_file_system::directory(const char* verb, const path& name) const {
  auto found = find(name);
  if (!found) throw failure(verb, name, ENOENT);
  if (found->kind != file_kind::directory) throw failure(verb, name, ENOTDIR);
  return found;
}

std::unique_ptr<output_file> memory_file_system::create(const path& name, std::uint64_t) {
  begin(operation::create, "create", name);
  const std::lock_guard lock(mutex_);
  const auto parent = directory("create", directory_of(name));
  if (find(name)) throw failure("create", name, EEXIST);
  auto created = std::make_shared<node>(file_kind::regular);
  parent->record({node::change::type::link, "", name.filename().string(), created});
  return std::make_unique<file>(*this, std::move(created), name);
}

std::uint64_t memory_file_system::sync_file(const path& name) {
  begin(operation::sync, "sync", name);
  const std::lock_guard lock(mutex_);
  const auto found = find(name);
  if (!found) throw failure("open", name, ENOENT);
  if (found->kind != file_kind::regular) throw failure("sync", name, EINVAL);
  found->durable_size = found->content.size();
  return found->durable_size;
}

void memory_file_system::rename(const path& from, const path& to) {
  begin(operation::rename, "rename to", to);
  const std::lock_guard lock(mutex_);
  const auto parent = directory("rename to", directory_of(to));
  if (parent != find(directory_of(from))) throw failure("rename to", to, EXDEV);
  const auto moved = find(from);
  if (!moved) throw failure("rename to", to, ENOENT);
  const auto replaced = find(to);
  if (replaced && replaced->kind == file_kind::directory) throw failure("rename to", to, EISDIR);
  parent->record({node::change::type::rename, from.filename().string(), to.filename().string(), moved});
}

bool memory_file_system::remove(const path& name) {
  begin(operation::remove, "remove", name);
  const std::lock_guard lock(mutex_);
  const auto found = find(name);
  if (!found) return false;
  if (found->kind == file_kind::directory) throw failure("remove", name, EISDIR);
  const auto parent = directory("remove", directory_of(name));
  parent->record({node::change::type::unlink, name.filename().string(), "", found});
  return true;
}

file_kind memory_file_system::kind(const path& name) {
  begin(operation::inspect, "inspect", name);
  const std::lock_guard lock(mutex_);
  const auto found = find(name);
  return found ? found->kind : file_kind::none;
}

std::vector<directory_entry> memory_file_system::list(const path& name) {
  begin(operation::list, "list", name);
  const std::lock_guard lock(mutex_);
  std::vector<directory_entry> entries;
  for (const auto& [entry, found] : directory("list", name)->entries) {
    entries.push_back({entry, found->kind, found->content.size()});
  }
  return entries;
}

void memory_file_system::sync_directory(const path& name) {
  begin(operation::sync_directory, "sync directory", name);
  const std::lock_guard lock(mutex_);
  const auto synced = directory("sync directory", name);
  synced->durable_entries = synced->entries;
  synced->pending.clear();
}

bool memory_file_system::create_directory(const path& name) {
  begin(operation::create_directory, "create directory", name);
  const std::lock_guard lock(mutex_);
  if (const auto found = find(name)) {
    if (found->kind != file_kind::directory) throw failure("create directory", name, ENOTDIR);
    return false;
  }
  const auto parent = directory("create directory", directory_of(name));
  parent->record(
      {node::change::type::link, "", name.filename().string(), std::make_shared<node>(file_kind::directory)});
  return true;
}

std::optional<std::vector<std::byte>> memory_file_system::read(const path& name) const {
  const std::lock_guard lock(mutex_);
  const auto found = find(name);
  if (!found || found->kind != file_kind::regular) return std::nullopt;
  return found->content;
}

void memory_file_system::place(const path& name, file_kind kind, std::vector<std::byte> content) {
  const std::lock_guard lock(mutex_);
  const auto parent = directory("place", directory_of(name));
  auto placed = std::make_shared<node>(kind);
  placed->durable_size = content.size();
  placed->content = std::move(content);
  parent->entries[name.filename().string()] = placed;
  parent->durable_entries[name.filename().string()] = std::move(placed);
}

void memory_file_system::fail(operation kind, std::size_t nth, int code) {
  const std::lock_guard lock(mutex_);
  faults_[kind][counts_[kind] + nth] = code;
}

std::size_t memory_file_system::count(operation kind) const {
  const std::lock_guard lock(mutex_);
  const auto found = counts_.find(kind);
  return found == counts_.end() ? 0 : found->second;
}

void memory_file_system::observe(std::function<void(operation, const path&)> observer) {
  observer_ = std::move(observer);
}

std::size_t memory_file_system::for_each_crash_state(const std::function<void(memory_file_system&)>& visit,
                                                     std::size_t limit, std::uint64_t seed) const {
  std::unique_lock lock(mutex_);
  crash outcome(root_);
  const auto states = outcome.states();
  std::mt19937_64 random(seed);
  const auto visited = std::min(states, limit);
  for (std::size_t number = 0; number < visited; ++number) {
    if (states <= limit || number == 0) {
      outcome.choose(number);
    } else if (number == 1) {
      outcome.choose_everything();
    } else {
      outcome.choose_at_random(random);
    }
    outcome.copies.clear();
    memory_file_system state;
    state.root_ = outcome.build(root_);
    lock.unlock();
    visit(state);
    lock.lock();
  }
  return visited;
}

}  // namespace rondo::writing
