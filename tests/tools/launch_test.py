#!/usr/bin/env python3
"""Starts the same training in every way there is, and compares the results bit by bit.

usage: launch_test.py RONDO RANKS_PROGRAM

By `rondo run`, with variables set by hand, by torchrun and by mpirun; the last two where they are installed.
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
RANKS = 2


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def surroundings(**more):
    kept = {name: value for name, value in os.environ.items()
            if not re.match("SLURM|OMPI|PMI|PRTE|RANK|WORLD_SIZE|LOCAL_|MASTER_|TORCHELASTIC", name)}
    return {**kept, "OMP_NUM_THREADS": "1", **more}


def results(text):
    """What the ranks have said at their end, by rank."""
    found = [json.loads(match) for match in re.findall(r"\{\"iteration\".*?\}", text)]
    assert sorted(one["rank"] for one in found) == list(range(RANKS)), text
    return sorted(found, key=lambda one: one["rank"])


def launched(command, **more):
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=surroundings(**more))
    assert done.returncode == 0, done
    return results(done.stdout + done.stderr)


def by_rondo(rondo, program):
    return launched([rondo, "run", "-n", str(RANKS), *program])


def by_hand(_, program):
    port = free_port()
    ranks = [subprocess.Popen(program, stdout=subprocess.PIPE, text=True,
                              env=surroundings(RANK=str(rank), WORLD_SIZE=str(RANKS), MASTER_ADDR="127.0.0.1",
                                               MASTER_PORT=port)) for rank in range(RANKS)]
    said = [rank.communicate(timeout=SECONDS)[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), said
    return results("".join(said))


def by_torchrun(_, program):
    """Its agent is the meeting point, of which rank 0 is a client like the others."""
    command = ["torchrun", "--no_python", "--redirects", "1", "--tee", "1", "--nproc_per_node", str(RANKS),
               "--master_port", free_port()]
    return launched([*command, *program])


def by_mpirun(_, program):
    command = ["mpirun", "--oversubscribe", "-n", str(RANKS)]
    if os.geteuid() == 0:
        command.insert(1, "--allow-run-as-root")
    # Without a network of its own and without asking remote machines, which a build machine may not have.
    return launched([*command, *program], OMPI_MCA_plm_rsh_agent="/bin/false", PRTE_MCA_plm_ssh_agent="/bin/false")


def main():
    rondo, ranks_program = map(os.path.abspath, sys.argv[1:3])
    ways = {"rondo run": by_rondo, "by hand": by_hand}
    for name, way in {"torchrun": by_torchrun, "mpirun": by_mpirun}.items():
        if shutil.which(name):
            ways[name] = way
        else:
            print(f"{name} is not installed")
    expected = None
    for name, way in ways.items():
        with tempfile.TemporaryDirectory() as out:
            found = way(rondo, [ranks_program, "simple", out])
        digests = {one["state_digest"] for one in found}
        assert len(digests) == 1 and found[0]["iteration"] == 60, found
        expected = expected or digests
        assert digests == expected, f"{name}: {found} instead of {expected}"
        print(f"{name}: {found[0]['state_digest']}")
    print("launch: the same result in every way")


if __name__ == "__main__":
    main()
