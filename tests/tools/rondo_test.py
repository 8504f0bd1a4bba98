#!/usr/bin/env python3
"""Runs the command-line tool `rondo` as a user would: on sound files, on damaged ones and on what is no file at all.

usage: rondo_test.py RONDO MAKE_SNAPSHOT [--mutations N]

The interpreter needs torch and NumPy: they make files for the tool and read those that it makes.
"""

import argparse
import collections
import io
import json
import os
import pty
import random
import shutil
import signal
import socket
import subprocess
import tempfile

import numpy
import torch

DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64,
          torch.complex64, torch.complex128, torch.bool, torch.bfloat16]

# A sanitizer's own exit status is 1, which would read as "damaged".
ENVIRONMENT = dict(os.environ)
for variable in ["ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS"]:
    ENVIRONMENT[variable] = ENVIRONMENT.get(variable, "") + ":exitcode=99"


class Tool:
    def __init__(self, program, make_snapshot):
        self.program = os.path.abspath(program)
        self.make_snapshot = os.path.abspath(make_snapshot)

    def run(self, *arguments, **options):
        command = [self.program, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, env=ENVIRONMENT, timeout=120, **options)

    def expect(self, status, *arguments, **options):
        """stdout and stderr as text, of a run that must end with `status`."""
        done = self.run(*arguments, **options)
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        assert done.returncode == status, f"rondo {arguments}: exit status {done.returncode}\n{out}\n{err}"
        assert status == 0 or err.strip(), f"rondo {arguments}: no word about exit status {status}"
        assert "Sanitizer" not in err, err
        return out, err

    def on_terminal(self, *arguments, **options):
        """Everything that a terminal gets to see, and the exit status."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen([self.program, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs,
                                   env=ENVIRONMENT, **options)
        os.close(theirs)
        seen = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # EIO: nobody has the other side open
                break
            if not piece:
                break
            seen += piece
        os.close(ours)
        return seen.decode(errors="replace"), process.wait(timeout=120)

    def snapshot(self, path, iteration, *more):
        subprocess.run([self.make_snapshot, path, str(iteration), *more], check=True, env=ENVIRONMENT)
        return path


def example_state():
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model(torch.ones(4, 3)).sum().backward()
    optimizer.step()
    base = torch.arange(24.0).view(2, 3, 4)
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "views": [base, base.permute(2, 0, 1), base[:, 1], base[:, :, 1:3], base[0, 0, 0],
                  torch.ones(1).expand(50, 40)],
        "dtypes": {str(t): torch.tensor([0, 1, 3]).to(t) for t in DTYPES},
        "empty": torch.zeros(0, 3),
        "text": "two\nlines",
        "evil\x1b[31m\u202ename": "\x1b]0;owned\x07",
        "bytes": b"\x00\xffabc",
        "numbers": [1, -2, 0.1, float("inf"), float("nan"), True, None],
        "tuple": (1, [2, (3,)]),
        "ordered": collections.OrderedDict(z=1),
    }


def files_in(folder):
    return sorted(os.listdir(folder))


def damage(path, marker, change=1):
    """Changes a byte of the file behind the last occurrence of `marker`."""
    with open(path, "r+b") as file:
        at = file.read().rindex(marker)
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ change]))


# The floats of a snapshot of iteration n begin with n, n + 1, ...
def data_of(iteration):
    return numpy.arange(iteration, iteration + 6, dtype="<f4").tobytes()


def test_inspect(tool, folder):
    path = os.path.join(folder, "state.pt")
    torch.save(example_state(), path)
    out, err = tool.expect(0, "inspect", path)
    assert not err, err
    for part in ["PyTorch checkpoint (no manifest)", "0.weight ", "float32 [2, 3]  24 B", "step ",
                 "text: 'two\\nlines'", "bytes: bytes, 5 B", "numbers: [1, -2, 0.1, inf, nan, True, None]",
                 "bfloat16 [3]  6 B", "complex128 [3]"]:
        assert part in out, (part, out)
    assert "\\x1b[31m\\u202ename" in out and "\x1b" not in out and "\u202e" not in out, out
    shallow, _ = tool.expect(0, "inspect", "--depth", "1", path)
    assert "model: dict of 7" in shallow and "0.weight" not in shallow, shallow
    tool.expect(2, "inspect", "--depth", "1", "--json", path)

    out, _ = tool.expect(0, "inspect", "--json", path)
    seen = json.loads(out)
    tensors = {t["name"]: t for t in seen["tensors"]}
    assert seen["format"] == "torch" and seen["size"] == os.path.getsize(path), seen
    assert tensors["views.1"]["shape"] == [4, 2, 3] and tensors["views.1"]["strides"] == [1, 12, 4], tensors["views.1"]
    assert tensors["views.0"]["storage"] == tensors["views.1"]["storage"]
    assert seen["totals"]["tensors"] == len(tensors) and seen["totals"]["storages"] < len(tensors), seen["totals"]
    values = {v["name"]: v.get("value") for v in seen["values"]}
    assert values["numbers.2"] == 0.1 and values["numbers.3"] == "inf" and values["numbers.4"] == "nan", values
    assert values["optimizer.param_groups.0.lr"] == 1e-3 and values["tuple.1.1.0"] == 3, values

    path = tool.snapshot(os.path.join(folder, "snapshot"), 42)
    out, _ = tool.expect(0, "inspect", path)
    for part in ["Rondo snapshot", "iteration   42", "epoch       4", "rondo 0.1.0, torch 1.13.1",
                 "made by     snapshot"]:
        assert part in out, (part, out)
    seen = json.loads(tool.expect(0, "inspect", "--json", path)[0])
    assert seen["format"] == "rondo" and seen["iteration"] == 42 and seen["libraries"]["torch"] == "1.13.1", seen
    assert not seen["mid_iteration"] and seen["totals"]["storage_bytes"] == 24, seen
    out, _ = tool.expect(0, "inspect", tool.snapshot(path, 42, "on_error", "mid"))
    assert "taken inside an iteration" in out, out


def test_verify(tool, folder):
    good = tool.snapshot(os.path.join(folder, "good"), 7)
    bad = tool.snapshot(os.path.join(folder, "bad"), 8)
    damage(bad, data_of(8))
    foreign = os.path.join(folder, "foreign.pt")
    torch.save({"w": torch.arange(6.0) + 1}, foreign)
    out, err = tool.expect(0, "verify", good, foreign)
    assert "good (snapshot of iteration 7" in out and "checkpoint of torch.save" in out and not err, (out, err)
    out, err = tool.expect(1, "verify", good, bad)
    assert "archive/data/0" in err and "good: good" in out and "bad: DAMAGED, 1 problem" in out, (out, err)
    _, err = tool.expect(2, "verify", bad, os.path.join(folder, "missing"))
    assert "missing" in err and "archive/data/0" in err, err
    damage(foreign, data_of(1))
    assert "data/0" in tool.expect(1, "verify", foreign)[1]
    with open(good, "rb") as file:
        whole = file.read()
    for size in [0, 1, 100, len(whole) // 2, len(whole) - 1]:
        with open(bad, "wb") as file:
            file.write(whole[:size])
        tool.expect(1, "verify", bad)


def test_any_damage_is_found(tool, folder):
    rng = random.Random(2)
    path = tool.snapshot(os.path.join(folder, "snapshot"), 7)
    with open(path, "rb") as file:
        whole = file.read()
    for i in range(200):
        at = rng.randrange(len(whole))
        changed = whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1:]
        with open(path, "wb") as file:
            file.write(whole[:at] if i % 4 == 0 else changed)
        tool.expect(1, "verify", path)


def test_extract(tool, folder):
    path = os.path.join(folder, "state.pt")
    state = example_state()
    torch.save(state, path)
    names, _ = tool.expect(0, "extract", path, "--list")
    listed = [line.split("\t")[0] for line in names.splitlines()]
    assert "views.1" in listed and "optimizer.state.0.exp_avg" in listed and "\x1b" not in names, names

    def extracted(name):
        out = os.path.join(folder, "out.npy")
        tool.expect(0, "extract", path, name, "-o", out, "--force")
        return numpy.load(out)

    expected = {f"views.{i}": t for i, t in enumerate(state["views"])}
    expected |= {f"dtypes.{name}": t for name, t in state["dtypes"].items() if t.dtype != torch.bfloat16}
    expected |= {f"model.{name}": t for name, t in state["model"].items()} | {"empty": state["empty"]}
    expected["optimizer.state.0.exp_avg"] = state["optimizer"]["state"][0]["exp_avg"]
    for name, tensor in expected.items():
        found = extracted(name)
        assert found.dtype == tensor.numpy().dtype and found.shape == tuple(tensor.shape), (name, found, tensor)
        assert numpy.array_equal(found, tensor.numpy()), (name, found, tensor)
    bits = extracted("dtypes.torch.bfloat16")
    assert bits.dtype == numpy.uint16 and (bits.astype("u4") << 16).view("f4").tolist() == [0, 1, 3], bits
    assert "bfloat16" in tool.expect(0, "extract", path, "dtypes.torch.bfloat16", "-o", "-")[1]

    done = tool.run("extract", path, "views.1", "-o", "-")
    assert numpy.array_equal(numpy.load(io.BytesIO(done.stdout)), state["views"][1].numpy())
    assert tool.run("extract", path, "text").stdout == b"two\nlines\n"
    assert tool.run("extract", path, "bytes").stdout == b"\x00\xffabc"
    assert tool.expect(0, "extract", path, "numbers.2")[0] == "0.1\n"
    assert tool.expect(0, "extract", path, "tuple.1.1.0")[0] == "3\n"
    evil = next(name for name in listed if "name" in name and "evil" in name)
    assert tool.run("extract", path, evil).stdout == b"\x1b]0;owned\x07\n"
    assert tool.expect(0, "extract", path, "text", "-o", os.path.join(folder, "text"))[0] == ""
    with open(os.path.join(folder, "text"), "rb") as file:
        assert file.read() == b"two\nlines"

    tool.expect(0, "extract", path, "views.0", cwd=folder)
    assert os.path.exists(os.path.join(folder, "views.0.npy"))
    assert "--force" in tool.expect(2, "extract", path, "views.0", cwd=folder)[1]
    assert "--list" in tool.expect(2, "extract", path, "no.such.name")[1]
    assert "list of 6" in tool.expect(2, "extract", path, "views")[1]
    assert "NAME" in tool.expect(2, "extract", path)[1]
    slashes = os.path.join(folder, "slashes.pt")
    torch.save({"../escaped": torch.ones(2), ".hidden": torch.ones(2)}, slashes)
    for name in ["../escaped", ".hidden"]:
        assert "-o" in tool.expect(2, "extract", slashes, name, cwd=folder)[1]
    assert not os.path.exists(os.path.join(folder, "..", "escaped.npy"))

    bad = tool.snapshot(os.path.join(folder, "bad"), 8)
    tool.expect(0, "extract", bad, "_start_iteration")
    damage(bad, data_of(8))
    assert "data/0" in tool.expect(1, "extract", bad, "models.main.weight", "-o", os.path.join(folder, "never"))[1]
    assert not os.path.exists(os.path.join(folder, "never"))


def test_endless_views_are_refused(tool, folder):
    path = os.path.join(folder, "endless.pt")
    torch.save({"w": torch.ones(1).expand(1 << 20, 1 << 20)}, path)
    out, _ = tool.expect(0, "inspect", path)
    assert "[1048576, 1048576]" in out, out
    assert "again and again" in tool.expect(2, "extract", path, "w", "-o", os.path.join(folder, "w.npy"))[1]
    assert "again and again" in tool.expect(2, "convert", path, os.path.join(folder, "w.safetensors"))[1]
    assert "again and again" in tool.expect(2, "diff", path, path)[1]
    assert files_in(folder) == ["endless.pt"], files_in(folder)


def test_convert(tool, folder):
    path, flat, back = (os.path.join(folder, name) for name in ["state.pt", "state.safetensors", "back.pt"])
    state = example_state()
    del state["dtypes"]["torch.complex128"]
    torch.save(state, path)
    tool.expect(0, "convert", path, flat)
    with open(flat, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    assert header["model.0.weight"]["dtype"] == "F32" and header["model.0.weight"]["shape"] == [2, 3], header
    assert "safetensors file" in tool.expect(2, "inspect", flat)[1]
    tool.expect(0, "convert", flat, back)
    tool.expect(0, "verify", back)
    assert "equal" in tool.expect(0, "diff", path, back)[0]
    loaded = torch.load(back)
    assert torch.equal(loaded["views"][1], state["views"][1]) and loaded["text"] == state["text"], loaded
    # It was no snapshot, so it does not become one.
    tool.expect(1, "latest", folder)

    snapshot = tool.snapshot(os.path.join(folder, "snapshot"), 12)
    tool.expect(0, "convert", snapshot, flat, "--force")
    tool.expect(0, "convert", flat, back, "--force")
    assert tool.expect(0, "inspect", back)[0].count("iteration   12") == 1
    tool.expect(0, "diff", snapshot, back)

    torch.save(example_state(), path)
    assert "complex128" in tool.expect(2, "convert", path, flat, "--force")[1]
    assert "--force" in tool.expect(2, "convert", snapshot, flat)[1]
    assert ".safetensors" in tool.expect(2, "convert", snapshot, os.path.join(folder, "copy.pt"))[1]
    tool.expect(2, "convert", flat, os.path.join(folder, "copy.safetensors"))
    damage(snapshot, data_of(12))
    tool.expect(1, "convert", snapshot, os.path.join(folder, "never.safetensors"))
    with open(flat, "r+b") as file:
        file.truncate(os.path.getsize(flat) - 1)
    tool.expect(1, "convert", flat, os.path.join(folder, "never.pt"))
    assert not [name for name in files_in(folder) if "never" in name or name.startswith(".")], files_in(folder)


def test_diff(tool, folder):
    def saved(name, state):
        path = os.path.join(folder, name)
        torch.save(state, path)
        return path

    base = example_state()
    a = saved("a", base)
    assert tool.expect(0, "diff", a, a)[0].startswith("equal: "), "not equal to itself"

    changed = example_state()
    changed["model"]["0.weight"][0, 0] += 0.5
    changed["views"][2] = changed["views"][2].clone()
    changed["views"][3] = changed["views"][3].clone()
    changed["views"][3][1, 2, 1] += 2
    changed["empty"] = torch.zeros(0, 4)
    changed["dtypes"]["torch.int64"] = torch.tensor([0, 1, 3], dtype=torch.int32)
    changed["dtypes"]["torch.float16"][1] = float("nan")
    changed["dtypes"]["torch.complex64"][1] += 3 + 4j
    changed["dtypes"]["torch.uint8"][0] = 255
    changed["numbers"][0] = 2
    changed["tuple"] = (1, [2])
    changed["new"] = {"x": 1}
    del changed["text"]
    out, err = tool.expect(1, "diff", a, saved("b", changed))
    expected = [
        "model.0.weight: 1 of 6 elements differ, max abs difference 0.5",
        "views.3: 1 of 12 elements differ, max abs difference 2",
        "empty: float32 [0, 3] and float32 [0, 4]",
        "dtypes.torch.int64: int64 [3] and int32 [3]",
        "dtypes.torch.float16: 1 of 3 elements differ, max abs difference 0, 1 of them because of NaN",
        "dtypes.torch.complex64: 1 of 3 elements differ, max abs difference 5",
        "dtypes.torch.uint8: 1 of 3 elements differ, max abs difference 255",
        "numbers.0: 1 and 2",
        "tuple.1.1: only in the first file: tuple of 1",
        "new: only in the second file: dict of 1",
        "text: only in the first file: 'two\\nlines'",
    ]
    assert sorted(out.splitlines()) == sorted(expected), out
    assert "11 differences" in err, err

    x = saved("x", {"f": 1.0, "w": torch.tensor([1.0, 2.0, float("nan"), float("inf")]), "z": torch.tensor([0.0])})
    y = saved("y", {"f": 1.001, "w": torch.tensor([1.0, 2.001, float("nan"), float("inf")]), "z": torch.tensor([-0.0])})
    out, _ = tool.expect(1, "diff", x, y)
    assert "w: 1 of 4" in out and "z: 1 of 1 element differ, max abs difference 0" in out and "f: " in out, out
    tool.expect(0, "diff", "--tolerance", "0.01", x, y)
    tool.expect(2, "diff", "--tolerance", "-1", x, y)

    one, two = tool.snapshot(os.path.join(folder, "s1"), 1), tool.snapshot(os.path.join(folder, "s2"), 2)
    out, _ = tool.expect(1, "diff", one, two)
    assert "models.main.weight: 6 of 6 elements differ, max abs difference 1" in out, out
    damage(two, data_of(2))
    assert "data/0" in tool.expect(1, "diff", one, two)[1]
    tool.expect(2, "diff", one, os.path.join(folder, "missing"))


def test_latest(tool, folder):
    assert "no good snapshot" in tool.expect(1, "latest", folder)[1]
    torch.save({"w": torch.ones(2)}, os.path.join(folder, "foreign.pt"))
    tool.snapshot(os.path.join(folder, "z"), 9)
    tool.snapshot(os.path.join(folder, "a"), 10)
    tool.snapshot(os.path.join(folder, "error"), 99, "snapshot", "mid")
    out, err = tool.expect(0, "latest", folder)
    assert out == os.path.join(folder, "a") + "\n" and not err, (out, err)
    damaged = tool.snapshot(os.path.join(folder, "damaged"), 11)
    damage(damaged, data_of(11))
    cut = tool.snapshot(os.path.join(folder, "cut"), 12)
    os.truncate(cut, os.path.getsize(cut) // 2)
    out, err = tool.expect(0, "latest", folder)
    assert out == os.path.join(folder, "a") + "\n", (out, err)
    assert damaged in err and cut in err and "foreign" not in err, err
    tool.snapshot(os.path.join(folder, "best"), 50, "best")
    assert tool.expect(0, "latest", folder)[0].strip() == os.path.join(folder, "best")
    assert tool.expect(0, "latest", folder, "--made-by", "snapshot")[0].strip() == os.path.join(folder, "a")
    tool.expect(2, "latest", os.path.join(folder, "missing"))
    tool.expect(2, "latest", os.path.join(folder, "a"))


def test_prune(tool, folder):
    for iteration in range(1, 8):
        tool.snapshot(os.path.join(folder, f"snapshot_{iteration}"), iteration)
    for iteration in [1, 2]:
        tool.snapshot(os.path.join(folder, f"best_{iteration}"), iteration, "best")
    tool.snapshot(os.path.join(folder, "best_2.preempted"), 9, "best")
    tool.snapshot(os.path.join(folder, "error"), 1, "snapshot", "mid")
    torch.save({"w": torch.ones(2)}, os.path.join(folder, "foreign.pt"))
    damage(os.path.join(folder, "snapshot_6"), data_of(6))
    cut = os.path.join(folder, "snapshot_2")
    os.truncate(cut, os.path.getsize(cut) // 2)
    os.symlink(os.path.join(folder, "snapshot_1"), os.path.join(folder, "link"))
    before = files_in(folder)

    out, _ = tool.expect(0, "prune", folder, "--last", "2", "--dry-run")
    assert "would remove 3 snapshots" in out and files_in(folder) == before, out
    out, err = tool.expect(0, "prune", folder, "--last", "2")
    gone = sorted(set(before) - set(files_in(folder)))
    assert gone == ["snapshot_1", "snapshot_3", "snapshot_4"], (gone, out)
    assert all(f"removed {os.path.join(folder, name)} " in out for name in gone), out
    assert "snapshot_6" in err and "snapshot_2" in err, err
    tool.expect(0, "prune", folder, "--last", "1", "--made-by", "best")
    assert "best_1" not in files_in(folder) and "snapshot_5" in files_in(folder), files_in(folder)
    assert "best_2" in files_in(folder) and "best_2.preempted" in files_in(folder), files_in(folder)
    out, _ = tool.expect(0, "prune", folder, "--last", "100")
    assert "removed 0 snapshots" in out, out
    for wrong in [["--last", "0"], ["--last", "-1"], ["--last", "some"], []]:
        tool.expect(2, "prune", folder, *wrong)
    tool.expect(2, "prune", os.path.join(folder, "missing"), "--last", "1")
    # When no snapshot is sound, all are damaged, and none goes.
    for name in ["snapshot_5", "snapshot_7"]:
        damage(os.path.join(folder, name), data_of(int(name[-1])))
    before = files_in(folder)
    tool.expect(0, "prune", folder, "--last", "1", "--made-by", "snapshot")
    assert files_in(folder) == before, files_in(folder)


def sharded(tool, path, iteration, ranks=3):
    return tool.snapshot(path, iteration, "snapshot", "sharded", str(ranks))


def numbers(first, *shape):
    return (torch.arange(torch.Size(shape).numel()) + first).float().view(shape)


def test_verify_among_others(tool, folder):
    """What is surely no checkpoint is skipped, unless nothing else was named."""
    good = tool.snapshot(os.path.join(folder, "good"), 5, "snapshot")
    log = os.path.join(folder, "log")
    with open(log, "w", encoding="ascii") as file:
        file.write('{"train/loss": 1}\n' * 1000)
    os.mkdir(os.path.join(folder, "charts"))
    text, _ = tool.expect(0, "verify", good, log, os.path.join(folder, "charts"))
    assert text.count("skipped, no checkpoint") == 2 and "good" in text, text
    tool.expect(1, "verify", log)
    # What only begins like none is damaged.
    with open(good, "r+b") as file:
        file.write(b"\0" * 100)
    empty = os.path.join(folder, "empty")
    open(empty, "w", encoding="ascii").close()
    for damaged in (good, empty):
        assert f"{damaged}: skipped" not in tool.expect(1, "verify", damaged, log)[0]


def test_consolidate(tool, folder):
    for ranks in [1, 3, 8]:
        path = sharded(tool, os.path.join(folder, f"by_{ranks}"), 5, ranks)
        out = path + ".pt"
        text, _ = tool.expect(0, "consolidate", path, out)
        assert out in text, text
        assert "good (snapshot of iteration 5" in tool.expect(0, "verify", out)[0]
        state = torch.load(out)
        assert list(state) == ["models", "moment", "list", "_start_iteration"], list(state)
        main = state["models"]["main"]
        assert torch.equal(main["weight"], numbers(5, 101, 300)) and main["weight"].dtype == torch.float32
        assert main["tied"].data_ptr() == main["weight"].data_ptr()
        assert torch.equal(state["moment"], torch.cat([numbers(5, 40, 3), numbers(1005, 40, 3)], dim=1))
        assert state["list"][1] == 1.5 and state["_start_iteration"] == 5
        assert state["list"][0].view(torch.uint8)[:3].tolist() == list(b"abc")
        info = json.loads(tool.expect(0, "inspect", "--json", out)[0])
        assert info["iteration"] == 5 and info["made_by"] == "snapshot" and info["totals"]["storages"] == 3, info
    # A symbolic link that is named is followed, and nothing is replaced without a word.
    link = os.path.join(folder, "link")
    os.symlink(path, link)
    assert "--force" in tool.expect(2, "consolidate", link, out)[1]
    os.remove(out)
    os.mkdir(out)
    tool.expect(2, "consolidate", link, out, "--force")
    os.rmdir(out)
    tool.expect(0, "consolidate", link, out)
    whole = open(out, "rb").read()
    tool.expect(0, "consolidate", link, out, "--force")
    assert open(out, "rb").read() == whole
    assert "equal" in tool.expect(0, "diff", out, os.path.join(folder, "by_1.pt"))[0]
    for named in [folder, out, os.path.join(folder, "missing")]:
        assert "no sharded snapshot" in tool.expect(2, "consolidate", named, os.path.join(folder, "none"))[1]
    # Every other command says how to go on.
    for command in [["extract", path, "--list"], ["convert", path, out + ".safetensors"]]:
        assert "rondo consolidate" in tool.expect(2, *command)[1]


def test_diff_of_sharded_snapshots(tool, folder):
    """By any number of ranks, beside each other and beside one file."""
    paths = [sharded(tool, os.path.join(folder, f"by_{ranks}"), 5, ranks) for ranks in [1, 3, 4]]
    one = os.path.join(folder, "one")
    tool.expect(0, "consolidate", paths[1], one)
    for a in [*paths, one]:
        for b in [*paths, one]:
            assert "equal: 4 tensors" in tool.expect(0, "diff", a, b)[0], (a, b)
    changed = sharded(tool, os.path.join(folder, "changed"), 6, 2)
    out, err = tool.expect(1, "diff", paths[1], changed)
    assert "elements differ, max abs difference" in out and "differences" in err, (out, err)
    os.remove(os.path.join(paths[2], "3"))
    assert os.path.join("by_4", "3") in tool.expect(2, "diff", one, paths[2])[1]


def test_consolidate_of_what_is_damaged(tool, folder):
    path = sharded(tool, os.path.join(folder, "snapshot"), 5)
    out = os.path.join(folder, "out")
    other = sharded(tool, os.path.join(folder, "other"), 6, 4)
    sound = {name: open(os.path.join(path, name), "rb").read() for name in os.listdir(path)}
    before = files_in(folder)

    def restore():
        for name, content in sound.items():
            with open(os.path.join(path, name), "wb") as file:
                file.write(content)

    piece = numbers(5 + 300 * 33, 1, 300).numpy().tobytes()  # the first one of rank 1
    damage(os.path.join(path, "1"), piece)
    _, err = tool.expect(1, "consolidate", path, out)
    assert "wrong checksum" in err and os.path.join(path, "1") in err, err
    text, err = tool.expect(1, "verify", path)
    assert "DAMAGED, 1 problem (sharded snapshot" in text and "data/" in err, (text, err)
    restore()
    os.remove(os.path.join(path, "2"))
    _, err = tool.expect(2, "consolidate", path, out)
    assert os.path.join(path, "2") in err, err
    assert os.path.join(path, "2") in tool.expect(1, "verify", path)[1]
    restore()
    shutil.copy(os.path.join(other, "2"), path)
    assert "mixed up" in tool.expect(1, "consolidate", path, out)[1]
    assert "mixed up" in tool.expect(1, "verify", path)[1]
    restore()
    os.truncate(os.path.join(path, "complete"), len(sound["complete"]) // 2)
    assert "complete" in tool.expect(1, "consolidate", path, out)[1]
    tool.expect(1, "verify", path)
    tool.expect(1, "inspect", path)
    os.remove(os.path.join(path, "complete"))
    tool.expect(2, "consolidate", path, out)
    tool.expect(2, "verify", path)
    assert files_in(folder) == before, files_in(folder)
    restore()
    text, _ = tool.expect(0, "verify", path)
    assert "good (sharded snapshot of iteration 5 by 3 ranks" in text, text


def test_sharded_snapshots_among_others(tool, folder):
    plain = tool.snapshot(os.path.join(folder, "plain"), 7)
    paths = [sharded(tool, os.path.join(folder, f"sharded_{iteration}"), iteration) for iteration in [5, 6, 8, 9]]
    unfinished = sharded(tool, os.path.join(folder, "unfinished"), 10)
    os.remove(os.path.join(unfinished, "complete"))
    os.makedirs(os.path.join(folder, "something", "else"))
    text, _ = tool.expect(0, "inspect", paths[0])
    assert "sharded" in text and "iteration   5" in text and "of 3 ranks" in text, text
    assert "float32 [101, 300]  121.2 kB  15 pieces of ranks 0-2" in text, text
    assert "float32 [40, 6]  960 B  2 pieces of ranks 0, 2" in text, text
    about = json.loads(tool.expect(0, "inspect", "--json", paths[0])[0])
    assert about["ranks"] == 3 and about["format"] == "rondo" and about["iteration"] == 5, about
    assert about["size"] == sum(os.path.getsize(os.path.join(paths[0], name)) for name in os.listdir(paths[0]))
    by_name = {tensor["name"]: tensor for tensor in about["tensors"]}
    assert by_name["moment"]["ranks"] == [0, 2] and by_name["moment"]["pieces"] == 2, by_name
    assert by_name["models.main.weight"]["storage"] == by_name["models.main.tied"]["storage"], by_name
    assert "pieces" not in by_name["list.0"], by_name

    os.remove(os.path.join(paths[3], "1"))
    out, err = tool.expect(0, "latest", folder)
    assert out == paths[2] + "\n" and paths[3] in err, (out, err)
    out, _ = tool.expect(0, "prune", folder, "--last", "2", "--dry-run")
    assert os.path.isfile(os.path.join(paths[0], "complete")) and "would remove 2 snapshots" in out, out
    out, _ = tool.expect(0, "prune", folder, "--last", "2")
    left = sorted(os.listdir(folder))
    assert left == ["plain", "sharded_8", "sharded_9", "something", "unfinished"], (left, out)
    assert f"removed {paths[0]} (iteration 5, " in out and "removed 2 snapshots" in out, out
    assert tool.expect(0, "verify", plain, paths[2])[0].count("good") == 2


def test_what_is_no_file(tool, folder):
    good = tool.snapshot(os.path.join(folder, "good"), 3)
    link, dangling, fifo, plug = (os.path.join(folder, name) for name in ["link", "dangling", "fifo", "socket"])
    os.symlink(good, link)
    os.symlink("nowhere", dangling)
    os.mkfifo(fifo)
    server = socket.socket(socket.AF_UNIX)
    server.bind(plug)
    for command in [["inspect"], ["verify"], ["extract", "--list"]]:
        tool.expect(0, *command, link)
        for path, word in [(folder, "directory"), (fifo, "FIFO"), (plug, "socket"), ("/dev/null", "device"),
                           (dangling, "No such file"), (os.path.join(folder, "missing"), "No such file")]:
            _, err = tool.expect(2, *command, path)
            assert word in err and path in err, err
    server.close()
    for target in [link, fifo, folder]:
        tool.expect(2, "extract", good, "models.main.weight", "-o", target, "--force")
    assert os.path.islink(link) and open(good, "rb").read(2) == b"PK"


def test_usage(tool, folder):
    assert tool.expect(0, "--version")[0].startswith("rondo ")
    help_text, _ = tool.expect(0, "--help")
    for command in ["inspect", "verify", "extract", "convert", "diff", "prune", "latest", "consolidate"]:
        assert command in help_text, help_text
        assert "Usage" in tool.expect(0, command, "--help")[0]
        tool.expect(2, command)
        tool.expect(2, command, "--no-such-option")
    tool.expect(2)
    tool.expect(2, "no-such-command")


def test_terminals_and_pipes(tool, folder):
    path = os.path.join(folder, "state.pt")
    torch.save(example_state(), path)
    seen, status = tool.on_terminal("extract", path, "evil\\x1b[31m\\u202ename")
    assert status == 0 and "\x1b" not in seen and "\\x1b]0;owned\\x07" in seen, seen
    for name in ["views.0", "bytes"]:
        seen, status = tool.on_terminal("extract", path, name, *(["-o", "-"] if name == "views.0" else []))
        assert status == 2 and "-o FILE" in seen, seen
    nasty = os.path.join(folder, "nasty\x1b[2Jname")
    shutil.copy(tool.snapshot(os.path.join(folder, "s"), 3), nasty)
    for command in [["inspect"], ["verify"], ["extract", "--list"]]:
        assert "\x1b[2J" not in tool.on_terminal(*command, nasty)[0]
    os.remove(os.path.join(folder, "s"))
    seen, status = tool.on_terminal("latest", folder)
    assert status == 0 and "\x1b[2J" not in seen, seen
    seen, _ = tool.on_terminal("inspect", nasty + "missing")
    assert "\x1b[2J" not in seen, seen

    # Nobody reads: it ends without a word, as other programs do.
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([tool.program, "inspect", path], stdout=writer, stderr=subprocess.PIPE, env=ENVIRONMENT)
    os.close(writer)
    assert done.returncode == -signal.SIGPIPE and not done.stderr, done
    with open("/dev/full", "wb") as full:
        done = subprocess.run([tool.program, "inspect", path], stdout=full, stderr=subprocess.PIPE, env=ENVIRONMENT)
    assert done.returncode == 2 and b"No space left" in done.stderr, done


def test_an_interrupted_write_leaves_no_piece(tool, folder):
    path, out = os.path.join(folder, "big.pt"), os.path.join(folder, "out")
    os.mkdir(out)
    torch.save({"w": torch.ones(20_000_000)}, path)
    process = subprocess.Popen([tool.program, "convert", path, os.path.join(out, "w.safetensors")], env=ENVIRONMENT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not files_in(out):
        pass
    process.send_signal(signal.SIGINT)
    status = process.wait(timeout=120)
    assert status in (0, -signal.SIGINT), status
    # The signal may come when the file is finished; then it is whole. A piece of it never stays.
    assert files_in(out) in ([], ["w.safetensors"]), files_in(out)
    if files_in(out):
        tool.expect(0, "convert", os.path.join(out, "w.safetensors"), os.path.join(folder, "back.pt"))
        tool.expect(0, "diff", path, os.path.join(folder, "back.pt"))


def mutated(whole, rng):
    """The file as a failing disk, an interrupted copy or an attacker would leave it."""
    data = bytearray(whole)
    kind = rng.randrange(5)
    if kind == 0:
        return bytes(data[:rng.randrange(len(data))])
    if kind == 1:
        at = rng.randrange(len(data))
        return bytes(data[:at] + data[at + rng.randrange(1, 64):])
    for _ in range(rng.choice([1, 1, 2, 8, 64])):
        at = rng.randrange(len(data))
        data[at] = rng.choice([0, 0xff, data[at] ^ 1 << rng.randrange(8), rng.randrange(256)])
    return bytes(data)


def without_checksums(path):
    """The same archive with checksums of zero, so that changes get past them to what lies behind."""
    with open(path, "rb") as file:
        data = bytearray(file.read())
    for signature, offset in [(b"PK\x01\x02", 16), (b"PK\x03\x04", 14), (b"PK\x07\x08", 4)]:
        at = data.find(signature)
        while at >= 0:
            data[at + offset:at + offset + 4] = bytes(4)
            at = data.find(signature, at + 4)
    return bytes(data)


def test_mutations(tool, folder, count):
    rng = random.Random(1)
    path = os.path.join(folder, "state.pt")
    state = example_state()
    del state["dtypes"]["torch.complex128"]
    torch.save(state, path)
    flat = os.path.join(folder, "state.safetensors")
    tool.expect(0, "convert", path, flat)
    snapshot = tool.snapshot(os.path.join(folder, "snapshot"), 3)
    originals = [without_checksums(path)] + [open(name, "rb").read() for name in [path, snapshot, flat]]
    victim, out = os.path.join(folder, "victim"), os.path.join(folder, "out")
    statuses = collections.Counter()
    for i in range(count):
        # Most of a small file is structure when it is free of checksums: most changes go there.
        original = originals[rng.choice([0, 0, 0, 1, 2, 3])]
        with open(victim, "wb") as file:
            file.write(mutated(original, rng))
        command = rng.choice([
            ["inspect", victim], ["inspect", "--json", victim], ["verify", victim], ["diff", victim, path],
            ["diff", path, victim], ["extract", victim, "views.1", "-o", out, "--force"], ["extract", victim, "--list"],
            ["convert", victim, out + ".safetensors", "--force"], ["convert", victim, out + ".pt", "--force"],
        ])
        done = tool.run(*command)
        keep = f"mutation {i} of rondo {command}: {done}"
        assert done.returncode in (0, 1, 2) and b"Sanitizer" not in done.stderr, keep
        assert done.returncode == 0 or done.stderr.strip(), keep
        assert b"\x1b" not in done.stderr, keep
        statuses[done.returncode] += 1
    assert len(statuses) == 3, statuses


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("make_snapshot")
    parser.add_argument("--mutations", type=int, default=200, help="how many damaged files to try (default: 200)")
    arguments = parser.parse_args()
    tool = Tool(arguments.program, arguments.make_snapshot)
    with tempfile.TemporaryDirectory() as scratch:
        def folder(name):
            path = os.path.join(scratch, name)
            os.makedirs(path)
            return path

        for test in [test_usage, test_inspect, test_verify, test_any_damage_is_found, test_extract,
                     test_endless_views_are_refused, test_convert, test_diff, test_latest, test_prune,
                     test_verify_among_others, test_consolidate, test_diff_of_sharded_snapshots, test_consolidate_of_what_is_damaged, test_sharded_snapshots_among_others,
                     test_what_is_no_file, test_terminals_and_pipes, test_an_interrupted_write_leaves_no_piece]:
            test(tool, folder(test.__name__))
        test_mutations(tool, folder("mutations"), arguments.mutations)
    print("rondo: everything held")


if __name__ == "__main__":
    main()
