#!/usr/bin/env python3
"""Runs `rondo run` as a user would, with small shell and Python programs as ranks.

usage: rondo_run_test.py RONDO
"""

import os
import signal
import subprocess
import sys
import time

SECONDS = 60


def run(rondo, *arguments, environment=None):
    return subprocess.run([rondo, "run", *arguments], capture_output=True, text=True, timeout=SECONDS,
                          env={**os.environ, **(environment or {})})


def python(text):
    return [sys.executable, "-u", "-c", text]


def test_variables(rondo):
    names = "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS".split()
    # In one piece: the ranks share the stream.
    show = python(f"import os; os.write(1, (' '.join(os.environ[name] for name in {names!r}) + '\\n').encode())")
    done = run(rondo, "-n", "3", "--no-prefix", *show, environment={"OMP_NUM_THREADS": "7"})
    assert done.returncode == 0, done
    lines = sorted(line.split() for line in done.stdout.splitlines())
    assert [line[:5] + line[6:] for line in lines] == [[str(r), "3", str(r), "3", "127.0.0.1", "7"] for r in range(3)], lines
    assert len({line[5] for line in lines}) == 1 and int(lines[0][5]) > 0, lines
    done = run(rondo, "-n", "1", "--master-port", "12345", *show)
    assert " 127.0.0.1 12345 " in done.stdout, done


def test_output(rondo):
    """Whole lines with their rank, both streams apart, an unfinished last line too; arguments are the program's."""
    done = run(rondo, "-n", "2", *python("import sys; print('a'); print(*sys.argv[1:]); sys.stderr.write('wrong\\n');"
                                         "sys.stdout.write('end')"), "--grace", "5", "-n", "9", "")
    assert done.returncode == 0, done
    for rank in "01":
        assert [line for line in done.stdout.splitlines() if line.startswith(f"[{rank}]")] == \
               [f"[{rank}] a", f"[{rank}] --grace 5 -n 9 ", f"[{rank}] end"], done
        assert f"[{rank}] wrong" in done.stderr.splitlines(), done
    assert done.stdout.endswith("\n"), done
    many = run(rondo, "-n", "3", *python("for i in range(20000): print(i, 'x' * 50)"))
    for rank in "012":
        mine = [line.split()[1] for line in many.stdout.splitlines() if line.startswith(f"[{rank}] ")]
        assert mine == [str(i) for i in range(20000)], mine[:5]


def test_failure(rondo):
    """The first failure decides, and who does not end by himself is ended."""
    program = python("import os, sys, time\nif os.environ['RANK'] == '1': sys.exit(3)\ntime.sleep(100)")
    begun = time.monotonic()
    done = run(rondo, "-n", "3", "--grace", "0.2", *program)
    assert done.returncode == 3 and time.monotonic() - begun < 30, done
    assert "rank 1" in done.stderr and "status 3" in done.stderr, done
    stubborn = python("import os, signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
                      "if os.environ['RANK'] == '0': os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(100)")
    done = run(rondo, "-n", "2", "--grace", "0.2", *stubborn)
    assert done.returncode == 128 + signal.SIGKILL and "signal 9" in done.stderr, done


def test_survivors_may_speak(rondo):
    program = python("import os, sys, time\nif os.environ['RANK'] == '1': sys.exit(5)\ntime.sleep(1)\n"
                     "print('rank 1 is gone'); sys.exit(1)")
    done = run(rondo, "-n", "2", *program)
    assert done.returncode == 5 and "[0] rank 1 is gone" in done.stdout, done


def start(rondo, *arguments):
    return subprocess.Popen([rondo, "run", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_signals(rondo):
    """Each signal reaches every rank once."""
    program = python("import os, signal, sys, time\nseen = []\n"
                     "for s in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM): signal.signal(s, lambda n, _: seen.append(n))\n"
                     "print('ready')\nwhile signal.SIGTERM not in seen: time.sleep(0.01)\nprint(seen)")
    running = start(rondo, "-n", "2", *program)
    assert {running.stdout.readline() for _ in range(2)} == {"[0] ready\n", "[1] ready\n"}
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGTERM):
        running.send_signal(number)
        time.sleep(0.2)  # a signal that is sent twice would show; one that is late would not
    out, err = running.communicate(timeout=SECONDS)
    assert running.returncode == 0, err
    assert sorted(out.splitlines()) == ["[0] [10, 2, 15]", "[1] [10, 2, 15]"], out


def test_ranks_die_with_it(rondo):
    running = start(rondo, "-n", "2", *python("import os, time\nprint(os.getpid())\ntime.sleep(100)"))
    processes = [int(running.stdout.readline().split()[1]) for _ in range(2)]
    running.kill()
    running.wait(timeout=SECONDS)
    limit = time.monotonic() + SECONDS
    while any(is_running(process) for process in processes):
        assert time.monotonic() < limit, processes
        time.sleep(0.01)


def is_running(process):
    try:
        with open(f"/proc/{process}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_end_of(process):
    limit = time.monotonic() + SECONDS
    while is_running(process):
        assert time.monotonic() < limit, process
        time.sleep(0.01)


def test_left_behind(rondo):
    """A grandchild that holds the pipes open keeps nobody waiting, and is no orphan."""
    begun = time.monotonic()
    done = run(rondo, "-n", "1", "sh", "-c", "sleep 100 & echo $!; echo done")
    assert done.returncode == 0 and "[0] done" in done.stdout and time.monotonic() - begun < 30, done
    wait_for_end_of(int(done.stdout.split()[1]))


def test_grandchildren(rondo):
    """They get signals as the ranks do, and end when rondo run is killed."""
    for end in (signal.SIGTERM, signal.SIGKILL):
        running = start(rondo, "-n", "2", "sh", "-c", "sleep 100 & echo $!; wait; echo over")
        processes = [int(running.stdout.readline().split()[1]) for _ in range(2)]
        running.send_signal(end)
        running.communicate(timeout=SECONDS)
        assert running.returncode == (128 + end if end == signal.SIGTERM else -end), running.returncode
        for process in processes:
            wait_for_end_of(process)


def test_statuses_that_look_like_signals(rondo):
    done = run(rondo, "-n", "1", "sh", "-c", "exit 255")
    assert done.returncode == 255 and "status 255" in done.stderr, done
    done = run(rondo, "-n", "1", "sh", "-c", "exit 143")
    assert done.returncode == 143 and "status 143" in done.stderr, done


def test_wrong_usage(rondo):
    done = run(rondo, "-n", "2", "./no-such-program")
    assert done.returncode == 127 and "no-such-program" in done.stderr, done
    done = run(rondo, "-n", "2", "/etc/passwd")
    assert done.returncode == 126 and "/etc/passwd" in done.stderr, done
    for arguments in (["-n", "0", "true"], ["true"], ["-n", "x", "true"], ["-n", "2"], ["-n", "2", "--master-port", "0", "true"]):
        done = run(rondo, *arguments)
        assert done.returncode == 2 and done.stderr, done


def main():
    rondo = os.path.abspath(sys.argv[1])
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test(rondo)
    print("rondo run: everything held")


if __name__ == "__main__":
    main()
