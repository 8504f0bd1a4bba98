#!/usr/bin/env python3
"""Looks at saves from outside, with strace: in which order the system is asked for what, and what is left when the
process is killed, or the system refuses, at any of the calls that write.

usage: snapshot_syscalls_test.py RONDO SNAPSHOT_PROGRAM [--writers NAME...] [--format DESCRIPTION]

Each time, a program takes a snapshot, strace is attached to it, and it takes a second one. Ends with status 77 where
strace is missing or may not trace.
"""

import argparse
import collections
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

SKIPPED = 77
SECONDS = 120
WRITERS = ["simple", "thread", "thread_queue", "process", "process_queue"]
# One that fits a single chunk and its tail; one that is written by a thread of its own, in several chunks.
SMALL, LARGE = 300_000, 20_000_000
# What changes files or directories, or the durability of either. A question mark: not every architecture has it.
CALLS = ["openat", "fallocate", "fcntl", "write", "?pwrite64", "ftruncate", "fdatasync", "fsync", "close", "?rename",
         "?renameat", "?renameat2", "?unlink", "?unlinkat"]
# The program says that a snapshot is durable by this one.
SAYS = "writev"
REASONS = {"EIO": "Input/output error", "ENOSPC": "No space left on device"}

# Leaks cannot be looked for in a process that is traced.
ENVIRONMENT = dict(os.environ)
ENVIRONMENT["ASAN_OPTIONS"] = ENVIRONMENT.get("ASAN_OPTIONS", "") + ":detect_leaks=0"

LINE = re.compile(r"^(?P<time>[\d.]+) (?P<name>\w+)\((?P<rest>.*)$")
TEMPORARY = re.compile(r"\.snapshot_iter_2\.tmp-\d+-[0-9a-f]{16}")

Call = collections.namedtuple("Call", "name nth what place begin end injected text")
Place = collections.namedtuple("Place", "who name what nth")


class Skipped(Exception):
    pass


def read_calls(path, who, folder):
    """The calls of one thread, in order. `what` is the file of the folder that each is about, or None."""
    calls, counts, places = [], collections.Counter(), collections.Counter()
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            found = LINE.match(line)
            if not found:
                continue
            name, rest = found["name"], found["rest"]
            counts[name] += 1
            what = None
            # The lock is no part of a save.
            if folder in rest and ".rondo.lock" not in rest:
                what = "temporary" if TEMPORARY.search(rest) else "directory"
                if name == "openat":
                    what += ", new" if "O_CREAT" in rest else ""
            elif name == SAYS and "durable 2" in rest:
                what = "durable"
            place = None
            if what:
                places[name, what] += 1
                place = Place(who, name, what, places[name, what])
            duration = re.search(r"<([\d.]+)>$", rest.rstrip())
            begin = float(found["time"])
            # Without an end: the thread died in it.
            end = begin + float(duration[1]) if duration else None
            calls.append(Call(name, counts[name], what, place, begin, end, "(INJECTED)" in rest, line.rstrip()))
    return calls


class Run:
    """One program that has taken a snapshot, and takes a second one while somebody is traced: "all" threads and
    processes, the "trainer" alone, or its "helper" process alone."""

    def __init__(self, program, writer, folder, logs, size, formats, whom="all", inject=None):
        self.folder = os.path.realpath(folder)
        self.logs = logs
        for name in os.listdir(logs):
            os.unlink(os.path.join(logs, name))
        with open(os.path.join(logs, "errors"), "w+") as errors:
            command = [program, writer, self.folder, "1", str(size), *formats]
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                                            text=True, env=ENVIRONMENT)
            said = self.process.stdout.readline()
            assert said == "durable 1\n", said
            if whom == "helper":
                tracers = self.trace_helper(writer, inject)
            elif whom == "trainer":
                tracers = [self.trace([self.process.pid], inject, "-o", self.log_of(self.process.pid))]
            else:
                everybody = [self.process.pid, *children_of(self.process.pid)]
                tracers = [self.trace(everybody, inject, "-ff", "-o", os.path.join(logs, "trace"))]
            said, _ = self.process.communicate("" if whom == "helper" else "\n", timeout=SECONDS)
            for tracer in tracers:
                tracer.communicate(timeout=SECONDS)
            errors.seek(0)
            self.errors = errors.read()
        self.status = self.process.returncode
        self.durable = said == "durable 2\n"
        assert self.durable or said == "", said
        self.calls = []
        for name in sorted(os.listdir(logs)):
            if name.startswith("trace."):
                who = "trainer" if name == f"trace.{self.process.pid}" else "other"
                self.calls += read_calls(os.path.join(logs, name), who, self.folder)

    def log_of(self, process):
        return os.path.join(self.logs, f"trace.{process}")

    def trace(self, processes, inject, *options, calls=",".join(CALLS + [SAYS])):
        command = ["strace", "-y", "-ttt", "-T", "-s", "40", "-e", "trace=" + calls, *options]
        command += ["-e", "inject=" + inject] if inject else []
        for process in processes:
            command += ["-p", str(process)]
        tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        seen = ""
        for _ in processes:
            line = tracer.stderr.readline()
            while line and " attached" not in line:
                seen += line
                line = tracer.stderr.readline()
            if not line:
                self.process.kill()
                self.process.wait()
                raise Skipped(seen.strip() or "strace ended")
        return tracer

    def trace_helper(self, writer, inject):
        """Lets the second snapshot begin, and traces who writes it from before it is told to."""
        tracers = []
        if writer == "process":
            # Stopped while it announces the file, the trainer has a helper that has nothing to do yet. Before that it
            # opens the file of /proc that tells when the helper has started.
            tracers.append(self.trace([self.process.pid], "openat:signal=SIGSTOP:when=2", "-o", os.devnull,
                                      calls="openat"))
            self.begin_second()
            limit = time.monotonic() + SECONDS
            while not self.temporaries():
                assert time.monotonic() < limit, "the trainer announces nothing"
        [helper] = children_of(self.process.pid)
        tracers.append(self.trace([helper], inject, "-ff", "-o", os.path.join(self.logs, "trace")))
        if writer == "process":
            os.kill(self.process.pid, signal.SIGCONT)
        else:
            self.begin_second()
        return tracers

    def begin_second(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def hit(self):
        """The places at which something was injected: a failure, or the end."""
        return {call.place for call in self.calls if call.injected or call.end is None} - {None}

    def temporaries(self):
        return [name for name in os.listdir(self.folder) if ".tmp-" in name]

    def __str__(self):
        lines = "\n".join(call.text for call in sorted(self.calls, key=lambda call: call.begin))
        return f"status {self.status}, durable {self.durable}\n{self.errors}\n{os.listdir(self.folder)}\n{lines}"


def children_of(process):
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                if int(file.read().rpartition(")")[2].split()[1]) == process:
                    found.append(int(name))
        except OSError:
            pass
    return found


class Judge:
    def __init__(self, rondo, program, scratch, formats):
        self.formats = formats
        self.rondo, self.program, self.scratch = os.path.abspath(rondo), os.path.abspath(program), scratch
        self.logs = os.path.join(scratch, "logs")
        os.mkdir(self.logs)
        self.runs = 0

    def run(self, writer, size, whom="all", inject=None):
        folder = os.path.join(self.scratch, "out")
        shutil.rmtree(folder, ignore_errors=True)
        os.mkdir(folder)
        self.runs += 1
        return Run(self.program, writer, folder, self.logs, size, self.formats, whom, inject)

    def number_of_latest(self, run):
        """Of the snapshot that a run would resume from. All that have their names must be sound."""
        done = subprocess.run([self.rondo, "latest", run.folder], capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0 and not done.stderr, f"{done}\n{run}"
        number = int(done.stdout.rpartition("_")[2])
        assert number in (1, 2), f"{done}\n{run}"
        assert number == 2 or not run.durable, f"what was durable is lost\n{run}"
        return number

    def go_on(self, run):
        """The next run cleans up, and saves."""
        done = subprocess.run([self.program, "simple", run.folder, "3", str(SMALL)], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=SECONDS, env=ENVIRONMENT)
        assert done.returncode == 0 and done.stdout == "durable 3\n", f"{done}\n{run}"
        assert not run.temporaries(), str(run)


def test_order(run):
    """Content is durable before it gets the name, and the name before anybody is told."""
    one = {}
    for call in run.calls:
        if call.place:
            one.setdefault((call.name.replace("renameat2", "rename").replace("renameat", "rename"), call.what),
                           []).append(call)
    assert run.durable and run.status == 0 and not run.temporaries(), str(run)
    # The other one is for files whose size a user's function has given them.
    [sync] = one.get(("fdatasync", "temporary")) or one["fsync", "temporary"]
    [rename] = one["rename", "temporary"]
    [sync_directory], [durable] = one["fsync", "directory"], one[SAYS, "durable"]
    writes = one["write", "temporary"] + one.get(("pwrite64", "temporary"), [])
    assert all(call.end <= sync.begin for call in writes), str(run)
    assert sync.end <= rename.begin and rename.end <= sync_directory.begin, str(run)
    assert sync_directory.end <= durable.begin, str(run)
    # Nothing is written under the name itself.
    assert ("openat", "directory, new") not in one, str(run)


def spots(run):
    """Each place in the folder that a save goes through, and how to hit it: the name of the call and its number."""
    return {call.place: (call.name, call.nth) for call in run.calls if call.what and call.name != SAYS}


def everywhere(judge, writer, size, how):
    """A run for each call that touches the folder, at which `how` is injected."""
    for whom, places in calls_of(judge, writer, size).items():
        hit = set()
        for name, nth in sorted(set(places.values())):
            run = judge.run(writer, size, whom, f"{name}:{how}:when={nth}")
            hit |= run.hit()
            yield run
        # Which of two threads writes a piece is a matter of timing: try again, then be content with one of the kind.
        for place in sorted(set(places) - hit, key=str):
            for _ in range(3):
                if place in hit:
                    break
                name, nth = places[place]
                run = judge.run(writer, size, whom, f"{name}:{how}:when={nth}")
                hit |= run.hit()
                yield run
        missed = {(place.name, place.what) for place in places} - {(place.name, place.what) for place in hit}
        assert not missed, f"{writer}: never happened at {missed}"


def calls_of(judge, writer, size):
    """By who has to be traced to count them: processes count on their own, but would be hit together."""
    if not writer.startswith("process"):
        return {"all": spots(judge.run(writer, size))}
    found = {whom: spots(judge.run(writer, size, whom)) for whom in ["trainer", "helper"]}
    together = set(spots(judge.run(writer, size)))
    assert set(found["trainer"]) | set(found["helper"]) == together, (found, together)
    return found


def test_killed(judge, writer, size):
    outcomes = collections.Counter()
    for run in everywhere(judge, writer, size, "signal=SIGKILL"):
        outcomes[judge.number_of_latest(run)] += 1
        judge.go_on(run)
    assert outcomes[1] and outcomes[2], outcomes
    return outcomes


# A save may go on without these: what they are good for is done otherwise, or later.
def harmless(place, announced):
    announcement = announced and place.who == "trainer" and place.name in ("openat", "close")
    # A file that a function has written is opened again to be synced.
    closed_after_sync = place.name == "close" and (place.what == "directory" or place.nth > 1)
    return announcement or closed_after_sync or place.name == "fcntl" or place.name.startswith("unlink")


def test_refused(judge, writer, size, reason):
    """The system refuses a call. Returns how often that was an error for the program."""
    failed = 0
    announced = writer.startswith("process")
    for run in everywhere(judge, writer, size, f"error={reason}"):
        here = run.hit()
        number = judge.number_of_latest(run)
        fatal = [place for place in here if not harmless(place, announced)]
        elsewhere = [call for call in run.calls if call.injected and not call.place]
        if fatal:
            assert run.status == 3 and not run.durable, str(run)
            told = [run.folder, REASONS[reason]]
            assert run.errors.startswith("io_error: ") and all(part in run.errors for part in told), str(run)
            assert number == 1 or fatal[0].what == "directory", str(run)
            failed += 1
        elif not elsewhere and not any(place.name == "fcntl" for place in here):
            assert run.status == 0 and run.durable, str(run)
        # What cannot be removed stays until the next start.
        if not any(place.name.startswith("unlink") for place in here):
            assert not run.temporaries(), str(run)
        judge.go_on(run)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("rondo")
    parser.add_argument("snapshot_program")
    parser.add_argument("--writers", nargs="+", default=WRITERS, choices=WRITERS)
    parser.add_argument("--format", action="append", default=[], help="of the files, if it is not Rondo's own")
    arguments = parser.parse_args()
    if not shutil.which("strace"):
        raise Skipped("there is no strace")
    with tempfile.TemporaryDirectory() as scratch:
        judge = Judge(arguments.rondo, arguments.snapshot_program, scratch, arguments.format)
        for writer in arguments.writers:
            for size in [SMALL, LARGE]:
                test_order(judge.run(writer, size))
                outcomes = test_killed(judge, writer, size)
                print(f"{writer}, {size} bytes: killed at {outcomes.total()} calls, each that there is; {outcomes[1]} "
                      f"times the old snapshot is left, {outcomes[2]} times the new one", flush=True)
            for reason in REASONS:
                failed = test_refused(judge, writer, SMALL, reason)
                print(f"{writer}: {reason} at each call; {failed} times an error, never a loss", flush=True)
    print(f"{judge.runs} saves, none lost")


if __name__ == "__main__":
    try:
        main()
    except Skipped as reason:
        print(f"skipped: {reason}")
        sys.exit(SKIPPED)
