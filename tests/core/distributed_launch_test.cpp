#include "rondo/distributed/launch.hpp"

#include <cstdlib>
#include <map>
#include <set>
#include <string>

#include "support/catch.hpp"
#include "support/messages.hpp"

namespace distributed_launch_test {

using rondo::option_error;
using rondo::distributed::environment;
using rondo::distributed::launch;
using rondo::distributed::launch_arguments;
using rondo::distributed::launcher;
using rondo::distributed::variables;

namespace {

using settings = std::map<std::string, std::string>;

variables reading(const settings& set) {
  return [set](std::string_view name) -> std::optional<std::string> {
    const auto found = set.find(std::string(name));
    return found == set.end() ? std::nullopt : std::optional(found->second);
  };
}

launch with(const settings& set, const launch_arguments& arguments = {}) {
  return environment(arguments, reading(set));
}

settings operator+(settings one, const settings& other) {
  for (const auto& [name, value] : other) one[name] = value;
  return one;
}

settings without(settings set, const std::string& name) {
  set.erase(name);
  return set;
}

/// Which option is complained about, and everything that is said of it.
struct complaint {
  std::string option;
  std::string text;
};

complaint complaint_about(const settings& set, const launch_arguments& arguments = {}) {
  try {
    with(set, arguments);
  } catch (const option_error& error) {
    return {error.option(), error.what()};
  }
  return {"no complaint", ""};
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

std::string place(const launch& who) {
  return std::to_string(who.rank) + "/" + std::to_string(who.world_size) + " " + std::to_string(who.local_rank) + "/" +
         std::to_string(who.local_world_size);
}

// As torchrun --nproc_per_node 2 on the second of two machines sets them.
const settings by_torchrun = {{"RANK", "3"},
                              {"WORLD_SIZE", "4"},
                              {"LOCAL_RANK", "1"},
                              {"LOCAL_WORLD_SIZE", "2"},
                              {"GROUP_RANK", "1"},
                              {"ROLE_RANK", "3"},
                              {"MASTER_ADDR", "alpha"},
                              {"MASTER_PORT", "29400"},
                              {"TORCHELASTIC_RESTART_COUNT", "2"},
                              {"TORCHELASTIC_MAX_RESTARTS", "3"},
                              {"TORCHELASTIC_RUN_ID", "night"},
                              {"TORCHELASTIC_USE_AGENT_STORE", "True"}};

// As srun -N 3 -n 8 in a job with other numbers sets them.
const settings by_srun = {{"SLURM_JOB_ID", "5462202"},
                          {"SLURM_STEP_ID", "1"},
                          {"SLURM_PROCID", "4"},
                          {"SLURM_NTASKS", "64"},
                          {"SLURM_STEP_NUM_TASKS", "8"},
                          {"SLURM_LOCALID", "1"},
                          {"SLURM_NODEID", "1"},
                          {"SLURM_NNODES", "4"},
                          {"SLURM_STEP_NUM_NODES", "3"},
                          {"SLURM_TASKS_PER_NODE", "34,26,2(x2)"},
                          {"SLURM_STEP_TASKS_PER_NODE", "3(x2),2"},
                          {"SLURM_NODELIST", "c[3005,3011,3019,3105]"},
                          {"SLURM_STEP_NODELIST", "c[3011,3019,3105]"}};

const settings by_mpirun = {{"OMPI_COMM_WORLD_RANK", "1"},
                            {"OMPI_COMM_WORLD_SIZE", "2"},
                            {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                            {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"},
                            {"PMIX_RANK", "1"},
                            {"PMIX_NAMESPACE", "1543503873"}};

const settings by_mpiexec = {
    {"PMI_RANK", "1"}, {"PMI_SIZE", "2"}, {"PMI_FD", "8"}, {"MPI_LOCALRANKID", "1"}, {"MPI_LOCALNRANKS", "2"}};

}  // namespace

TEST_CASE("without a launcher there is a single process", "[distributed][launch]") {
  for (const auto& set :
       {settings{}, settings{{"MASTER_ADDR", "alpha"}, {"MASTER_PORT", "1234"}},
        settings{{"RANK", ""}, {"WORLD_SIZE", ""}}, settings{{"TORCHELASTIC_USE_AGENT_STORE", "True"}}}) {
    const auto who = with(set);
    CHECK(place(who) == "0/1 0/1");
    CHECK(who.by == launcher::none);
    CHECK_FALSE(who.agent_store);
  }
  CHECK(with({}).master_addr == "127.0.0.1");
  CHECK(with({}).master_port == 29500);
  CHECK(with({}).attempt == "0");
}

TEST_CASE("the process' own environment is read by default", "[distributed][launch]") {
  ::setenv("RANK", "2", 1);
  ::setenv("WORLD_SIZE", "3", 1);
  ::setenv("MASTER_ADDR", "localhost", 1);
  const auto who = environment();
  for (const auto* name : {"RANK", "WORLD_SIZE", "MASTER_ADDR"}) ::unsetenv(name);
  CHECK(place(who) == "2/3 2/3");
  CHECK(who.master_addr == "localhost");
}

TEST_CASE("torchrun's variables are understood", "[distributed][launch]") {
  const auto who = with(by_torchrun);
  CHECK(place(who) == "3/4 1/2");
  CHECK(who.by == launcher::torchrun);
  CHECK(who.master_addr == "alpha");
  CHECK(who.master_port == 29400);

  SECTION("its own store, with keys for each start") {
    CHECK(who.agent_store);
    CHECK(who.attempt == "night/2");
    const auto again = with(by_torchrun + settings{{"TORCHELASTIC_RESTART_COUNT", "3"}});
    CHECK(again.attempt != who.attempt);
    const auto other = with(by_torchrun + settings{{"TORCHELASTIC_RUN_ID", "day"}});
    CHECK(other.attempt != who.attempt);
  }
  SECTION("a store that rank 0 serves") {
    const auto of_rank_0 = with(by_torchrun + settings{{"TORCHELASTIC_USE_AGENT_STORE", "False"}});
    CHECK_FALSE(of_rank_0.agent_store);
    CHECK(of_rank_0.attempt == "0");
    CHECK_FALSE(with(without(by_torchrun, "TORCHELASTIC_USE_AGENT_STORE")).agent_store);
    CHECK(complaint_about(by_torchrun + settings{{"TORCHELASTIC_USE_AGENT_STORE", "yes"}}).option ==
          "TORCHELASTIC_USE_AGENT_STORE");
  }
  SECTION("an agent's store is where it says") {
    CHECK(complaint_about(without(by_torchrun, "MASTER_PORT")).option == "MASTER_PORT");
    CHECK_FALSE(with(by_torchrun, {.master_port = std::uint16_t{4000}}).agent_store);
    CHECK_FALSE(with(by_torchrun, {.master_addr = "beta"}).agent_store);
    CHECK(with(by_torchrun, {.rank = 3, .world_size = 4}).agent_store);
  }
  SECTION("one process is a group of one") {
    const auto alone = with(
        by_torchrun + settings{{"RANK", "0"}, {"WORLD_SIZE", "1"}, {"LOCAL_RANK", "0"}, {"LOCAL_WORLD_SIZE", "1"}});
    CHECK(place(alone) == "0/1 0/1");
    CHECK(alone.by == launcher::torchrun);
  }
}

TEST_CASE("RANK and WORLD_SIZE can be set by hand", "[distributed][launch]") {
  const settings two = {{"RANK", "1"}, {"WORLD_SIZE", "2"}};
  SECTION("on this machine") {
    for (const auto* here : {"127.0.0.1", "127.0.1.1", "localhost", "::1"}) {
      const auto who = with(two + settings{{"MASTER_ADDR", here}});
      CHECK(place(who) == "1/2 1/2");
      CHECK(who.master_addr == here);
      CHECK(who.master_port == 29500);
    }
    const auto said = with(two + settings{{"LOCAL_WORLD_SIZE", "2"}});
    CHECK(place(said) == "1/2 1/2");
    CHECK(said.master_addr == "127.0.0.1");
  }
  SECTION("on one machine each") {
    CHECK(place(with(two + settings{{"MASTER_ADDR", "alpha"}, {"MASTER_PORT", "23456"}})) == "1/2 0/1");
    CHECK(place(with(two + settings{{"MASTER_ADDR", "alpha"}, {"LOCAL_WORLD_SIZE", "1"}})) == "1/2 0/1");
  }
  SECTION("pretending that one machine is several") {
    const settings four = {{"RANK", "3"}, {"WORLD_SIZE", "4"}, {"MASTER_ADDR", "127.0.0.1"}};
    CHECK(place(with(four + settings{{"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"}})) == "3/4 1/2");
    CHECK(place(with(four + settings{{"LOCAL_RANK", "0"}})) == "3/4 0/4");
    CHECK(complaint_about(four + settings{{"LOCAL_WORLD_SIZE", "2"}}).option == "LOCAL_RANK, LOCAL_WORLD_SIZE");
  }
  SECTION("where the ranks meet must be known") {
    const auto missing = complaint_about(two);
    CHECK(missing.option == "MASTER_ADDR");
    CHECK(contains(missing.text, "not set"));
    CHECK(contains(missing.text, "127.0.0.1"));
    CHECK(complaint_about(two + settings{{"LOCAL_RANK", "0"}, {"LOCAL_WORLD_SIZE", "1"}}).option == "MASTER_ADDR");
    const auto half_local = complaint_about(two + settings{{"LOCAL_RANK", "0"}, {"MASTER_ADDR", "alpha"}});
    CHECK(half_local.option == "LOCAL_RANK, LOCAL_WORLD_SIZE");
  }
}

TEST_CASE("half of a launch is an error that names the other half", "[distributed][launch]") {
  for (const auto& [set, missing] : std::map<std::string, std::string>{{"RANK", "WORLD_SIZE"},
                                                                       {"WORLD_SIZE", "RANK"},
                                                                       {"LOCAL_RANK", "RANK"},
                                                                       {"LOCAL_WORLD_SIZE", "RANK"},
                                                                       {"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"},
                                                                       {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"},
                                                                       {"PMI_RANK", "PMI_SIZE"},
                                                                       {"PMI_SIZE", "PMI_RANK"}}) {
    INFO(set);
    const auto half = complaint_about({{set, "1"}});
    CHECK(half.option == missing);
    CHECK(contains(half.text, set + " = 1"));
    CHECK(contains(half.text, "unset"));
    CHECK(complaint_about({{set, "1"}, {missing, ""}}).option == missing);
  }
}

TEST_CASE("what is no number is an error that shows it", "[distributed][launch]") {
  const std::map<std::string, settings> launches = {{"RANK", by_torchrun},
                                                    {"WORLD_SIZE", by_torchrun},
                                                    {"LOCAL_RANK", by_torchrun},
                                                    {"LOCAL_WORLD_SIZE", by_torchrun},
                                                    {"MASTER_PORT", by_torchrun},
                                                    {"SLURM_PROCID", by_srun},
                                                    {"SLURM_STEP_NUM_TASKS", by_srun},
                                                    {"SLURM_LOCALID", by_srun},
                                                    {"SLURM_NODEID", by_srun},
                                                    {"OMPI_COMM_WORLD_RANK", by_mpirun},
                                                    {"OMPI_COMM_WORLD_LOCAL_SIZE", by_mpirun},
                                                    {"PMI_SIZE", by_mpiexec},
                                                    {"MPI_LOCALRANKID", by_mpiexec}};
  for (const auto& [name, set] : launches)
    for (const auto* value : {"one", "1.0", " 1", "1 ", "+1", "-1", "0x1", "99999999999999999999", "1,2"}) {
      INFO(name << " = '" << value << "'");
      const auto wrong = complaint_about(set + settings{{name, value}});
      CHECK(wrong.option == name);
      CHECK(contains(wrong.text, "'" + std::string(value) + "'"));
    }
}

TEST_CASE("numbers must fit each other", "[distributed][launch]") {
  const auto wrong = [](const settings& set) {
    const auto found = complaint_about(by_torchrun + set);
    return found.option + " | " + found.text;
  };
  CHECK(contains(wrong({{"RANK", "4"}}),
                 "RANK | option 'RANK' = 4: allowed is a number from 0 to 3, because WORLD_SIZE = 4"));
  CHECK(contains(wrong({{"WORLD_SIZE", "3"}}), "RANK | option 'RANK' = 3"));
  CHECK(contains(wrong({{"WORLD_SIZE", "0"}}), "WORLD_SIZE | "));
  CHECK(contains(wrong({{"LOCAL_RANK", "2"}}), "LOCAL_RANK | "));
  CHECK(contains(wrong({{"LOCAL_WORLD_SIZE", "5"}}), "LOCAL_WORLD_SIZE | "));
  CHECK(contains(wrong({{"LOCAL_WORLD_SIZE", "5"}}), "because WORLD_SIZE = 4"));
  CHECK(contains(wrong({{"LOCAL_WORLD_SIZE", "0"}}), "LOCAL_WORLD_SIZE | "));
  CHECK(contains(wrong({{"MASTER_PORT", "0"}}), "MASTER_PORT | "));
  CHECK(contains(wrong({{"MASTER_PORT", "65536"}}), "from 1 to 65535"));
  for (const auto* host : {"alpha beta", "tcp://alpha", "[::1]", "alpha,beta"})
    CHECK(contains(wrong({{"MASTER_ADDR", host}}), "MASTER_ADDR | "));
  CHECK(complaint_about(by_srun + settings{{"SLURM_PROCID", "8"}}).option == "SLURM_PROCID");
  CHECK(complaint_about(by_srun + settings{{"SLURM_LOCALID", "3"}}).option == "SLURM_LOCALID");
  CHECK(complaint_about(by_mpirun + settings{{"OMPI_COMM_WORLD_LOCAL_SIZE", "3"}}).option ==
        "OMPI_COMM_WORLD_LOCAL_SIZE");
  CHECK(complaint_about(by_mpiexec + settings{{"PMI_RANK", "2"}}).option == "PMI_RANK");
}

TEST_CASE("srun's variables are understood", "[distributed][launch]") {
  const auto who = with(by_srun);
  CHECK(place(who) == "4/8 1/3");
  CHECK(who.by == launcher::slurm);
  CHECK(who.master_addr == "c3011");
  CHECK_FALSE(who.agent_store);

  SECTION("every rank comes to the same meeting point, every step to one of its own") {
    std::set<std::uint16_t> ports;
    for (int job = 0; job < 20; ++job)
      for (const auto* step : {"0", "1", "4294967290"}) {
        const auto name = settings{{"SLURM_JOB_ID", std::to_string(5462202 + job)}, {"SLURM_STEP_ID", step}};
        const auto rank_4 = with(by_srun + name);
        const auto rank_0 =
            with(by_srun + name + settings{{"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}, {"SLURM_NODEID", "0"}});
        CHECK(rank_4.master_port == rank_0.master_port);
        CHECK(rank_4.master_addr == rank_0.master_addr);
        CHECK(rank_4.master_port >= 15000);
        CHECK(rank_4.master_port < 29000);
        ports.insert(rank_4.master_port);
      }
    CHECK(ports.size() > 55);
  }
  SECTION("what is set by hand counts") {
    const auto by_hand = with(by_srun + settings{{"MASTER_ADDR", "ib-c3011"}, {"MASTER_PORT", "12345"}});
    CHECK(place(by_hand) == "4/8 1/3");
    CHECK(by_hand.master_addr == "ib-c3011");
    CHECK(by_hand.master_port == 12345);
    const auto unread = with(by_srun + settings{{"MASTER_ADDR", "ib-c3011"}, {"SLURM_STEP_NODELIST", "c[3011"}});
    CHECK(unread.master_addr == "ib-c3011");
  }
  SECTION("one machine") {
    const auto here =
        with(by_srun + settings{{"SLURM_STEP_NUM_NODES", "1"}, {"SLURM_LOCALID", "4"}, {"SLURM_NODEID", "0"}});
    CHECK(place(here) == "4/8 4/8");
    CHECK(here.master_addr == "127.0.0.1");
  }
  SECTION("how many tasks each machine has") {
    const auto local_size = [](const std::string& list, const std::string& node) {
      return with(by_srun +
                  settings{{"SLURM_STEP_TASKS_PER_NODE", list}, {"SLURM_NODEID", node}, {"SLURM_LOCALID", "0"}})
          .local_world_size;
    };
    CHECK(local_size("3(x2),2", "0") == 3);
    CHECK(local_size("3(x2),2", "2") == 2);
    CHECK(local_size("1,2,5", "1") == 2);
    CHECK(local_size("2(x4)", "3") == 2);
    CHECK(with(without(by_srun, "SLURM_STEP_TASKS_PER_NODE") + settings{{"SLURM_TASKS_PER_NODE", "2,3,3"}})
              .local_world_size == 3);
    for (const auto* list : {"3(x2)", "3(x2", "x", "3(x)", ",", "3(2)", "(x2)"}) {
      INFO(list);
      const auto wrong =
          complaint_about(by_srun + settings{{"SLURM_STEP_TASKS_PER_NODE", list}, {"SLURM_NODEID", "2"}});
      CHECK(wrong.option == "SLURM_STEP_TASKS_PER_NODE");
      CHECK(contains(wrong.text, "SLURM_NODEID = 2"));
    }
    const auto unknown = complaint_about(without(by_srun, "SLURM_NODEID"));
    CHECK(contains(unknown.option, "SLURM_NODEID"));
  }
  SECTION("one task is a group of one") {
    const auto alone = with({{"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_JOB_ID", "7"}});
    CHECK(place(alone) == "0/1 0/1");
    CHECK(alone.by == launcher::slurm);
  }
}

TEST_CASE("the first machine is read from SLURM's lists", "[distributed][launch]") {
  const std::map<std::string, std::string> lists = {{"n1", "n1"},
                                                    {"n1,n2", "n1"},
                                                    {"n[003-007,9]", "n003"},
                                                    {"n[7,9-12],m1", "n7"},
                                                    {"n[12]", "n12"},
                                                    {"gpu-a,n[1-2]", "gpu-a"},
                                                    {"rack[0-1]node[08-15]", "rack0node08"},
                                                    {"n[1-4]-ib", "n1-ib"},
                                                    {"25a-hgpn026", "25a-hgpn026"},
                                                    {"n1.cluster.org,n2.cluster.org", "n1.cluster.org"}};
  for (const auto& [list, first] : lists) {
    INFO(list);
    CHECK(with(by_srun + settings{{"SLURM_STEP_NODELIST", list}}).master_addr == first);
  }
  CHECK(with(without(by_srun, "SLURM_STEP_NODELIST")).master_addr == "c3005");
  for (const auto* broken : {"n[", "n[]", "n[003", "[", "n]1", ",n1", "(null)", "n[,1]"}) {
    INFO(broken);
    const auto wrong = complaint_about(by_srun + settings{{"SLURM_STEP_NODELIST", broken}});
    CHECK(wrong.option == "SLURM_STEP_NODELIST");
    CHECK(contains(wrong.text, "MASTER_ADDR"));
  }
  const auto nowhere = complaint_about(without(without(by_srun, "SLURM_STEP_NODELIST"), "SLURM_NODELIST"));
  CHECK(nowhere.option == "MASTER_ADDR");
}

TEST_CASE("the shell of a SLURM job is a single process", "[distributed][launch]") {
  // sbatch's shell has the number of the first task, salloc's has none.
  const settings job = {{"SLURM_JOB_ID", "5462202"}, {"SLURM_NTASKS", "64"}, {"SLURM_NODELIST", "c[3005,3011]"}};
  for (const auto& shell :
       {job, job + settings{{"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}, {"SLURM_NODEID", "0"}}}) {
    const auto who = with(shell);
    CHECK(place(who) == "0/1 0/1");
    CHECK(who.by == launcher::none);
    CHECK(with(shell + by_torchrun).by == launcher::torchrun);
    CHECK(with(shell + by_mpirun).by == launcher::open_mpi);
  }
  const auto torn = complaint_about(job + settings{{"SLURM_PROCID", "3"}});
  CHECK(torn.option == "SLURM_STEP_NUM_TASKS");
  CHECK(contains(torn.text, "srun"));
}

TEST_CASE("mpirun's variables are understood", "[distributed][launch]") {
  const auto who = with(by_mpirun);
  CHECK(place(who) == "1/2 1/2");
  CHECK(who.by == launcher::open_mpi);
  CHECK(who.master_addr == "127.0.0.1");
  CHECK(who.master_port >= 15000);
  CHECK(who.master_port < 29000);

  SECTION("another mpirun meets elsewhere") {
    const auto other = with(by_mpirun + settings{{"PMIX_NAMESPACE", "1543503874"}});
    CHECK(other.master_port != who.master_port);
    CHECK(with(by_mpirun + settings{{"OMPI_COMM_WORLD_RANK", "0"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "0"}}).master_port ==
          who.master_port);
    CHECK(with(without(by_mpirun, "PMIX_NAMESPACE")).master_port == 29500);
  }
  SECTION("several machines need to be told where rank 0 is") {
    const auto spread = by_mpirun + settings{{"OMPI_COMM_WORLD_SIZE", "4"}};
    const auto lost = complaint_about(spread);
    CHECK(lost.option == "MASTER_ADDR");
    CHECK(contains(lost.text, "mpirun -x MASTER_ADDR"));
    const auto found = with(spread + settings{{"MASTER_ADDR", "alpha"}});
    CHECK(place(found) == "1/4 1/2");
    CHECK(found.master_addr == "alpha");
    CHECK(found.master_port == who.master_port);
  }
  SECTION("what is set by hand counts") {
    CHECK(with(by_mpirun + settings{{"MASTER_PORT", "12345"}}).master_port == 12345);
  }
  SECTION("which machine has which ranks must be known") {
    const auto unknown =
        complaint_about(without(by_mpirun, "OMPI_COMM_WORLD_LOCAL_SIZE") + settings{{"MASTER_ADDR", "alpha"}});
    CHECK(contains(unknown.option, "OMPI_COMM_WORLD_LOCAL_SIZE"));
  }
}

TEST_CASE("PMI's variables are understood", "[distributed][launch]") {
  const auto who = with(by_mpiexec);
  CHECK(place(who) == "1/2 1/2");
  CHECK(who.by == launcher::pmi);
  CHECK(who.master_addr == "127.0.0.1");
  CHECK(who.master_port == 29500);
  const auto spread = complaint_about(by_mpiexec + settings{{"PMI_SIZE", "4"}});
  CHECK(spread.option == "MASTER_ADDR");
  CHECK(contains(spread.text, "mpiexec"));
  const settings bare = {{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}};
  CHECK(complaint_about(bare + settings{{"MASTER_ADDR", "alpha"}}).option == "MPI_LOCALRANKID, MPI_LOCALNRANKS");
  CHECK(place(with(bare + settings{{"MASTER_ADDR", "127.0.0.1"}})) == "1/2 1/2");
  CHECK(place(with(bare + settings{{"PMI_LOCAL_RANK", "1"}, {"PMI_LOCAL_SIZE", "2"}})) == "1/2 1/2");
}

TEST_CASE("launchers inside of launchers", "[distributed][launch]") {
  SECTION("torchrun goes first") {
    CHECK(with(by_srun + by_mpirun + by_mpiexec + by_torchrun).by == launcher::torchrun);
    CHECK(place(with(by_srun + by_torchrun)) == "3/4 1/2");
  }
  SECTION("mpirun in a job starts its servants with srun") {
    const auto who = with(by_srun + by_mpirun);
    CHECK(who.by == launcher::open_mpi);
    CHECK(place(who) == "1/2 1/2");
    CHECK(with(by_srun + by_mpiexec).by == launcher::pmi);
  }
  SECTION("srun speaks PMI, too") {
    const auto who = with(by_srun + settings{{"PMI_RANK", "4"}, {"PMI_SIZE", "8"}});
    CHECK(who.by == launcher::slurm);
    CHECK(who.master_addr == "c3011");
  }
  SECTION("a variable that was exported for all of them must say the same") {
    CHECK(with(by_srun + settings{{"WORLD_SIZE", "8"}}).by == launcher::slurm);
    CHECK(with(by_srun + settings{{"RANK", "4"}}).by == launcher::slurm);
    const auto other = complaint_about(by_srun + settings{{"WORLD_SIZE", "4"}});
    CHECK(other.option == "WORLD_SIZE");
    CHECK(contains(other.text, "SLURM_STEP_NUM_TASKS"));
    const auto same_for_all = settings{{"RANK", "0"}, {"WORLD_SIZE", "8"}, {"MASTER_ADDR", "c3011"}};
    CHECK(complaint_about(by_srun + same_for_all).option == "RANK");
    CHECK(complaint_about(by_mpirun + settings{{"RANK", "0"}, {"WORLD_SIZE", "2"}}).option == "RANK");
    const auto right = same_for_all + settings{{"RANK", "4"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "3"}};
    CHECK(place(with(by_srun + right)) == "4/8 1/3");
  }
  SECTION("an srun for each rank") {
    const settings step = {{"SLURM_PROCID", "0"}, {"SLURM_STEP_NUM_TASKS", "1"}, {"SLURM_STEP_ID", "2"}};
    const auto who = with(step + settings{{"RANK", "1"}, {"WORLD_SIZE", "4"}, {"MASTER_ADDR", "c1"}});
    CHECK(place(who) == "1/4 0/1");
    CHECK(who.by == launcher::torchrun);
    CHECK(complaint_about(step + settings{{"WORLD_SIZE", "4"}}).option == "WORLD_SIZE");
  }
}

TEST_CASE("arguments go before everything", "[distributed][launch]") {
  SECTION("all of them") {
    const auto who = with({}, {.rank = 5,
                               .world_size = 8,
                               .local_rank = 1,
                               .local_world_size = 4,
                               .master_addr = "beta",
                               .master_port = std::uint16_t{4000}});
    CHECK(place(who) == "5/8 1/4");
    CHECK(who.by == launcher::arguments);
    CHECK(who.master_addr == "beta");
    CHECK(who.master_port == 4000);
  }
  SECTION("rank and world size suffice on one machine") {
    const auto who = with({}, {.rank = 1, .world_size = 2, .master_addr = "127.0.0.1"});
    CHECK(place(who) == "1/2 1/2");
    CHECK(complaint_about({}, {.rank = 1, .world_size = 2}).option == "MASTER_ADDR");
  }
  SECTION("nobody else is asked") {
    const settings broken = {{"SLURM_PROCID", "x"}, {"OMPI_COMM_WORLD_RANK", "1"}, {"PMI_RANK", "y"}};
    const auto who = with(broken, {.rank = 0, .world_size = 2, .master_addr = "127.0.0.1"});
    CHECK(place(who) == "0/2 0/2");
  }
  SECTION("single values") {
    CHECK(place(with(by_torchrun, {.local_rank = 0})) == "3/4 0/2");
    CHECK(with(by_torchrun, {.local_rank = 0}).by == launcher::torchrun);
    CHECK(with(by_srun, {.master_addr = "ib0"}).master_addr == "ib0");
    CHECK(with(by_srun, {.master_port = std::uint16_t{4000}}).master_port == 4000);
    CHECK(place(with(by_srun, {.rank = 7})) == "7/8 1/3");
    CHECK(place(with({{"WORLD_SIZE", "4"}, {"MASTER_ADDR", "alpha"}}, {.rank = 2})) == "2/4 0/1");
    CHECK(place(with({{"RANK", "2"}, {"MASTER_ADDR", "alpha"}}, {.world_size = 4})) == "2/4 0/1");
  }
  SECTION("alone") {
    const auto who = with({}, {.world_size = 1});
    CHECK(place(who) == "0/1 0/1");
    CHECK(who.by == launcher::arguments);
  }
  SECTION("what is missing or wrong") {
    CHECK(complaint_about({}, {.rank = 1}).option == "world_size");
    CHECK(complaint_about({}, {.world_size = 2}).option == "rank");
    CHECK(complaint_about({}, {.rank = 2, .world_size = 2}).option == "rank");
    CHECK(complaint_about({}, {.rank = -1, .world_size = 2}).option == "rank");
    CHECK(complaint_about({}, {.rank = 0, .world_size = 0}).option == "world_size");
    CHECK(complaint_about(by_torchrun, {.local_rank = 2}).option == "local_rank");
    CHECK(complaint_about(by_torchrun, {.local_world_size = 5}).option == "local_world_size");
    CHECK(complaint_about(by_torchrun, {.master_port = std::uint16_t{0}}).option == "master_port");
    CHECK(complaint_about(by_torchrun, {.master_addr = ""}).option == "master_addr");
  }
}

}  // namespace distributed_launch_test
