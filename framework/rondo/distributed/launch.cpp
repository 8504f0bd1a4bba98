#include "rondo/distributed/launch.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <initializer_list>
#include <limits>
#include <system_error>
#include <utility>

#include "rondo/log.hpp"

namespace rondo::distributed {

namespace {

constexpr std::uint16_t default_port = 29500;  // torchrun's, too
// Ports that follow from a job's name: below those that Linux gives to outgoing connections.
constexpr std::uint64_t first_derived_port = 15000;
constexpr std::uint64_t derived_ports = 14000;

std::string found_as(const std::optional<std::string>& text) {
  return text ? fmt::format("'{}'", *text) : std::string("not set");
}

// ---- reading -------------------------------------------------------------------------------------------------------

/// A number, and where it comes from, which errors name.
struct sourced {
  int value = 0;
  std::string source = {};
};

template <class Number>
std::optional<Number> parse(std::string_view text) {
  Number value{};
  const auto* const end = text.data() + text.size();
  const auto [stopped, problem] = std::from_chars(text.data(), end, value);
  if (problem != std::errc() || stopped != end) return std::nullopt;
  return value;
}

class surroundings {
 public:
  explicit surroundings(variables get) : get_(std::move(get)) {
    if (!get_) get_ = of_this_process;
  }

  /// Set to nothing counts as not set: that is how scripts say "default".
  [[nodiscard]] std::optional<std::string> text(std::string_view name) const {
    auto found = get_(name);
    if (found && found->empty()) found.reset();
    return found;
  }

  /// The first one that is set.
  [[nodiscard]] std::optional<std::string> text(std::initializer_list<std::string_view> names) const {
    for (const auto name : names)
      if (auto found = text(name)) return found;
    return std::nullopt;
  }

  [[nodiscard]] std::optional<sourced> number(std::string_view name) const {
    const auto found = text(name);
    if (!found) return std::nullopt;
    const auto value = parse<int>(*found);
    if (!value || *value < 0)
      throw option_error(std::string(name), found_as(found), "a whole number from 0 to 2147483647");
    return sourced{*value, std::string(name)};
  }

  [[nodiscard]] std::optional<sourced> number(std::initializer_list<std::string_view> names) const {
    for (const auto name : names)
      if (auto found = number(name)) return found;
    return std::nullopt;
  }

 private:
  static std::optional<std::string> of_this_process(std::string_view name) {
    const char* const value = std::getenv(std::string(name).c_str());
    return value != nullptr ? std::optional<std::string>(value) : std::nullopt;
  }

  variables get_;
};

// ---- what the launchers say ----------------------------------------------------------------------------------------

/// What one launcher says of this process.
struct claim {
  launcher by = launcher::none;
  std::optional<sourced> rank = std::nullopt;
  std::optional<sourced> world_size = std::nullopt;
  std::optional<sourced> local_rank = std::nullopt;
  std::optional<sourced> local_world_size = std::nullopt;
  std::optional<std::string> first_host = std::nullopt;  ///< rank 0's machine
  std::optional<std::string> job = std::nullopt;  ///< the same for all ranks, and other for everything else that runs
  std::string local_names = {};                   ///< where the local ones would be, for errors
  std::string way_out = {};                       ///< how to say MASTER_ADDR with this launcher
};

[[noreturn]] void not_set(const std::string& name, const std::string& expected) {
  throw option_error(name, "not set", expected);
}

/// Both or none: what the launcher itself has set is never half there.
void require_both(const std::optional<sourced>& one, const char* one_name, const std::optional<sourced>& other,
                  const char* other_name) {
  if (one && !other)
    not_set(other_name, fmt::format("a number, because {} = {} is set; or unset that", one->source, one->value));
  if (other && !one)
    not_set(one_name, fmt::format("a number, because {} = {} is set; or unset that", other->source, other->value));
}

/// torchrun, `rondo run`, Kubernetes' operators, or a person.
claim claim_of_plain_variables(const surroundings& around) {
  claim plain;
  plain.by = launcher::torchrun;
  plain.rank = around.number("RANK");
  plain.world_size = around.number("WORLD_SIZE");
  plain.local_rank = around.number("LOCAL_RANK");
  plain.local_world_size = around.number("LOCAL_WORLD_SIZE");
  plain.local_names = "LOCAL_RANK, LOCAL_WORLD_SIZE";
  plain.way_out = "the machine of rank 0, the same for all ranks; 127.0.0.1 if all of them are on this one";
  return plain;
}

/// The first name of a list such as "n[003-007,9],m1" or "rack[0-1]n[0-15]".
std::optional<std::string> first_host(std::string_view list) {
  std::string host;
  while (!list.empty() && list.front() != ',') {
    if (list.front() != '[') {
      host += list.front();
      list.remove_prefix(1);
      continue;
    }
    const auto end = list.find(']');
    const auto number = list.substr(1, std::min(list.find_first_of("-,]"), list.size()) - 1);
    if (end == std::string_view::npos || number.empty()) return std::nullopt;
    host += number;
    list.remove_prefix(end + 1);
  }
  const bool sound = !host.empty() && host.find_first_of("]() \t") == std::string::npos;
  return sound ? std::optional(host) : std::nullopt;
}

/// The number for `node` in a list such as "4(x2),3".
std::optional<int> tasks_on_node(std::string_view list, int node) {
  while (!list.empty()) {
    const auto comma = std::min(list.find(','), list.size());
    const auto entry = list.substr(0, comma);
    const auto times_at = std::min(entry.find("(x"), entry.size());
    const bool repeated = times_at < entry.size();
    if (repeated && entry.back() != ')') return std::nullopt;
    const auto tasks = parse<int>(entry.substr(0, times_at));
    const auto times = repeated ? parse<int>(entry.substr(times_at + 2, entry.size() - times_at - 3)) : 1;
    if (!tasks || !times) return std::nullopt;
    if (node < *times) return tasks;
    node -= *times;
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return std::nullopt;
}

std::optional<sourced> slurm_local_size(const surroundings& around, const sourced& world_size) {
  const auto nodes = around.number({"SLURM_STEP_NUM_NODES", "SLURM_NNODES"});
  if (world_size.value == 1 || (nodes && nodes->value == 1)) return world_size;
  const char* const name =
      around.text("SLURM_STEP_TASKS_PER_NODE") ? "SLURM_STEP_TASKS_PER_NODE" : "SLURM_TASKS_PER_NODE";
  const auto list = around.text(name);
  const auto node = around.number("SLURM_NODEID");
  if (!list || !node) return std::nullopt;
  const auto tasks = tasks_on_node(*list, node->value);
  if (!tasks)
    throw option_error(name, found_as(list),
                       fmt::format("a list such as 4(x2),3 with a number for SLURM_NODEID = {}", node->value));
  return sourced{*tasks, name};
}

std::optional<std::string> slurm_first_host(const surroundings& around) {
  for (const char* const name : {"SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"}) {
    const auto list = around.text(name);
    if (!list) continue;
    if (auto host = first_host(*list)) return host;
    throw option_error(name, found_as(list), "a list of machines such as n[003-007,9]; or set MASTER_ADDR");
  }
  return std::nullopt;
}

std::optional<std::string> slurm_job(const surroundings& around) {
  const auto job = around.text({"SLURM_JOB_ID", "SLURM_JOBID"});
  if (!job) return std::nullopt;
  return *job + "." + around.text({"SLURM_STEP_ID", "SLURM_STEPID"}).value_or("0");
}

/// Only processes that srun has started are in a step. The shell of sbatch has SLURM_PROCID = 0 and SLURM_NTASKS as
/// well.
std::optional<claim> claim_of_slurm(const surroundings& around) {
  const auto rank = around.number("SLURM_PROCID");
  if (!rank) return std::nullopt;
  const bool in_step = around.text({"SLURM_STEP_NUM_TASKS", "SLURM_STEP_ID", "SLURM_STEPID"}).has_value();
  if (!in_step && rank->value == 0) return std::nullopt;
  claim slurm;
  slurm.by = launcher::slurm;
  slurm.rank = rank;
  if (in_step) slurm.world_size = around.number({"SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS"});
  if (!slurm.world_size)
    not_set("SLURM_STEP_NUM_TASKS", fmt::format("the number of tasks, as srun sets it beside SLURM_PROCID = {}; start "
                                                "the program with srun, or set RANK and WORLD_SIZE",
                                                rank->value));
  slurm.local_rank = around.number("SLURM_LOCALID");
  slurm.local_world_size = slurm_local_size(around, *slurm.world_size);
  slurm.local_names = "SLURM_LOCALID, SLURM_NODEID, SLURM_STEP_TASKS_PER_NODE";
  if (!around.text("MASTER_ADDR")) slurm.first_host = slurm_first_host(around);
  slurm.job = slurm_job(around);
  slurm.way_out = "the machine of rank 0, because SLURM_STEP_NODELIST is not set either";
  return slurm;
}

std::optional<claim> claim_of_open_mpi(const surroundings& around) {
  claim mpi;
  mpi.by = launcher::open_mpi;
  mpi.rank = around.number("OMPI_COMM_WORLD_RANK");
  mpi.world_size = around.number("OMPI_COMM_WORLD_SIZE");
  if (!mpi.rank && !mpi.world_size) return std::nullopt;
  require_both(mpi.rank, "OMPI_COMM_WORLD_RANK", mpi.world_size, "OMPI_COMM_WORLD_SIZE");
  mpi.local_rank = around.number("OMPI_COMM_WORLD_LOCAL_RANK");
  mpi.local_world_size = around.number("OMPI_COMM_WORLD_LOCAL_SIZE");
  mpi.local_names = "OMPI_COMM_WORLD_LOCAL_RANK, OMPI_COMM_WORLD_LOCAL_SIZE";
  mpi.job = around.text({"PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid"});
  mpi.way_out = "the machine of rank 0, which Open MPI does not say: mpirun -x MASTER_ADDR=HOST …";
  return mpi;
}

std::optional<claim> claim_of_pmi(const surroundings& around) {
  claim pmi;
  pmi.by = launcher::pmi;
  pmi.rank = around.number("PMI_RANK");
  pmi.world_size = around.number("PMI_SIZE");
  if (!pmi.rank && !pmi.world_size) return std::nullopt;
  require_both(pmi.rank, "PMI_RANK", pmi.world_size, "PMI_SIZE");
  pmi.local_rank = around.number({"MPI_LOCALRANKID", "PMI_LOCAL_RANK"});
  pmi.local_world_size = around.number({"MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"});
  pmi.local_names = "MPI_LOCALRANKID, MPI_LOCALNRANKS";
  pmi.job = around.text("PMI_JOBID");
  pmi.way_out = "the machine of rank 0, which PMI does not say: mpiexec -genv MASTER_ADDR HOST …";
  return pmi;
}

bool same_place(const claim& one, const claim& other) {
  return one.rank->value == other.rank->value && one.world_size->value == other.world_size->value;
}

/// SLURM goes first, but an mpirun that was called in a job starts its own servants with srun, so what they start has
/// both kinds of variables, and those of SLURM count the servants. srun itself never sets those of Open MPI; those of
/// PMI it sets to its own values.
std::optional<claim> claim_of_cluster(const surroundings& around) {
  if (auto mpi = claim_of_open_mpi(around)) return mpi;
  auto slurm = claim_of_slurm(around);
  auto pmi = claim_of_pmi(around);
  if (slurm && pmi) return same_place(*slurm, *pmi) ? slurm : pmi;
  return slurm ? slurm : pmi;
}

// ---- choosing ------------------------------------------------------------------------------------------------------

[[noreturn]] void contradict(const sourced& one, const sourced& other) {
  throw option_error(one.source, fmt::format("{}", one.value),
                     fmt::format("{}, as {} says; unset one of them", other.value, other.source));
}

/// Values that were exported for one shell reach everything that mpirun or srun starts there, alike for all.
void require_agreement(const claim& plain, const claim& cluster) {
  const bool alone = cluster.world_size->value == 1;  // an srun or mpirun for each rank
  if (alone && plain.rank && plain.world_size) return;
  if (plain.world_size && plain.world_size->value != cluster.world_size->value)
    contradict(*plain.world_size, *cluster.world_size);
  if (plain.rank && plain.rank->value != cluster.rank->value) contradict(*plain.rank, *cluster.rank);
}

void replace(std::optional<sourced>& value, const std::optional<int>& argument, const char* name) {
  if (argument) value = sourced{*argument, name};
}

void replace_by_arguments(claim& any, const launch_arguments& arguments) {
  replace(any.rank, arguments.rank, "rank");
  replace(any.world_size, arguments.world_size, "world_size");
  replace(any.local_rank, arguments.local_rank, "local_rank");
  replace(any.local_world_size, arguments.local_world_size, "local_world_size");
}

void require_nothing_half_set(const claim& plain) {
  require_both(plain.rank, "RANK", plain.world_size, "WORLD_SIZE");
  for (const auto& local : {plain.local_rank, plain.local_world_size})
    if (local)
      not_set("RANK", fmt::format("a number, and one for WORLD_SIZE, because {} = {} is set; or unset that",
                                  local->source, local->value));
}

void warn_of_shell_of_job(const surroundings& around) {
  const auto tasks = around.text("SLURM_NTASKS");
  if (tasks && *tasks != "1" && around.text("SLURM_JOB_ID"))
    log::warn(fmt::format("a single process, although SLURM_NTASKS = {}: start the program with srun", *tasks));
}

claim claim_of_single_process(const launch_arguments& arguments) {
  claim single;
  single.rank = sourced{0, "rank"};
  single.world_size = sourced{1, "world_size"};
  replace_by_arguments(single, arguments);
  if (arguments.rank && !arguments.world_size)
    not_set("world_size", fmt::format("a number, because rank = {} is given", *arguments.rank));
  if (arguments.world_size.value_or(1) > 1)
    not_set("rank", fmt::format("a number, because world_size = {} is given", *arguments.world_size));
  if (arguments.world_size) single.by = launcher::arguments;
  return single;
}

claim choose(const launch_arguments& arguments, const surroundings& around) {
  auto plain = claim_of_plain_variables(around);
  const bool by_launcher = plain.local_rank.has_value();  // a person seldom sets it
  replace_by_arguments(plain, arguments);
  if (arguments.rank && arguments.world_size) {
    plain.by = launcher::arguments;
    return plain;
  }
  if (plain.rank && plain.world_size && by_launcher) return plain;
  auto cluster = claim_of_cluster(around);
  if (cluster) {
    replace_by_arguments(*cluster, arguments);
    require_agreement(plain, *cluster);
  }
  if (plain.rank && plain.world_size) return plain;
  if (cluster) return *cluster;
  if (!arguments.rank && !arguments.world_size) require_nothing_half_set(plain);
  warn_of_shell_of_job(around);
  return claim_of_single_process(arguments);
}

// ---- completing ----------------------------------------------------------------------------------------------------

void require_range(const sourced& number, int lowest, int highest, const std::string& why) {
  if (number.value < lowest || number.value > highest)
    throw option_error(number.source, fmt::format("{}", number.value),
                       lowest == highest ? fmt::format("{}{}", lowest, why)
                                         : fmt::format("a number from {} to {}{}", lowest, highest, why));
}

std::string because_of(const sourced& other) { return fmt::format(", because {} = {}", other.source, other.value); }

bool is_this_machine(std::string_view host) {
  return host == "localhost" || host == "::1" || host.substr(0, 4) == "127.";
}

/// Whether RANK and the others like it describe this process: they may come without those for one machine.
bool is_plain(launcher by) { return by == launcher::torchrun || by == launcher::arguments; }

/// Where nobody says which ranks share a machine. Kubernetes' operators set MASTER_ADDR and run one rank on each.
void assume_machines(claim& given, const std::optional<std::string>& master_addr) {
  const auto rank = *given.rank;
  const auto world_size = *given.world_size;
  const auto& size = given.local_world_size;
  const bool all_here =
      world_size.value == 1 || (size ? size->value == world_size.value : master_addr && is_this_machine(*master_addr));
  const bool one_per_machine = size ? size->value == 1 : !given.local_rank && is_plain(given.by) && master_addr;
  if (all_here) {
    if (!given.local_rank) given.local_rank = rank;
    if (!given.local_world_size) given.local_world_size = world_size;
  } else if (one_per_machine) {
    if (!given.local_rank) given.local_rank = sourced{0, rank.source};
    if (!given.local_world_size) given.local_world_size = sourced{1, world_size.source};
  }
}

void require_local(const claim& given, const std::optional<std::string>& master_addr) {
  if (given.local_rank && given.local_world_size) return;
  if (is_plain(given.by) && !master_addr && !given.local_rank) not_set("MASTER_ADDR", given.way_out);
  throw option_error(given.local_names, "not all set",
                     "which of how many processes of this machine this one is; or give local_rank and "
                     "local_world_size as arguments");
}

void require_sense(const claim& given) {
  const auto& size = *given.local_world_size;
  require_range(size, 1, given.world_size->value, because_of(*given.world_size));
  require_range(*given.local_rank, 0, size.value - 1, because_of(size));
}

std::string require_host(const std::string& name, const std::string& host) {
  if (host.empty() || host.find_first_of(" \t\n/,[]") != std::string::npos)
    throw option_error(name, found_as(host), "the name or the address of rank 0's machine");
  return host;
}

std::optional<std::string> given_host(const launch_arguments& arguments, const surroundings& around) {
  if (arguments.master_addr) return require_host("master_addr", *arguments.master_addr);
  const auto host = around.text("MASTER_ADDR");
  if (host) return require_host("MASTER_ADDR", *host);
  return std::nullopt;
}

std::optional<std::uint16_t> given_port(const launch_arguments& arguments, const surroundings& around) {
  constexpr const char* allowed = "a port from 1 to 65535";
  if (arguments.master_port) {
    if (*arguments.master_port == 0) throw option_error("master_port", "0", allowed);
    return arguments.master_port;
  }
  const auto text = around.text("MASTER_PORT");
  if (!text) return std::nullopt;
  const auto port = parse<std::uint16_t>(*text);
  if (!port || *port == 0) throw option_error("MASTER_PORT", found_as(text), allowed);
  return port;
}

/// Two jobs on one machine seldom get the same, and if they do, the second one is told so.
std::uint16_t port_of(std::string_view job) {
  std::uint64_t hash = 14695981039346656037U;  // FNV-1a
  for (const char c : job) hash = (hash ^ static_cast<unsigned char>(c)) * 1099511628211U;
  return static_cast<std::uint16_t>(first_derived_port + hash % derived_ports);
}

std::string meeting_host(const claim& given, const std::optional<std::string>& said) {
  if (said) return *said;
  if (given.local_world_size->value == given.world_size->value) return "127.0.0.1";
  if (given.first_host) return *given.first_host;
  not_set("MASTER_ADDR", given.way_out);
}

/// Whether torchrun itself serves at MASTER_ADDR and MASTER_PORT. Python writes True and False.
bool says_agent_store(const surroundings& around) {
  const auto text = around.text("TORCHELASTIC_USE_AGENT_STORE");
  if (!text || *text == "False" || *text == "false" || *text == "0") return false;
  if (*text == "True" || *text == "true" || *text == "1") return true;
  throw option_error("TORCHELASTIC_USE_AGENT_STORE", found_as(text), "True or False, as torchrun sets it");
}

void add_agent(launch& who, const launch_arguments& arguments, const surroundings& around) {
  const bool meets_elsewhere = arguments.master_addr || arguments.master_port;
  if (!is_plain(who.by) || meets_elsewhere) return;
  who.agent_store = says_agent_store(around);
  if (!who.agent_store) return;
  for (const char* const name : {"MASTER_ADDR", "MASTER_PORT"})
    if (!around.text(name)) not_set(name, "where torchrun listens, because TORCHELASTIC_USE_AGENT_STORE is set");
  who.attempt = fmt::format("{}/{}", around.text("TORCHELASTIC_RUN_ID").value_or("none"),
                            around.text("TORCHELASTIC_RESTART_COUNT").value_or("0"));
}

launch complete(claim given, const launch_arguments& arguments, const surroundings& around) {
  require_range(*given.world_size, 1, std::numeric_limits<int>::max(), "");
  require_range(*given.rank, 0, given.world_size->value - 1, because_of(*given.world_size));
  const auto host = given_host(arguments, around);
  assume_machines(given, host);
  require_local(given, host);
  require_sense(given);
  launch who;
  who.by = given.by;
  who.rank = given.rank->value;
  who.world_size = given.world_size->value;
  who.local_rank = given.local_rank->value;
  who.local_world_size = given.local_world_size->value;
  who.master_addr = meeting_host(given, host);
  who.master_port = given_port(arguments, around).value_or(given.job ? port_of(*given.job) : default_port);
  add_agent(who, arguments, around);
  return who;
}

}  // namespace

launch environment(const launch_arguments& arguments, const variables& get) {
  const surroundings around(get);
  return complete(choose(arguments, around), arguments, around);
}

}  // namespace rondo::distributed
