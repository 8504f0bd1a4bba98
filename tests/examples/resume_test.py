#!/usr/bin/env python3
"""Kills the fashion_mnist example at random moments and starts it again, until it has come to its end.

usage: resume_test.py PROGRAM [--kills N] [--seed N]

State, log and printed table must be those of a training that nobody interrupted, to the last bit, however often it was
killed, and whichever number of workers and kind of writer each of the runs had.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

WORKERS = [0, 1, 2]
WRITERS = ["simple", "thread", "process", "thread_queue", "process_queue"]
SCHEDULES = ["plateau", "cosine"]
SMALL = ["--model", "cnn", "--optimizer", "adam", "--augment", "--epochs", "6", "--patience", "3", "--limit", "1000",
         "--batch-size", "48", "--lr", "0.005", "--threads", "1"]
COMPARED = ["epoch", "iteration", "train/loss", "validation/accuracy", "state_digest"]


def log_of(out):
    with open(os.path.join(out, "log"), encoding="utf-8") as file:
        entries = [json.loads(line) for line in file]
    for entry in entries:
        del entry["elapsed_time"]
    return entries


def rows_of(text):
    """The lines of a printed table by their epochs, without the last column, which is the time. A run that was killed
    has printed some of them, the run after it may print the same ones again."""
    rows, width = {}, None
    for line in text.splitlines():
        if line.startswith("epoch "):
            assert line.endswith("elapsed_time"), line
            width = line.index("elapsed_time")
        elif width is not None and re.match(r"\d+ ", line):
            row = line[:width]
            epoch = int(row.split()[0])
            assert rows.setdefault(epoch, row) == row, f"{rows[epoch]}\nbecame\n{row}"
    return rows


def snapshots(out):
    found = (re.fullmatch(r"snapshot_iter_(\d+)", name) for name in os.listdir(out))
    return sorted(int(match[1]) for match in found if match)


class Unbroken:
    """What a training that nobody interrupts comes to: the same with any number of workers."""

    def __init__(self, program, out, schedule):
        self.results, self.log, self.rows = None, None, None
        for workers in WORKERS:
            shutil.rmtree(out, ignore_errors=True)
            os.makedirs(out)
            begun = time.monotonic()
            done = subprocess.run(command(program, out, schedule, "--workers", str(workers)), capture_output=True,
                                  text=True, timeout=300)
            self.seconds = time.monotonic() - begun
            assert done.returncode == 0, done
            results = json.loads(done.stdout.splitlines()[-1])
            log, rows = log_of(out), rows_of(done.stdout)
            if self.results is None:
                self.results, self.log, self.rows = results, log, rows
            for key in COMPARED:
                assert results[key] == self.results[key], (workers, key, results, self.results)
            assert (log, rows) == (self.log, self.rows), (workers, log, rows, self.log, self.rows)
        assert len(self.log) == len(self.rows) == self.results["epoch"], (self.log, self.rows)
        self.iterations = self.results["iteration"]


def command(program, out, schedule, *options):
    return [program, *SMALL, "--schedule", schedule, "--out", out, *options]


class Training:
    """One training, in as many runs as it takes."""

    def __init__(self, program, out, schedule):
        self.program, self.out, self.schedule = program, out, schedule
        self.every = ["--snapshot-every", f"{random.choice([1, 3, 7, 20])}it"]
        self.history = []
        self.printed = ""
        shutil.rmtree(out, ignore_errors=True)
        os.makedirs(out)

    def start(self):
        options = [*self.every, "--workers", str(random.choice(WORKERS)), "--writer", random.choice(WRITERS)]
        self.newest = max(snapshots(self.out), default=None)
        self.history.append(options)
        with open(self.out + ".stdout", "w") as stdout, open(self.out + ".stderr", "w") as stderr:
            return subprocess.Popen(command(self.program, self.out, self.schedule, *options), stdout=stdout,
                                    stderr=stderr)

    def ended(self, process):
        """The status, with what has been printed added to the rest."""
        status = process.wait(timeout=300)
        with open(self.out + ".stdout") as stdout, open(self.out + ".stderr") as stderr:
            said, errors = stdout.read(), stderr.read()
        self.printed += said
        self.history.append(f"status {status}")
        assert status in (0, -signal.SIGKILL), f"{errors}\n{self.history}"
        if self.newest is not None:
            # Helper processes of the run before may have completed a newer one.
            resumed = re.search(r"resuming from '.*_(\d+)'", errors)
            assert resumed or status != 0, f"not resumed\n{errors}\n{self.history}"
            assert not resumed or int(resumed[1]) >= self.newest, f"something was lost\n{errors}\n{self.history}"
        return status

    def kill_after(self, seconds):
        """True if it was killed before it had finished."""
        process = self.start()
        self.history.append(f"killed after {seconds} s")
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
        return self.ended(process) != 0

    def kill_when_saved(self, iteration):
        """As soon as there is a snapshot of that iteration or a later one."""
        process = self.start()
        self.history.append(f"killed when {iteration} was saved")
        while process.poll() is None and max(snapshots(self.out), default=0) < iteration:
            time.sleep(0.0005)
        process.kill()
        return self.ended(process) != 0

    def finish(self, unbroken):
        process = self.start()
        assert self.ended(process) == 0
        results = json.loads(self.printed.splitlines()[-1])
        for key in COMPARED:
            assert results[key] == unbroken.results[key], f"{key}\n{results}\n{unbroken.results}\n{self.history}"
        assert log_of(self.out) == unbroken.log, f"{log_of(self.out)}\n{unbroken.log}\n{self.history}"
        assert rows_of(self.printed) == unbroken.rows, f"{self.printed}\n{unbroken.rows}\n{self.history}"


def test_kills(training, unbroken, most):
    """Kills a training up to so many times, then lets it come to its end. Returns how often it was killed."""
    killed = 0
    for _ in range(random.randint(1, most)):
        begun = max(snapshots(training.out), default=0)
        if random.random() < 0.5:
            was_killed = training.kill_after(random.uniform(0, unbroken.seconds))
        else:
            next_one = min(begun + 1, unbroken.iterations)
            was_killed = training.kill_when_saved(random.randint(next_one, unbroken.iterations))
        if not was_killed:
            break
        killed += 1
    training.finish(unbroken)
    return killed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--kills", type=int, default=7, help="how often to kill in total (default: 7)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random (default: 1)")
    arguments = parser.parse_args()
    program = os.path.abspath(arguments.program)
    random.seed(arguments.seed)
    killed, trainings, unbroken = 0, 0, {}
    with tempfile.TemporaryDirectory() as scratch:
        out = os.path.join(scratch, "out")
        while killed < arguments.kills:
            schedule = SCHEDULES[trainings % len(SCHEDULES)]
            if schedule not in unbroken:
                unbroken[schedule] = Unbroken(program, out, schedule)
            killed += test_kills(Training(program, out, schedule), unbroken[schedule], min(4, arguments.kills - killed))
            trainings += 1
    print(f"resume: {killed} kills in {trainings} trainings, and everything held")


if __name__ == "__main__":
    main()
