#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "rondo/error.hpp"

/// Training on several processes ("ranks"), which may be on several machines.
namespace rondo::distributed {

/// What variables of a process' surroundings say; nothing for those that are not set. Empty ones count as not set.
using variables = std::function<std::optional<std::string>(std::string_view name)>;

/// Who has started this process as one of several.
enum class launcher {
  none,       ///< a single process
  arguments,  ///< the caller has said rank and world size
  torchrun,   ///< torchrun, `rondo run`, or RANK and WORLD_SIZE set by hand
  slurm,      ///< srun; a shell of sbatch or salloc alone is a single process
  open_mpi,   ///< mpirun of Open MPI
  pmi,        ///< mpiexec of MPICH, Intel MPI and others that speak PMI
};

/// Which of how many processes this is, and where they meet. One process that a launcher has started is a group of one,
/// with `by` naming the launcher.
struct launch {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;                     ///< among the processes of this machine; the index of its GPU, as a rule
  int local_world_size = 1;               ///< how many of them are on this machine
  std::string master_addr = "127.0.0.1";  ///< the machine of rank 0, as the other ones reach it
  std::uint16_t master_port = 29500;      ///< where the ranks meet there
  bool agent_store = false;  ///< whether the launcher hosts the meeting point itself, so that rank 0 must not
  /// Which start this is, where the launcher's meeting point outlives one: its run id and how often it has restarted.
  std::string attempt = "0";
  launcher by = launcher::none;
};

/// What the caller knows better than the surroundings.
struct launch_arguments {
  std::optional<int> rank = std::nullopt;
  std::optional<int> world_size = std::nullopt;
  std::optional<int> local_rank = std::nullopt;
  std::optional<int> local_world_size = std::nullopt;
  std::optional<std::string> master_addr = std::nullopt;
  std::optional<std::uint16_t> master_port = std::nullopt;
};

/// Which rank this process is: from `arguments`, else from what torchrun, SLURM, Open MPI or PMI have set (in this
/// order), else a single process. `arguments` take the place of single values, too; with rank and world_size among them
/// the others' variables for these are not read. docs/launch.md lists the variables.
///
/// * MASTER_ADDR and MASTER_PORT, where set, count with every launcher. Without them: rank 0's machine as SLURM names
///   it, or 127.0.0.1 where all ranks are on one machine; a port from 15000 to 28999 that follows from the job's name
///   (SLURM, Open MPI), or 29500.
/// * Ranks whose machines nobody tells (RANK, WORLD_SIZE and MASTER_ADDR alone) are all on this machine if MASTER_ADDR
///   is 127.0.0.1 or localhost, otherwise one on each machine.
/// * What mpirun has started inside of a SLURM job is what mpirun says.
///
/// Throws `option_error` naming the variable, what was found and what would do, for values that are half set, no
/// numbers, out of range or contradict each other. `get` reads the surroundings; default: the process' environment.
[[nodiscard]] launch environment(const launch_arguments& arguments = {}, const variables& get = {});

}  // namespace rondo::distributed
