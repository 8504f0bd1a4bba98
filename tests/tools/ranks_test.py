#!/usr/bin/env python3
"""Trains with several real processes, kills them at random moments, fills disks, and looks at what is left.

usage: ranks_test.py RONDO RANKS_PROGRAM [--kills N] [--stops N] [--elastic N...] [--losses N] [--thorough] [--seed N]

Whatever dies, or is stopped, every other rank must end by itself with an error that names the dead one, and the next start must go on
from the newest complete snapshot to the bits of a training that nobody has disturbed.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

SECONDS = 120
# How long ranks wait for each other where one is stopped, in ms.
TIMEOUT = 2000
ITERATIONS = 60


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Rank:
    def __init__(self, judge, rank, world_size, port, command):
        self.rank = rank
        self.paths = [os.path.join(judge.scratch, f"{what}_{rank}") for what in ("said", "errors")]
        surroundings = {name: value for name, value in os.environ.items()
                        if not re.match("SLURM|OMPI|PMI|RANK|WORLD_SIZE|LOCAL_|MASTER_|TORCHELASTIC", name)}
        if world_size > 1:
            surroundings.update(RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1",
                                MASTER_PORT=str(port))
        with open(self.paths[0], "wb") as said, open(self.paths[1], "wb") as errors:
            self.process = subprocess.Popen(command, stdout=said, stderr=errors, env=surroundings)

    def said(self):
        with open(self.paths[0], encoding="utf-8") as file:
            return file.read().splitlines()

    def errors(self):
        with open(self.paths[1], encoding="utf-8", errors="replace") as file:
            return file.read()

    def result(self):
        return json.loads(self.said()[-1])

    def wait_for_line(self, line, training):
        limit = time.monotonic() + SECONDS
        while line not in self.said():
            assert time.monotonic() < limit and self.process.poll() is None, training
            time.sleep(0.002)

    def __str__(self):
        return "\n".join([f"-- rank {self.rank}: status {self.process.poll()}", *self.said()[-8:], self.errors()])


class Training:
    """All ranks of one start."""

    def __init__(self, judge, world_size, writer, *options, of_rank=None, out=None):
        port = free_port()
        self.judge = judge
        self.command = [judge.program, writer, out or judge.out, *options]
        self.ranks = [Rank(judge, rank, world_size, port, self.command + list((of_rank or {}).get(rank, [])))
                      for rank in range(world_size)]

    def wait(self, seconds=SECONDS, ranks=None):
        limit = time.monotonic() + seconds
        for rank in ranks or self.ranks:
            try:
                rank.process.wait(timeout=max(0.01, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                for one in self.ranks:
                    one.process.kill()
                    one.process.wait()
                raise AssertionError(f"rank {rank.rank} goes on after {seconds} s\n{self}") from None
        return [rank.process.returncode for rank in ranks or self.ranks]

    def ends_well(self):
        assert self.wait() == [0] * len(self.ranks), str(self)
        results = [rank.result() for rank in self.ranks]
        assert len({result["state_digest"] for result in results}) == 1, f"ranks differ\n{self}"
        assert len({result["resumed_from"] for result in results}) == 1, f"ranks differ\n{self}"
        return results[0]

    def saved(self):
        return max((int(line.split()[1]) for rank in self.ranks for line in rank.said() if re.match(r"saved \d", line)),
                   default=0)

    def __str__(self):
        return "\n".join([" ".join(self.command), *map(str, self.ranks), *sorted(os.listdir(self.judge.out))])


class Judge:
    def __init__(self, arguments, scratch):
        self.rondo, self.program = os.path.abspath(arguments.rondo), os.path.abspath(arguments.program)
        self.scratch = scratch
        self.out = os.path.join(scratch, "out")
        self.counts = {}
        self.seconds = {signal.SIGKILL: [], signal.SIGSTOP: []}
        self.expected = {}

    def count(self, what, n=1):
        self.counts[what] = self.counts.get(what, 0) + n

    def begin_anew(self):
        shutil.rmtree(self.out, ignore_errors=True)
        os.makedirs(self.out)

    def snapshots(self):
        found = (re.fullmatch(r"snapshot_iter_(\d+)", name) for name in os.listdir(self.out))
        return sorted(int(match[1]) for match in found if match)

    def verify(self):
        paths = [os.path.join(self.out, f"snapshot_iter_{number}") for number in self.snapshots()]
        if paths:
            done = subprocess.run([self.rondo, "verify", *paths], capture_output=True, text=True, timeout=SECONDS)
            assert done.returncode == 0, done

    def learn(self, world_size):
        if world_size not in self.expected:
            self.begin_anew()
            self.expected[world_size] = Training(self, world_size, "simple").ends_well()
        return self.expected[world_size]


def test_equal_to_one_process(judge):
    """The same bits from run to run, and one process with the whole batch to rounding."""
    alone = judge.learn(1)
    for world_size in (2, 4):
        first = judge.learn(world_size)
        for mode in ("distributed", "sharded", "gathered"):
            judge.begin_anew()
            again = Training(judge, world_size, "thread", "--mode", mode).ends_well()
            assert again["state_digest"] == first["state_digest"], f"{mode}: {again} {first}"
        difference = abs(again["parameters_sum"] / alone["parameters_sum"] - 1)
        assert difference < 1e-6, f"{world_size} ranks: {again} instead of {alone}"
        assert again["stop_reason"] == "60 iterations completed", again


def test_python_opens_it(judge):
    """One file in the mode distributed; out of the directory of a sharded snapshot comes the same."""
    script = ("import sys, torch; s = torch.load(sys.argv[1]); o = s['optimizers']['main']['state']\n"
              "print(len(s['rondo']['ranks']), *(tuple(o[i]['momentum_buffer'].shape) for i in range(4)))")
    told = set()
    for mode in ("distributed", "gathered", "sharded"):
        judge.begin_anew()
        Training(judge, 2, "simple", "--saver-rank", "1", "--mode", mode).ends_well()
        path = os.path.join(judge.out, f"snapshot_iter_{ITERATIONS}")
        if mode == "sharded":
            assert sorted(os.listdir(path)) == ["0", "1", "complete"], os.listdir(path)
            subprocess.run([judge.rondo, "consolidate", path, path + ".one"], check=True, timeout=SECONDS)
            path += ".one"
        done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, done
        told.add(done.stdout)
    assert told == {"2 (64, 16) (64,) (4, 64) (4,)\n"}, told


def test_kill(judge, world_size, writer, mode, saver_rank, how=signal.SIGKILL):
    """Kills, or stops, one rank. False if the training was over before."""
    options = ["--timeout", str(TIMEOUT)] if how == signal.SIGSTOP else []
    training = Training(judge, world_size, writer, "--mode", mode, "--saver-rank", str(saver_rank), "--pause",
                        str(random.choice([0, 2, 10])), *options)
    limit = time.monotonic() + SECONDS
    # Not before all have met; that is another test.
    while not all("begun" in rank.said() for rank in training.ranks):
        assert time.monotonic() < limit and all(rank.process.poll() in (None, 0) for rank in training.ranks), training
        time.sleep(0.002)
    time.sleep(random.uniform(0, random.choice([0.05, 0.5])))
    dead = random.choice(training.ranks)
    saved = training.saved()
    dead.process.send_signal(how)
    killed = time.monotonic()
    others = [rank for rank in training.ranks if rank is not dead]
    statuses = training.wait(30, others)
    seconds = time.monotonic() - killed
    dead.process.kill()
    dead.process.wait()
    judge.verify()
    assert (judge.snapshots() or [0])[-1] >= saved, f"snapshot {saved} is lost\n{training}"
    if dead.process.returncode == 0 or all(status == 0 for status in statuses):
        return False
    for rank in others:
        # Who has come to the end before the death has no reason to complain.
        if rank.process.returncode != 0:
            assert f"named: {dead.rank}\n" in rank.errors(), f"rank {rank.rank} does not name {dead.rank}\n{training}"
    judge.seconds[how].append(seconds)
    judge.count(f"{'killed' if how == signal.SIGKILL else 'stopped'} the {'saver' if dead.rank == saver_rank else 'rank 0' if dead.rank == 0 else 'rank'} of "
                f"{world_size}, {mode}, writer {writer}")
    return True


def test_chain_of_kills(judge, world_size, writer, mode, kills, how=signal.SIGKILL):
    expected = judge.learn(world_size)
    judge.begin_anew()
    sent = 0
    saver_rank = random.randrange(world_size)
    while sent < kills:
        before = judge.snapshots()
        if not test_kill(judge, world_size, writer, mode, saver_rank, how):
            break
        sent += 1
        assert not before or judge.snapshots()[-1] >= before[-1]
    newest = judge.snapshots()
    training = Training(judge, world_size, writer, "--mode", mode, "--saver-rank", str(saver_rank))
    result = training.ends_well()
    left = [name for name in os.listdir(judge.out) if ".tmp-" in name]
    assert not left, f"{left} is left\n{training}"
    assert result["state_digest"] == expected["state_digest"], f"{result} instead of {expected}\n{training}"
    if newest:
        assert result["resumed_from"].endswith(f"snapshot_iter_{newest[-1]}"), str(training)
    return sent


# Of three ranks, of which rank 1 saves: who stands still where in the second snapshot, and who is killed then; which
# snapshots there are afterwards. These are the lines of the table in docs/distributed.md.
LOSSES = [
    ("distributed", 2, "iteration", [2], [2]),
    ("sharded", 2, "iteration", [2], [2]),
    ("distributed", 1, "writing", [2], [2, 4]),
    ("sharded", 2, "writing", [2], [2]),
    ("distributed", 1, "naming", [1], [2]),
    ("sharded", 1, "naming", [1], [2]),
    ("distributed", 1, "named", [1], [2, 4]),
    ("sharded", 1, "named", [1], [2, 4]),
    ("distributed", 1, "naming", [0, 1, 2], [2]),
    ("sharded", 1, "named", [0, 1, 2], [2, 4]),
]


def test_loss(judge, writer, mode, held, moment, dead, left):
    """A rank that dies at a certain moment, or all of them."""
    expected = judge.learn(3)
    judge.begin_anew()
    options = ["--mode", mode, "--saver-rank", "1"]
    training = Training(judge, 3, writer, *options, of_rank={held: ["--hold", moment]})
    training.ranks[held].wait_for_line("held", training)
    lost = [training.ranks[rank] for rank in dead]
    for rank in lost:
        rank.process.kill()
    others = [rank for rank in training.ranks if rank not in lost]
    # Nobody but the one who stands still has a reason to wait.
    training.wait(30, [rank for rank in others if rank.rank != held])
    open(judge.out + ".go", "wb").close()
    training.wait(30)
    os.remove(judge.out + ".go")
    for rank in others:
        assert f"named: {dead[0]}\n" in rank.errors(), f"rank {rank.rank} does not name {dead[0]}\n{training}"
    assert judge.snapshots() == left, str(training)
    judge.verify()
    again = Training(judge, 3, writer, *options)
    result = again.ends_well()
    assert result["resumed_from"].endswith(f"snapshot_iter_{left[-1]}"), str(again)
    assert result["state_digest"] == expected["state_digest"], str(again)
    assert not [name for name in os.listdir(judge.out) if ".tmp-" in name], str(again)


def test_durable_before_named(judge, writer):
    """What a loss of power leaves: each part, the index and the directory with them are durable before the snapshot has
    its name, and the name is when it is said to be."""
    judge.begin_anew()
    logs = [os.path.join(judge.scratch, f"calls_{rank}") for rank in range(3)]
    of_rank = {rank: ["--calls", logs[rank]] for rank in range(3)}
    of_rank[1] += ["--hold", "naming"]
    training = Training(judge, 3, writer, "--mode", "sharded", "--saver-rank", "1", of_rank=of_rank)
    training.ranks[1].wait_for_line("held", training)
    attempt = next(name for name in os.listdir(judge.out) if name.startswith(".snapshot_iter_4.tmp-"))
    directory = os.path.join(judge.out, attempt)

    def calls(rank):
        with open(logs[rank], encoding="utf-8") as file:
            return file.read().splitlines()

    def require_durable(said, name):
        temporary = next(i for i, line in enumerate(said) if line.startswith(f"sync {directory}/.{name}.tmp-"))
        renamed = said.index(f"rename {directory}/{name}")
        assert temporary < renamed < len(said) - said[::-1].index(f"sync {directory}"), said
        return renamed

    for rank in range(3):
        require_durable(calls(rank), str(rank))
    assert require_durable(calls(1), "1") < require_durable(calls(1), "complete"), calls(1)
    open(judge.out + ".go", "wb").close()
    training.ends_well()
    os.remove(judge.out + ".go")
    said = calls(1)
    named = said.index(f"rename {judge.out}/snapshot_iter_4")
    assert f"sync {judge.out}" in said[named:said.index(f"rename {judge.out}/snapshot_iter_6")], said


def test_loss_outside_of_training(judge, world_size, what, how):
    """A rank that goes while all meet in nothing but barriers, collectives, or those of parts of the group."""
    judge.begin_anew()
    options = ["--timeout", str(TIMEOUT)] if how == signal.SIGSTOP else []
    meeting = Training(judge, world_size, "meet", *options, out=what)
    limit = time.monotonic() + SECONDS
    while not all("begun" in rank.said() for rank in meeting.ranks):
        assert time.monotonic() < limit and all(rank.process.poll() is None for rank in meeting.ranks), meeting
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.2))
    dead = random.choice(meeting.ranks)
    dead.process.send_signal(how)
    gone = time.monotonic()
    others = [rank for rank in meeting.ranks if rank is not dead]
    meeting.wait(30, others)
    judge.seconds[how].append(time.monotonic() - gone)
    dead.process.kill()
    dead.process.wait()
    for rank in others:
        assert f"named: {dead.rank}\n" in rank.errors(), f"rank {rank.rank} does not name {dead.rank}\n{meeting}"
    judge.count(f"{'killed' if how == signal.SIGKILL else 'stopped'} a rank of {world_size} in {what}")


def test_error_on_one_rank(judge):
    judge.begin_anew()
    training = Training(judge, 3, "simple", of_rank={1: ["--fail", "7"]})
    assert training.wait() == [1, 1, 1], str(training)
    for rank in training.ranks:
        assert "this rank has had enough" in rank.errors(), str(training)
        assert rank.rank == 1 or "rank 1" in rank.errors(), str(training)
    assert judge.snapshots()[-1] == 6, str(training)


def test_errors_leave_one_snapshot(judge, mode):
    """Whether one rank fails or all do, the saver leaves its last state, once."""
    for failing in ([2], [0, 1, 2]):
        judge.begin_anew()
        training = Training(judge, 3, "simple", "--mode", mode, "--saver-rank", "1", "--on-error", "save",
                            of_rank={rank: ["--fail", "7"] for rank in failing})
        assert training.wait() == [1, 1, 1], str(training)
        assert sorted(os.listdir(judge.out)) == [".rondo.lock", "snapshot_iter_2", "snapshot_iter_4", "snapshot_iter_6",
                                                 "snapshot_iter_6.error"], str(training)
        done = subprocess.run([judge.rondo, "verify", os.path.join(judge.out, "snapshot_iter_6.error")], timeout=SECONDS,
                              capture_output=True, text=True)
        assert done.returncode == 0, done
        result = Training(judge, 3, "simple", "--mode", mode).ends_well()
        assert result["resumed_from"].endswith("snapshot_iter_6"), result


def test_stop_on_one_rank(judge):
    judge.begin_anew()
    training = Training(judge, 3, "thread", of_rank={2: ["--stop-at", "5"]})
    result = training.ends_well()
    assert result["iteration"] == 5 and result["stop_reason"] == "asked for", str(training)


def test_signal(judge, mode, to):
    """SIGTERM to one rank or to all: one snapshot of one iteration."""
    judge.begin_anew()
    # It never ends by itself, so the signal is in time on any machine.
    training = Training(judge, 3, "thread", "--mode", mode, "--pause", "5", "--iterations", "1000000")
    training.ranks[1].wait_for_line("iteration 3", training)
    for rank in to:
        training.ranks[rank].process.send_signal(signal.SIGTERM)
    assert training.wait() == [143] * 3, str(training)
    results = [rank.result() for rank in training.ranks]
    assert len({result["iteration"] for result in results}) == 1, str(training)
    assert judge.snapshots()[-1] == results[0]["iteration"], str(training)
    assert not [name for name in os.listdir(judge.out) if ".tmp-" in name], str(training)


def test_bad_disk(judge, writer, mode, bad, option="--disk-full", reason="No space left on device"):
    """The disk of rank `bad`, which writes, refuses everything from its fourth snapshot on."""
    judge.begin_anew()
    options = ["--mode", mode, "--saver-rank", "1"]
    training = Training(judge, 3, writer, *options, of_rank={bad: [option, "4"]})
    assert training.wait() == [1, 1, 1], str(training)
    for rank in training.ranks:
        assert reason in rank.errors(), str(training)
        assert rank.rank == bad or f"rank {bad}" in rank.errors(), str(training)
    assert judge.snapshots() == [2, 4, 6], str(training)
    judge.verify()
    resumed = Training(judge, 3, writer, *options, "--on-failure", "warn", of_rank={bad: [option, "4"]})
    result = resumed.ends_well()
    assert result["iteration"] == ITERATIONS and result["resumed_from"].endswith("snapshot_iter_6"), str(resumed)
    for rank in resumed.ranks:
        lost = [line for line in rank.said() if line.startswith("not saved")]
        assert lost and all(reason in line for line in lost), str(resumed)


def test_slow_disk(judge, writer, mode, slow, policy):
    """A rank that does not get ready in time ends the training, whatever the policy, as a dead one does."""
    judge.begin_anew()
    options = ["--mode", mode, "--saver-rank", "1", "--on-failure", policy, "--timeout", str(TIMEOUT)]
    training = Training(judge, 3, writer, *options, of_rank={slow: ["--disk-slow", "4"]})
    assert training.wait() == [1, 1, 1], str(training)
    for rank in training.ranks:
        # The slow one may find that its part is no longer wanted.
        assert rank.rank == slow or f"named: {slow}\n" in rank.errors(), str(training)
    # One that is written by the saver alone may still be finished.
    assert judge.snapshots() in ([2, 4, 6], [2, 4, 6, 8] if mode == "distributed" else []), str(training)
    judge.verify()
    Training(judge, 3, writer, "--mode", mode).ends_well()


def test_other_number_of_ranks(judge):
    """A snapshot of two ranks is for any number, and for any mode."""
    for first, second in [("distributed", "distributed"), ("sharded", "sharded"), ("sharded", "gathered"),
                          ("gathered", "sharded"), ("sharded", "distributed")]:
        judge.begin_anew()
        Training(judge, 2, "simple", "--iterations", "20", "--mode", first).ends_well()
        for world_size, last in ((3, 40), (1, 60)):
            result = Training(judge, world_size, "simple", "--iterations", str(last), "--mode", second).ends_well()
            assert result["resumed_from"].endswith(f"snapshot_iter_{last - 20}"), result


def test_elastic(judge, numbers):
    """A sharded snapshot of any number of ranks gives any number of ranks the same state."""
    digests = {}
    for first in numbers:
        judge.begin_anew()
        saved = Training(judge, first, "simple", "--iterations", "10", "--mode", "sharded").ends_well()
        for second in numbers:
            # There is nothing left to do but to restore.
            result = Training(judge, second, "simple", "--iterations", "10", "--mode", "sharded").ends_well()
            assert result["resumed_from"].endswith("snapshot_iter_10"), result
            digests[first, second] = result["state_digest"]
            assert result["state_digest"] == saved["state_digest"], f"{first} to {second}: {result} {saved}"
    judge.count("pairs of numbers of ranks, same state", len(digests))


def test_damaged_snapshot(judge, mode):
    """The newest one that all ranks can read."""
    judge.begin_anew()
    Training(judge, 2, "simple", "--iterations", "20", "--mode", mode).ends_well()
    path = os.path.join(judge.out, "snapshot_iter_20")
    damaged = os.path.join(path, "1") if mode == "sharded" else path
    place = os.path.getsize(damaged) // 2
    with open(damaged, "r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))
    result = Training(judge, 2, "simple", "--iterations", "30", "--mode", mode).ends_well()
    assert result["resumed_from"].endswith("snapshot_iter_18"), result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rondo")
    parser.add_argument("program")
    parser.add_argument("--kills", type=int, default=10, help="how many ranks to kill (default: 10)")
    parser.add_argument("--stops", type=int, default=3, help="how many ranks to stop (default: 3)")
    parser.add_argument("--elastic", type=int, nargs="+", default=[1, 2, 4],
                        help="numbers of ranks that go on from each other's snapshots (default: 1 2 4)")
    parser.add_argument("--losses", type=int, default=len(LOSSES),
                        help="how many of the moments at which a rank can be lost, chosen at random (default: all)")
    parser.add_argument("--thorough", action="store_true", help="all combinations of modes, writers and bad disks")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random (default: 1)")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory() as scratch:
        judge = Judge(arguments, scratch)
        test_equal_to_one_process(judge)
        test_python_opens_it(judge)
        test_error_on_one_rank(judge)
        for mode in ("distributed", "sharded"):
            test_errors_leave_one_snapshot(judge, mode)
        test_stop_on_one_rank(judge)
        test_signal(judge, "distributed", [1])
        test_signal(judge, "sharded", [2, 0, 1])
        test_bad_disk(judge, "simple", "distributed", 1)
        test_bad_disk(judge, "thread", "sharded", 0, "--disk-broken", "Input/output error")
        test_slow_disk(judge, "thread", "sharded", 2, "warn")
        if arguments.thorough:
            test_signal(judge, "distributed", [0, 1, 2])
            test_signal(judge, "sharded", [2])
            test_bad_disk(judge, "thread", "gathered", 1)
            test_bad_disk(judge, "thread_queue", "sharded", 2)
            test_bad_disk(judge, "simple", "sharded", 1)
            test_bad_disk(judge, "simple", "distributed", 1, "--disk-broken", "Input/output error")
            test_slow_disk(judge, "simple", "sharded", 0, "fail")
            test_slow_disk(judge, "simple", "distributed", 1, "fail")
        for number, loss in enumerate(random.sample(LOSSES, arguments.losses)):
            for writer in ["simple", "thread"] if arguments.thorough else [["simple", "thread"][number // 2 % 2]]:
                test_loss(judge, writer, *loss)
        test_durable_before_named(judge, "thread")
        test_other_number_of_ranks(judge)
        test_elastic(judge, arguments.elastic)
        for mode in ("distributed", "sharded"):
            test_damaged_snapshot(judge, mode)
        for how, wanted in ((signal.SIGKILL, arguments.kills), (signal.SIGSTOP, arguments.stops)):
            done, number = 0, 0
            while done < wanted:
                world_size = random.choice([2, 3])
                writer = ["simple", "thread_queue", "thread", "process_queue", "process"][number % 5]
                mode = ["sharded", "distributed", "sharded", "gathered"][number % 4]
                done += test_chain_of_kills(judge, world_size, writer, mode, min(4, wanted - done), how)
                number += 1
            for number in range((wanted + 2) // 3):
                what = ["parts", "collectives", "barriers"][number % 3]
                test_loss_outside_of_training(judge, random.choice([2, 3, 4]), what, how)
    for what, n in sorted(judge.counts.items()):
        print(f"{n:5} {what}")
    for how, seconds in judge.seconds.items():
        if seconds:
            seconds.sort()
            limit = f", with a timeout of {TIMEOUT / 1000} s" if how == signal.SIGSTOP else ""
            print(f"from {how.name} to the end of the others: {seconds[len(seconds) // 2]:.3f} s (median), "
                  f"{seconds[-1]:.3f} s (longest){limit}")
    print("ranks: everything held")


if __name__ == "__main__":
    main()
