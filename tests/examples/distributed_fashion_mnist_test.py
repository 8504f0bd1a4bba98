#!/usr/bin/env python3
"""Runs the distributed_fashion_mnist example as a user would: on 2 and on 4 ranks, killed, and gone on with.

usage: distributed_fashion_mnist_test.py RONDO PROGRAM

The interpreter needs torch: it opens the consolidated snapshot.
"""

import json
import os
import re
import subprocess
import sys
import tempfile

import torch

SHORT = ["--model", "mlp", "--epochs", "2", "--limit", "6000", "--batch-size", "96", "--workers", "1", "--quiet"]
ITERATIONS = 126  # 6,000 images in batches of 96, twice


class Judge:
    def __init__(self, rondo, program):
        self.rondo, self.program = os.path.abspath(rondo), os.path.abspath(program)

    def run(self, ranks, out, *options):
        """The JSON objects of all ranks, in their order, and everything that was said."""
        done = subprocess.run([self.rondo, "run", "-n", str(ranks), self.program, *SHORT, "--out", out, *options],
                              capture_output=True, text=True, timeout=300,
                              env={**os.environ, "OMP_NUM_THREADS": "1"})
        said = done.stdout + done.stderr
        found = [json.loads(match) for match in re.findall(r"^\[\d+\] (\{.*\})$", done.stdout, re.MULTILINE)]
        return done.returncode, sorted(found, key=lambda one: one["rank"]), said

    def ends_well(self, ranks, out, *options):
        status, found, said = self.run(ranks, out, *options)
        assert status == 0 and [one["rank"] for one in found] == list(range(ranks)), said
        same = [{key: value for key, value in one.items() if key != "rank"} for one in found]
        assert all(one == same[0] for one in same), said
        return same[0]


def test_ranks_agree(judge, ranks):
    """All modes and numbers of ranks learn the same; two runs to the same bits."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        result = judge.ends_well(ranks, first)
        assert result["iteration"] == ITERATIONS and result["epoch"] == 2 and result["resumed_from"] is None, result
        assert result["validation/accuracy"] > 0.75, result
        again = judge.ends_well(ranks, second, "--mode", "distributed", "--saver-rank", "1", "--writer", "simple")
        assert again["state_digest"] == result["state_digest"], f"{again} {result}"
        with open(os.path.join(first, "log"), encoding="utf-8") as log:
            assert len(log.readlines()) == 2
    return result


def test_interrupted(judge, ranks, expected):
    """Stopped in the middle, gone on with by the same and by another number of ranks."""
    with tempfile.TemporaryDirectory() as out:
        judge.ends_well(ranks, out, "--max-iterations", "50", "--snapshot-every", "20it")
        assert sorted(os.listdir(os.path.join(out, "snapshot_iter_40"))) == [*map(str, range(ranks)), "complete"]
        result = judge.ends_well(ranks, out, "--snapshot-every", "20it")
        assert result["resumed_from"].endswith("snapshot_iter_40"), result
        assert result["state_digest"] == expected["state_digest"], f"{result} {expected}"
    with tempfile.TemporaryDirectory() as out:
        judge.ends_well(ranks, out, "--max-iterations", "50", "--snapshot-every", "20it")
        result = judge.ends_well(3, out)
        assert result["resumed_from"].endswith("snapshot_iter_40") and result["iteration"] == ITERATIONS, result
        assert abs(result["validation/accuracy"] - expected["validation/accuracy"]) < 0.05, f"{result} {expected}"


def test_python_opens_it(judge, out):
    judge.ends_well(2, out, "--epochs", "1")
    whole = os.path.join(out, "whole")
    subprocess.run([judge.rondo, "consolidate", os.path.join(out, "snapshot_iter_63"), whole], check=True, timeout=60)
    state = torch.load(whole)
    model = torch.nn.Sequential()
    model.add_module("hidden", torch.nn.Linear(784, 128))
    model.add_module("output", torch.nn.Linear(128, 10))
    model.load_state_dict(state["models"]["main"])
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.load_state_dict(state["optimizers"]["main"])
    assert optimizer.state_dict()["state"][0]["exp_avg"].shape == (128, 784)


def test_nonsense(judge, out):
    for options, named in [(["--batch-size", "95"], "--batch-size"), (["--saver-rank", "2"], "saver_rank")]:
        status, found, said = judge.run(2, out, *options)
        assert status == 2 and not found and named in said, said


def main():
    judge = Judge(*sys.argv[1:3])
    for ranks in (2, 4):
        expected = test_ranks_agree(judge, ranks)
        test_interrupted(judge, ranks, expected)
    for test in (test_python_opens_it, test_nonsense):
        with tempfile.TemporaryDirectory() as out:
            test(judge, out)
    print("distributed_fashion_mnist: everything held")


if __name__ == "__main__":
    main()
