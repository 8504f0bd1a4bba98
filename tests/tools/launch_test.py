#!/usr/bin/env python3
"""Starts the same training in every way there is, and compares the results bit by bit.

usage: launch_test.py RONDO RANKS_PROGRAM

By `rondo run`, with variables set by hand and as SLURM sets them, by torchrun and by mpirun, with 1, 2 and 4 ranks; the last two
where they are installed.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile

SECONDS = 180
NUMBERS_OF_RANKS = [1, 2, 4]
ITERATIONS = 20


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def surroundings(**more):
    kept = {name: value for name, value in os.environ.items()
            if not re.match("SLURM|OMPI|PMI|PRTE|RANK|WORLD_SIZE|LOCAL_|MASTER_|TORCHELASTIC", name)}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def launched(command, **more):
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=surroundings(**more))
    assert done.returncode == 0, done
    return done.stdout + done.stderr


def with_variables(program, ranks, variables_of):
    started = [subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=surroundings(**variables_of(rank)))
               for rank in range(ranks)]
    said = [one.communicate(timeout=SECONDS)[0] for one in started]
    assert all(one.returncode == 0 for one in started), said
    return "".join(said)


def by_rondo(rondo, program, ranks):
    return launched([rondo, "run", "-n", str(ranks), *program])


def by_hand(_, program, ranks):
    port = free_port()
    return with_variables(program, ranks, lambda rank: {
        "RANK": str(rank), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})


def by_slurm(_, program, ranks):
    """As srun would start it on one machine."""
    port = free_port()
    return with_variables(program, ranks, lambda rank: {
        "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "0", "SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": str(ranks),
        "SLURM_NTASKS": str(ranks), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0", "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_TASKS_PER_NODE": str(ranks), "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": port})


def by_torchrun(_, program, ranks):
    """Its agent is the meeting point, of which rank 0 is a client like the others."""
    command = ["torchrun", "--no_python", "--redirects", "1", "--tee", "1", "--nproc_per_node", str(ranks),
               "--master_port", free_port()]
    return launched([*command, *program])


def by_mpirun(_, program, ranks):
    command = ["mpirun", "--oversubscribe", "-n", str(ranks)]
    if os.geteuid() == 0:
        command.insert(1, "--allow-run-as-root")
    # Without a network of its own and without asking remote machines, which a build machine may not have.
    return launched([*command, *program], OMPI_MCA_plm_rsh_agent="/bin/false", PRTE_MCA_plm_ssh_agent="/bin/false")


def main():
    rondo, ranks_program = map(os.path.abspath, sys.argv[1:3])
    ways = {"rondo run": by_rondo, "by hand": by_hand, "SLURM's variables": by_slurm}
    for name, way in {"torchrun": by_torchrun, "mpirun": by_mpirun}.items():
        if shutil.which(name):
            ways[name] = way
        else:
            print(f"{name} is not installed")
    for ranks in NUMBERS_OF_RANKS:
        expected = None
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as out:
                text = way(rondo, [ranks_program, "simple", out, "--iterations", str(ITERATIONS)], ranks)
            found = [json.loads(match) for match in re.findall(r"\{\"iteration\".*?\}", text)]
            assert sorted(one["rank"] for one in found) == list(range(ranks)), text
            digests = {one["state_digest"] for one in found}
            assert len(digests) == 1 and found[0]["iteration"] == ITERATIONS, found
            expected = expected or digests
            assert digests == expected, f"{name}, {ranks} ranks: {found} instead of {expected}"
            print(f"{name}, {ranks} ranks: {found[0]['state_digest']}")
    print("launch: the same result in every way")


if __name__ == "__main__":
    main()
