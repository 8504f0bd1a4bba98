#!/usr/bin/env python3
"""Joins the JSON results of several Google Benchmark programs into one file, prints their medians as a table, and works
out the few figures that matter beside what they should be. docs/benchmarks.md explains them."""

import argparse
import json
import pathlib
import re
import statistics
import sys

IN_NANOSECONDS = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9}
RESERVED = {
    "name", "run_name", "run_type", "family_index", "per_family_instance_index", "repetitions", "repetition_index",
    "threads", "iterations", "real_time", "cpu_time", "time_unit", "label", "error_occurred", "error_message",
    "aggregate_name", "aggregate_unit", "items_per_second", "bytes_per_second", "big_o", "rms",
}


def readable_time(nanoseconds):
    for unit, size in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}" if nanoseconds < 1000 * size else f"{nanoseconds / size:.0f} {unit}"
    return f"{nanoseconds:.3g} ns"


def readable_rate(per_second):
    for prefix, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if per_second >= size:
            return f"{per_second / size:.3g} {prefix}"
    return f"{per_second:.3g} "


def median(runs, field):
    return statistics.median(run[field] for run in runs)


def spread_in_percent(times):
    middle = statistics.median(times)
    return 100 * (max(times) - min(times)) / middle if middle else 0.0


def registration(run):
    return run.get("family_index", 0), run.get("per_family_instance_index", 0)


def notes(runs):
    parts = []
    if "items_per_second" in runs[0]:
        parts.append(readable_rate(median(runs, "items_per_second")) + "items/s")
    if "bytes_per_second" in runs[0]:
        parts.append(readable_rate(median(runs, "bytes_per_second")) + "B/s")
    for counter in sorted(set(runs[0]) - RESERVED):
        if isinstance(runs[0][counter], (int, float)):
            parts.append(f"{counter}={median(runs, counter):.4g}")
    if runs[0].get("label"):
        parts.append(runs[0]["label"])
    return ", ".join(parts)


def rows_of(program, results):
    by_name = {}
    failed = []
    for run in results["benchmarks"]:
        if run.get("error_occurred"):
            failed.append(f"{program}: {run['name']}: {run.get('error_message', 'failed')}")
        elif run.get("run_type") == "iteration":
            by_name.setdefault(run["run_name"], []).append(run)
    rows = []
    in_order_of_registration = sorted(by_name.items(), key=lambda item: registration(item[1][0]))
    for name, runs in in_order_of_registration:
        unit = IN_NANOSECONDS[runs[0]["time_unit"]]
        times = [run["real_time"] * unit for run in runs]
        rows.append((name, readable_time(statistics.median(times)), f"{spread_in_percent(times):.0f} %",
                     readable_time(median(runs, "cpu_time") * unit), str(len(runs)), notes(runs)))
    return rows, failed


class Medians:
    """The medians of all benchmarks by name, without what Google Benchmark appends to it. Missing ones are None."""

    def __init__(self, programs):
        runs = {}
        for results in programs.values():
            for run in results["benchmarks"]:
                if run.get("run_type") == "iteration" and not run.get("error_occurred"):
                    name = re.sub(r"/(iterations:\d+|real_time|MiB:\d+)", "", run["run_name"])
                    runs.setdefault(name, []).append(run)
        self.runs = runs

    def counter(self, name, counter):
        return median(self.runs[name], counter) if name in self.runs else None

    def time(self, name, clock):
        if name not in self.runs:
            return None
        return median(self.runs[name], clock) * IN_NANOSECONDS[self.runs[name][0]["time_unit"]]


def quotient(a, b):
    return a / b if a is not None and b else None


def difference(a, b, divisor=1.0):
    return (a - b) / divisor if a is not None and b is not None else None


def figures_of(medians):
    """(what, value, unit, most it should be or None): only of benchmarks that ran."""

    def emit(kind, count):
        return medians.time(f"emit/{kind}/{count}", "cpu_time")

    def empty(kind, count):
        return medians.counter(f"empty_loop/{kind}/{count}", "ns_per_iteration")

    figures = [
        ("emit: one of 20 inline subscribers", quotient(emit("inline", 20), 20), "ns", 5),
        ("emit: each inline subscriber after the first",
         difference(emit("inline", 20), emit("inline", 1), 19), "ns", 5),
        ("emit: one of 20 gated subscribers, not due", quotient(emit("gated", 20), 20), "ns", 12),
        ("emit: each gated subscriber after the first",
         difference(emit("gated", 20), emit("gated", 1), 19), "ns", 12),
        ("emit: one of 20 coroutine subscribers", quotient(emit("coroutine", 20), 20), "ns", 60),
        ("emit: each coroutine subscriber after the first",
         difference(emit("coroutine", 20), emit("coroutine", 1), 19), "ns", 60),
        ("emit: one of 10 listener coroutines", quotient(emit("listener", 10), 10), "ns", None),
        ("emit: 20 inline subscribers / 20 std::function calls",
         quotient(emit("inline", 20), medians.time("call/std_function/20", "cpu_time")), "x", None),
        ("empty iteration without extensions", empty("inline", 0), "ns", None),
        ("20 no-op inline extensions, per iteration", difference(empty("inline", 20), empty("inline", 0)), "ns", 300),
        ("20 extensions whose trigger never fires, per iteration",
         difference(empty("never_due", 20), empty("inline", 0)), "ns", None),
    ]
    for optimizer in ("sgd", "adam"):
        ratio = medians.counter(f"train/mlp/{optimizer}", "rondo_per_hand")
        figures.append((f"mlp with {optimizer}: loop / hand-written", ratio, "x", 1.01))
    for workers in (1, 2):
        for what, name, limit in (
            ("augmented batches: DataLoader / prefetch", "batch", 0.5),
            ("images augmented one by one: DataLoader / prefetch", "image", None),
            ("batches augmented by both at once: DataLoader / prefetch", "both_batch", None),
        ):
            ratio = medians.counter(f"throughput/{name}/workers:{workers}", "ours_per_torch")
            figures.append((f"{what}, images/s, {workers} worker(s)", quotient(1.0, ratio), "x", limit))
        figures.append((f"training waits for batches of {workers} worker(s)",
                        medians.counter(f"wait/workers:{workers}", "wait_percent"), "%", 1))
    for kind in ("plain", "prefetch"):
        figures.append((f"restoring position 50,000 / 100, {kind}",
                        quotient(medians.counter(f"resume/{kind}/sample:50000", "restore_us"),
                                 medians.counter(f"resume/{kind}/sample:100", "restore_us")), "x", 1.2))
    # Where the disk is involved, the time on the clock counts; elsewhere the CPU time, which others disturb less.
    for what, ours, theirs, clock in (
        ("snapshot / raw O_DIRECT + fdatasync", "write/simple", "write/raw_direct", "real_time"),
        ("snapshot / buffered write + fsync", "write/simple", "write/raw_buffered", "real_time"),
        ("snapshot / torch::save + fsync", "write/simple", "write/torch_save", "real_time"),
        ("encoding with checksums / checksums alone", "memory/encode", "memory/crc32", "cpu_time"),
        ("reading a snapshot, verified / plain read", "read/snapshot", "read/plain", "cpu_time"),
        ("reading a snapshot, verified / torch::load", "read/snapshot", "read/torch_load", "cpu_time"),
    ):
        figures.append((what, quotient(medians.time(ours, clock), medians.time(theirs, clock)), "x", None))
    return [figure for figure in figures if figure[1] is not None]


def print_figures(figures):
    if not figures:
        return
    print()
    rows = []
    for what, value, unit, limit in figures:
        verdict = "" if limit is None else f"<= {limit:g} {unit}: " + ("met" if value <= limit else "MISSED")
        rows.append((what, f"{value:.3f} x" if unit == "x" else f"{value:.1f} {unit}", verdict))
    print_table(("figure", "value", "target"), rows)


def print_table(heads, rows):
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    for row in [heads, tuple("-" * width for width in widths), *rows]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1])]
        print("  ".join([*cells, row[-1]]).rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="the file to write")
    parser.add_argument("results", nargs="+", type=pathlib.Path, help="outputs of --benchmark_out")
    options = parser.parse_args()

    context = {}
    joined, rows, failed = {}, [], []
    for path in options.results:
        if not path.is_file():
            sys.exit("error: no benchmark matched")
        results = json.loads(path.read_text())
        context = context or results["context"]
        joined[path.stem] = results
        program_rows, program_failed = rows_of(path.stem, results)
        rows += program_rows
        failed += program_failed

    print(f"{context.get('num_cpus', '?')} cores at {context.get('mhz_per_cpu', '?')} MHz, load "
          f"{', '.join(f'{load:.1f}' for load in context.get('load_avg', []))}; medians, spread is (max - min) / median")
    print_table(("benchmark", "median", "spread", "cpu", "runs", "notes"), rows)
    figures = figures_of(Medians(joined))
    print_figures(figures)
    summary = [dict(zip(("figure", "value", "unit", "target"), figure)) for figure in figures]
    options.out.write_text(json.dumps({"figures": summary, "programs": joined}, indent=1) + "\n")
    if failed:
        sys.exit("error: " + "\nerror: ".join(failed))


if __name__ == "__main__":
    main()
