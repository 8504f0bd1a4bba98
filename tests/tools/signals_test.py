#!/usr/bin/env python3
"""Sends signals to a training at random moments: while it trains, evaluates, waits for data and writes snapshots.

usage: signals_test.py RONDO SIGNALS_PROGRAM [--signals N] [--seed N] [--deadline SECONDS]

Each SIGTERM must end the training in time, with status 143 and a sound snapshot of its last iteration. What goes on
from there, through any number of further signals, must end with the bits and the log of a training that nobody
interrupted.
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

# The long one of each makes an evaluation last for 8 s, the whole training for 12 s, and a wait for data 0.2 s: unless
# they are broken off, of course.
PLACES = {"training": [5, 50, 200], "evaluation": [2, 20, 200], "data": [5, 50, 200], "snapshot": [1]}
WRITERS = ["thread", "process", "thread_queue", "process_queue", "simple"]
SECONDS = 300


class Training:
    """One run of the program, which says what it does into a file."""

    def __init__(self, judge, place, writer, milliseconds, *options):
        self.judge = judge
        self.command = [judge.program, place, writer, judge.out, str(milliseconds), *options]
        self.said_path, self.errors_path = os.path.join(judge.scratch, "said"), os.path.join(judge.scratch, "errors")
        with open(self.said_path, "wb") as said, open(self.errors_path, "wb") as errors:
            self.process = subprocess.Popen(self.command, stdout=said, stderr=errors)

    def said(self):
        with open(self.said_path, encoding="utf-8") as file:
            return file.read().splitlines()

    def iterations(self):
        return [int(line.split()[1]) for line in self.said() if line.startswith("iteration ")]

    def wait_until(self, holds, what):
        """False if the program has ended before."""
        limit = time.monotonic() + SECONDS
        while not holds():
            if self.process.poll() is not None:
                return holds()
            assert time.monotonic() < limit, f"never {what}\n{self}"
            time.sleep(0.001)
        return True

    def begins(self):
        assert self.wait_until(lambda: "begun" in self.said(), "begun"), str(self)

    def send(self, number):
        """When it was sent. The program is not waited for yet, so it cannot be somebody else."""
        self.process.send_signal(number)
        return time.monotonic()

    def end(self, timeout=SECONDS):
        try:
            return self.process.wait(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"it goes on after {timeout} s\n{self}") from None

    def result(self):
        return json.loads(self.said()[-1])

    def __str__(self):
        with open(self.errors_path, encoding="utf-8", errors="replace") as file:
            errors = file.read()
        return "\n".join([" ".join(self.command), f"status {self.process.poll()}", *self.said()[-10:], errors,
                          *sorted(os.listdir(self.judge.out))])


class Judge:
    def __init__(self, arguments, scratch):
        self.rondo, self.program = os.path.abspath(arguments.rondo), os.path.abspath(arguments.program)
        self.deadline = arguments.deadline
        self.scratch = scratch
        self.out = os.path.join(scratch, "out")
        self.expected = {}
        self.seconds = []
        self.counts = {}

    def count(self, what, n=1):
        self.counts[what] = self.counts.get(what, 0) + n

    def begin_anew(self):
        shutil.rmtree(self.out, ignore_errors=True)
        os.makedirs(self.out)

    def snapshots(self):
        """By iteration, the newest one last."""
        found = (re.fullmatch(r"snapshot_iter_(\d+)", name) for name in os.listdir(self.out))
        return sorted(int(match[1]) for match in found if match)

    def verify(self, training, numbers):
        if not numbers:
            return
        paths = [os.path.join(self.out, f"snapshot_iter_{number}") for number in numbers]
        done = subprocess.run([self.rondo, "verify", *paths], capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, f"{done}\n{training}"

    def log(self):
        with open(os.path.join(self.out, "log"), encoding="utf-8") as file:
            entries = [json.loads(line) for line in file]
        for entry in entries:
            del entry["elapsed_time"]
        return entries

    def learn(self, place):
        """What a training that nobody interrupts comes to."""
        if place not in self.expected:
            self.begin_anew()
            training = Training(self, place, "simple", 0)
            assert training.end() == 0, str(training)
            self.expected[place] = training.result(), self.log()

    def goes_on_to_the_end(self, place, writer, *options):
        """The rest, undisturbed and without delays."""
        before = self.snapshots()
        training = Training(self, place, writer, 0, *options)
        assert training.end() == 0, str(training)
        result, log = self.expected[place]
        # Who has nothing left to do draws no random numbers either, and leaves the generators alone.
        had_ended = training.result()["stop_reason"] == "the goal had been reached before"
        for key in ["iteration", "state_digest", *([] if had_ended else ["stop_reason", "random_digest"])]:
            assert training.result()[key] == result[key], f"{key}: {training.result()} instead of {result}\n{training}"
        if before:
            newest = os.path.join(self.out, f"snapshot_iter_{before[-1]}")
            assert training.result()["resumed_from"] == newest, str(training)
        assert self.log() == log, f"another log\n{training}"


def where_it_is(said):
    last = said[-1].split()[0]
    return "in an evaluation" if last == "evaluating" else "elsewhere"


def test_sigterm(judge, place, writer, longest):
    """One signal. False if the training was over before it came."""
    training = Training(judge, place, writer, random.choice(PLACES[place]))
    training.begins()
    time.sleep(random.uniform(0, longest))
    sent = training.send(signal.SIGTERM)
    before = training.iterations()
    where = where_it_is(training.said())
    status = training.end(judge.deadline)
    seconds = time.monotonic() - sent
    if status == 0:
        assert training.result()["stop_reason"] == "60 iterations completed", str(training)
        return False
    assert status == 143, str(training)
    result, snapshots = training.result(), judge.snapshots()
    assert result["stop_reason"] == "SIGTERM", str(training)
    # The last iteration is the one at which the signal came. Only short ones (0.5 ms) share a look at signals.
    after = training.iterations()
    most = 1 if place in ("training", "data") else 3
    assert len(after) <= len(before) + most, f"{len(after) - len(before)} iterations after the signal\n{training}"
    assert not after or after[-1] == result["iteration"], str(training)
    # Before the end of the first iteration there is nothing to save.
    assert (snapshots or [0])[-1] == result["iteration"], str(training)
    judge.verify(training, snapshots)
    judge.seconds.append(seconds)
    judge.count(f"SIGTERM in '{place}', {where}")
    judge.count(f"{len(after) - len(before)} more iterations after SIGTERM")
    return True


def test_chain(judge, place, writers, signals):
    """Interrupts one training so many times, lets it come to its end. Returns how many signals it has got."""
    judge.learn(place)
    judge.begin_anew()
    longest = random.choice([0.05, 0.5])
    sent = 0
    while sent < signals and test_sigterm(judge, place, random.choice(writers), longest):
        sent += 1
    judge.goes_on_to_the_end(place, random.choice(writers))
    return sent


def test_snapshots_on_demand(judge, place, writer):
    """A burst of SIGUSR1: there is a snapshot soon, and the training goes on."""
    judge.learn(place)
    judge.begin_anew()
    burst = random.randint(1, 20)
    training = Training(judge, place, writer, PLACES[place][-1], "--rarely")
    training.begins()
    time.sleep(random.uniform(0, 0.3))
    for _ in range(burst):
        training.send(signal.SIGUSR1)
    # Not only at the end of an evaluation of 8 seconds.
    limit = time.monotonic() + judge.deadline
    training.wait_until(lambda: judge.snapshots() or time.monotonic() > limit, "saved")
    snapshots = judge.snapshots()
    assert snapshots, f"no snapshot after {judge.deadline} s\n{training}"
    judge.verify(training, snapshots)
    done = len(training.iterations())
    assert training.process.poll() is None or training.end() == 0, str(training)
    if place != "evaluation":
        training.wait_until(lambda: len(training.iterations()) > done, "trained on")
    training.send(signal.SIGTERM)
    assert training.end(judge.deadline) in (0, 143), str(training)
    # One for the iteration in which the first ones came, at most one more for the rest; and that of SIGTERM.
    assert len(judge.snapshots()) <= 3, f"{burst} signals gave {judge.snapshots()}\n{training}"
    judge.count("bursts of SIGUSR1")
    judge.count("SIGUSR1", burst)
    judge.goes_on_to_the_end(place, writer, "--rarely")


def test_second_sigterm(judge, place, writer):
    """The second one ends the program at once. What was durable before is."""
    judge.learn(place)
    judge.begin_anew()
    training = Training(judge, place, writer, PLACES[place][len(PLACES[place]) // 2], "--default-action")
    training.begins()
    training.wait_until(judge.snapshots, "saved")
    time.sleep(random.uniform(0, 0.2))
    older = judge.snapshots()
    training.send(signal.SIGTERM)
    time.sleep(random.choice([0, 0.001, random.uniform(0, 0.1)]))
    training.send(signal.SIGTERM)
    status = training.end(judge.deadline)
    assert status in (-signal.SIGTERM, 143, 0), str(training)
    newer = judge.snapshots()
    assert newer and newer[-1] >= older[-1], str(training)
    judge.verify(training, newer)
    judge.count(f"two SIGTERMs: {'killed' if status < 0 else 'status ' + str(status)}")
    judge.goes_on_to_the_end(place, writer)


def test_grace_period(judge, writer, place, last):
    """What never ends is not waited for longer than it is allowed to: a step, or a worker that prepares data, as on a
    dead file system. `last` are the iterations of which the last snapshot may be."""
    judge.learn(place)
    judge.begin_anew()
    training = Training(judge, place, writer, 1, "--grace-period", "700")
    training.begins()
    training.wait_until(lambda: training.iterations()[-1:] == [9], "stuck")
    time.sleep(random.uniform(0, 0.1))
    sent = training.send(signal.SIGTERM)
    status = training.end(judge.deadline)
    seconds = time.monotonic() - sent
    assert status == 124, str(training)
    assert seconds >= 0.69, f"{seconds} s\n{training}"
    snapshots = judge.snapshots()
    assert snapshots and snapshots[-1] in last, str(training)
    judge.verify(training, snapshots)
    judge.count(f"ended by the grace period, {place}")
    judge.goes_on_to_the_end(place, writer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rondo")
    parser.add_argument("program")
    parser.add_argument("--signals", type=int, default=20, help="how many SIGTERMs to send one by one (default: 20)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random (default: 1)")
    parser.add_argument("--deadline", type=float, default=20,
                        help="seconds that a program has after a signal (default: 20)")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        judge = Judge(arguments, scratch)
        sent, number = 0, 0
        while sent < arguments.signals:
            place = list(PLACES)[number % len(PLACES)]
            sent += test_chain(judge, place, WRITERS, min(5, arguments.signals - sent))
            number += 1
        for number in range(max(2, arguments.signals // 20)):
            place, writer = list(PLACES)[number % len(PLACES)], WRITERS[number % len(WRITERS)]
            test_snapshots_on_demand(judge, place, writer)
            test_second_sigterm(judge, place, writer)
        for number in range(max(1, arguments.signals // 100)):
            writer = WRITERS[number % len(WRITERS)]
            # That of iteration 8 may not have been on its way yet when the training thread hangs.
            test_grace_period(judge, writer, "stuck", (4, 8))
            # Where only a worker hangs, training ends, with its last snapshot.
            test_grace_period(judge, writer, "stuck_data", (9,))
    judge.seconds.sort()
    for what, n in sorted(judge.counts.items()):
        print(f"{n:5} {what}")
    median, longest = judge.seconds[len(judge.seconds) // 2], judge.seconds[-1]
    print(f"from SIGTERM to the end: {median:.3f} s (median), {longest:.3f} s (longest)")
    print("signals: everything held")


if __name__ == "__main__":
    main()
