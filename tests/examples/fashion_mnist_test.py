#!/usr/bin/env python3
"""Runs the fashion_mnist example as a user would: to the end, stopped by a signal, with damaged files, with nonsense.

usage: fashion_mnist_test.py PROGRAM

The interpreter needs torch: it opens the snapshots. What becomes of killed runs, resume_test.py looks at.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile

import torch

SHORT = ["--model", "mlp", "--epochs", "1", "--batch-size", "128", "--threads", "1", "--quiet"]
ITERATIONS = 469  # 60,000 images in batches of 128


def command(program, out, *options):
    return [program, *SHORT, "--out", out, *options]


def run(program, out, *options):
    """The JSON object on the last line, and everything on stderr."""
    done = subprocess.run(command(program, out, *options), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def snapshots(out):
    names = [n for n in os.listdir(out) if re.fullmatch(r"snapshot_iter_\d+", n)]
    return sorted(names, key=lambda n: int(n.rsplit("_", 1)[1]))


def test_a_run_to_the_end(program, out):
    result, _ = run(program, out, "--snapshot-every", "100it", "--n-retains", "2")
    assert set(result) == {
        "iteration", "epoch", "train/loss", "validation/accuracy", "resumed_from", "stop_reason", "state_digest"
    }, result
    assert result["iteration"] == ITERATIONS and result["epoch"] == 1, result
    assert result["resumed_from"] is None and result["stop_reason"] == "1 epochs completed", result
    assert result["validation/accuracy"] > 0.7, result
    assert len(result["state_digest"]) == 32, result
    assert snapshots(out) == ["snapshot_iter_300", "snapshot_iter_400"], snapshots(out)
    return result


def test_python_reads_the_snapshot(out):
    state = torch.load(os.path.join(out, "snapshot_iter_400"))
    assert type(state) is dict and state["_start_iteration"] == 400, state.keys()
    for key in ["models", "optimizers", "state_objects", "extensions", "ppe_version"]:
        assert key in state, state.keys()
    model = torch.nn.Sequential()
    model.add_module("hidden", torch.nn.Linear(784, 128))
    model.add_module("output", torch.nn.Linear(128, 10))
    model.load_state_dict(state["models"]["main"])
    optimizer = torch.optim.Adam(model.parameters())
    optimizer.load_state_dict(state["optimizers"]["main"])
    assert optimizer.param_groups[0]["lr"] == 1e-3


def test_a_damaged_snapshot_is_passed_over(program, out, expected):
    run(program, out, "--snapshot-every", "100it", "--max-iterations", "400")
    newest = os.path.join(out, snapshots(out)[-1])
    os.truncate(newest, os.path.getsize(newest) * 2 // 3)
    result, stderr = run(program, out, "--snapshot-every", "100it")
    assert newest in stderr and "damaged" in stderr, stderr
    assert result["resumed_from"].endswith("snapshot_iter_300"), result
    assert result["state_digest"] == expected["state_digest"], result


def test_a_finished_run_is_left_alone(program, out, expected):
    again, _ = run(program, out, "--snapshot-every", "67it")
    assert again["iteration"] == ITERATIONS, again
    once_more, _ = run(program, out, "--snapshot-every", "67it")
    assert once_more["resumed_from"].endswith(f"snapshot_iter_{ITERATIONS}"), once_more
    for key in ["iteration", "train/loss", "validation/accuracy", "state_digest"]:
        assert once_more[key] == expected[key], once_more


def interrupted(program, out, number, *options):
    """The JSON object of an endless run that gets a signal when it has saved itself for the first time."""
    newest = snapshots(out)[-1:]
    endless = [program, "--model", "mlp", "--epochs", "1000", "--quiet", "--snapshot-every", "10it", "--out", out,
               *options]
    process = subprocess.Popen(endless, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    while process.poll() is None and snapshots(out)[-1:] == newest:
        pass
    process.send_signal(number)
    stdout, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number, process.returncode
    return json.loads(stdout.splitlines()[-1])


def test_a_signal_ends_it_with_a_snapshot(program, out):
    last = interrupted(program, out, signal.SIGTERM, "--grace-period", "60")
    assert last["stop_reason"] == "SIGTERM", last
    newest = f"snapshot_iter_{last['iteration']}"
    assert snapshots(out)[-1] == newest, (snapshots(out), last)
    last = interrupted(program, out, signal.SIGINT)
    assert last["stop_reason"] == "SIGINT", last
    assert last["resumed_from"] == os.path.join(out, newest), last


def test_it_stops_early(program, out):
    """With a learning rate of nearly nothing, nothing gets better."""
    options = ["--epochs", "50", "--limit", "500", "--lr", "1e-12", "--patience", "2", "--schedule", "plateau"]
    last, _ = run(program, out, *options)
    assert last["epoch"] <= 5 and last["stop_reason"] != "50 epochs completed", last
    again, _ = run(program, out, *options)
    assert again["epoch"] == last["epoch"] and again["resumed_from"], again


def test_nonsense_is_refused(program, out):
    unwritable = os.path.join(out, "file")
    with open(unwritable, "w", encoding="utf-8"):
        pass
    cases = [
        (["--n-retains", "0"], ["n_retains", "0"]),
        (["--snapshot-every", "0it"], ["--snapshot-every", "0it"]),
        (["--snapshot-every", "soon"], ["--snapshot-every", "soon", "100it"]),
        (["--epochs", "0"], ["epochs", "0"]),
        (["--batch-size", "-1"], ["batch-size", "-1"]),
        (["--lr", "0"], ["lr", "0"]),
        (["--optimizer", "newton"], ["optimizer", "newton", "adam"]),
        (["--model", "transformer"], ["model", "transformer", "mlp"]),
        (["--writer", "telepathy"], ["writer", "telepathy", "simple"]),
        (["--threads", "-2"], ["threads", "-2"]),
        (["--workers", "-1"], ["workers", "-1"]),
        (["--limit", "0"], ["limit", "0"]),
        (["--schedule", "sometimes"], ["schedule", "sometimes", "cosine"]),
        (["--patience", "-1"], ["patience", "-1"]),
        (["--grace-period", "-1"], ["grace-period", "-1"]),
        (["--no-such-option"], ["no-such-option"]),
        (["--data", os.path.join(out, "nowhere")], ["nowhere", "dataset-fashion-mnist"]),
        (["--out", unwritable], ["out", unwritable]),
    ]
    for options, expected in cases:
        done = subprocess.run(command(program, os.path.join(out, "result"), *options), capture_output=True, text=True,
                              timeout=60)
        assert done.returncode in (1, 2), (options, done)
        for part in expected:
            assert part in done.stderr, (options, part, done.stderr)
        assert "terminate" not in done.stderr, (options, done.stderr)
        assert not done.stdout.strip(), (options, done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    arguments = parser.parse_args()
    program = os.path.abspath(arguments.program)
    with tempfile.TemporaryDirectory() as scratch:
        def folder(name):
            path = os.path.join(scratch, name)
            os.makedirs(path)
            return path

        unbroken = folder("unbroken")
        expected = test_a_run_to_the_end(program, unbroken)
        test_python_reads_the_snapshot(unbroken)
        test_a_damaged_snapshot_is_passed_over(program, folder("damaged"), expected)
        test_a_finished_run_is_left_alone(program, folder("finished"), expected)
        test_a_signal_ends_it_with_a_snapshot(program, folder("signalled"))
        test_it_stops_early(program, folder("early"))
        test_nonsense_is_refused(program, folder("nonsense"))
    print("fashion_mnist: everything held")


if __name__ == "__main__":
    main()
