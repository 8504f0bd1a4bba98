#!/usr/bin/env python3
"""Runs the transformer example on a small scale: it learns, goes on where it was, and refuses nonsense.

usage: transformer_test.py PROGRAM
"""

import json
import os
import subprocess
import sys
import tempfile

TINY = ["--width", "32", "--heads", "2", "--blocks", "1", "--context", "32", "--batch-size", "32", "--characters",
        "60000", "--evaluate-every", "20", "--lr", "0.01", "--epochs", "9", "--quiet"]


def run(program, out, *options, status=0):
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run([program, *TINY, "--out", out, *options], capture_output=True, text=True, timeout=300,
                          env=environment, errors="replace")
    assert done.returncode == status, f"exit status {done.returncode}\n{done.stderr}"
    return done


def summary(done):
    return json.loads(done.stdout.splitlines()[-1])


def test_it_learns_and_goes_on(program, folder):
    whole = summary(run(program, os.path.join(folder, "whole"), "--max-iterations", "160"))
    assert whole["iteration"] == 160, whole
    # A network that knows nothing but how often each letter occurs is at about 3.2.
    assert whole["train/loss"] < 2.8, whole

    parts = os.path.join(folder, "parts")
    run(program, parts, "--max-iterations", "80")
    rest = summary(run(program, parts, "--max-iterations", "160"))
    assert rest["state_digest"] == whole["state_digest"], (rest, whole)


def test_what_makes_no_sense(program, folder):
    out = os.path.join(folder, "nothing")
    assert "--heads" in run(program, out, "--heads", "5", status=2).stderr
    short = os.path.join(folder, "short.txt")
    with open(short, "w", encoding="utf-8") as file:
        file.write("too short")
    assert "--text" in run(program, out, "--text", short, status=2).stderr
    run(program, out, "--text", os.path.join(folder, "missing"), status=2)
    assert not os.path.exists(out)


def main():
    program = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        test_it_learns_and_goes_on(program, folder)
        test_what_makes_no_sense(program, folder)
    print("2 tests passed")


main()
