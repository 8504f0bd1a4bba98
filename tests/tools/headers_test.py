#!/usr/bin/env python3
"""Compiles every public header as the first thing that a file includes.

usage: headers_test.py BUILD_DIR LIST...

Each LIST is named after a library of BUILD_DIR and names the library's headers, one a line, as they are included.
Compiler and options come from its
compile_commands.json. Each file ends in an #error at which the compiler stops, before it instantiates what LibTorch's
headers have left for the end: that takes a tenth of the time, and everything of the header has been checked by then.
Headers of rondo::core are compiled without LibTorch.
"""

import concurrent.futures
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile

END = "this header stands alone"
PRELUDE = ["asio/awaitable.hpp", "asio/co_spawn.hpp", "asio/io_context.hpp", "fmt/format.h", "filesystem", "functional",
           "map", "memory", "optional", "string", "variant", "vector"]


def options_of(commands, library):
    """The compiler with its options, and the folder in which the sources of `library` are compiled."""
    for command in commands:
        words = shlex.split(command["command"])
        output = words[words.index("-o") + 1]
        if f"/{library}.dir/Unity/" in output or f"/{library}.dir/rondo/" in output:
            # What comes before the compiler caches its results; there is nothing to cache here.
            compiler = next(i for i, word in enumerate(words) if re.search(r"(\+\+|cc|clang)(-\d+)?$", word)
                            and "ccache" not in word)
            return words[compiler:words.index("-o")], command["directory"]
    raise SystemExit(f"headers_test: no source of {library} in compile_commands.json")


def lines_of(path):
    with open(path, encoding="utf-8") as file:
        return file.read().split()


def without_libtorch(words, directory, scratch):
    """Options with a precompiled header of a few libraries, for headers that must do without LibTorch."""
    prelude = os.path.join(scratch, "prelude.hpp")
    with open(prelude, "w", encoding="utf-8") as file:
        file.writelines(f"#include <{name}>\n" for name in PRELUDE)
    subprocess.run([*words, "-x", "c++-header", prelude, "-o", prelude + ".gch"], cwd=directory, check=True)
    return [*words, "-include", prelude]


def complaint_about(header, words, directory):
    text = f'#include "{header}"\n#error {END}\n'
    done = subprocess.run([*words, "-Wfatal-errors", "-fsyntax-only", "-x", "c++", "-"], input=text, text=True,
                          cwd=directory, capture_output=True)
    errors = [line for line in done.stderr.splitlines() if re.search(r"\b(error|warning):", line)]
    if len(errors) == 1 and END in errors[0]:
        return None
    return f"{header}\n{done.stderr}"


def main():
    build_dir, *lists = sys.argv[1:]
    with open(os.path.join(build_dir, "compile_commands.json"), encoding="utf-8") as file:
        commands = json.load(file)
    work = []
    with tempfile.TemporaryDirectory() as scratch:
        for path in lists:
            words, directory = options_of(commands, os.path.splitext(os.path.basename(path))[0])
            if "-include" not in words:
                words = without_libtorch(words, directory, scratch)
            work += [(header, words, directory) for header in lines_of(path)]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            complaints = [text for text in pool.map(lambda one: complaint_about(*one), work) if text]
    for text in complaints:
        print(f"does not stand alone: {text}")
    print(f"{len(work)} headers, {len(complaints)} of them do not stand alone")
    sys.exit(1 if complaints or not work else 0)


if __name__ == "__main__":
    main()
