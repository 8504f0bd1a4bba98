#!/usr/bin/env python3
"""Compiles what the documentation shows, every block of C++ in README and docs, and what newcomers get wrong.

usage: docs_test.py BUILD_DIR [PAGE...]

Compiler and options come from BUILD_DIR/compile_commands.json, with -Werror; wrong programs are in wrong_programs.py. Blocks of a page follow each other, so that one can use the types and
functions of those before it; what readers have of their own (a model, an optimizer, a data set…) is in prelude.hpp.
Declarations of a block are compiled as they stand, and its statements as the body of a function. A block after a line
`<!-- fragment -->` is none that could be compiled.
"""

import concurrent.futures
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

import wrong_programs

PROGRAMS = 4
FRAGMENT = "<!-- fragment -->"
BLOCK = re.compile(r"^(?P<mark>[^\n]*)\n```cpp\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = r"[\w:<>,*& ]+?"
FUNCTION = re.compile(rf"(template .*?>\s*)?(inline |static |constexpr )*{NAME}[ &*]\w+\([^;=]*?\)( const)?( noexcept)? \{{", re.DOTALL)
TYPE = re.compile(r"(struct|class|template|enum|namespace|using|TORCH_MODULE|extern|inline)\b")
LAMBDA = re.compile(r"auto \w+ = \[\]\(")


def options_in(build_dir):
    """The compiler with its options but without a precompiled header, and the folder in which programs are compiled."""
    with open(os.path.join(build_dir, "compile_commands.json"), encoding="utf-8") as file:
        commands = json.load(file)
    for command in commands:
        words = shlex.split(command["command"])
        output = words[words.index("-o") + 1]
        if "/extension_tests.dir/" in output:
            compiler = next(i for i, word in enumerate(words) if re.search(r"(\+\+|cc|clang)(-\d+)?$", word)
                            and "ccache" not in word)
            words = words[compiler:words.index("-o")]
            while "-include" in words:
                del words[words.index("-include"):words.index("-include") + 2]
            words = [word for word in words if not re.match("-O|-Winvalid-pch", word)]
            return [*words, "-O0", "-Wno-unused-variable"], command["directory"]
    raise SystemExit("no source of extension_tests in compile_commands.json")


def with_prelude(words, directory, scratch, header):
    """The options with a header that comes first, precompiled."""
    prelude = os.path.join(scratch, "prelude.hpp")
    shutil.copyfile(header, prelude)
    subprocess.run([*words, "-x", "c++-header", prelude, "-o", prelude + ".gch"], cwd=directory, check=True)
    return [*words, "-include", prelude]


def chunks_of(text):
    """Top-level declarations and statements, in their order."""
    chunk, depth = [], 0
    for line in text.splitlines():
        chunk.append(line)
        bare = re.sub(r'//.*|"(\\.|[^"\\])*"|\'(\\.|[^\'\\])\'', "", line)
        depth += sum(bare.count(c) for c in "({[") - sum(bare.count(c) for c in ")}]")
        end = bare.rstrip()
        if depth == 0 and (end.endswith((";", "}")) or not "".join(chunk).strip() or line.startswith("#")):
            yield "\n".join(chunk)
            chunk = []
    if chunk:
        yield "\n".join(chunk)


def is_declaration(chunk):
    code = re.sub(r"^\s*//.*\n", "", chunk, flags=re.MULTILINE).strip()
    return bool(TYPE.match(code) or FUNCTION.match(code)) and not re.match(r"(if|for|while|switch|return|co_await)\b", code)


def names_of_reader(prelude):
    """Declares what every reader has, under the names of prelude.hpp."""
    with open(prelude, encoding="utf-8") as file:
        members = re.search(r"^struct reader \{\n(.*?)^\};", file.read(), re.MULTILINE | re.DOTALL)[1]
    names = re.findall(r"(\w+)[,;]", re.sub(r"\(.*?\)|<.*>", "", members))
    return " ".join(f"auto& {name} = have.{name};" for name in names)


def block_of(number, place, text, names):
    """The includes of a block, and its code, with an open namespace."""
    includes, declarations, statements = [], [], []
    for chunk in chunks_of(text):
        if chunk.startswith("#include"):
            includes.append(chunk)
        elif is_declaration(chunk):
            declarations.append(chunk)
        elif LAMBDA.match(chunk):
            declarations.append("inline " + chunk)
        else:
            statements.append(chunk)
    code = [f"namespace block_{number} {{", f'#line {place[1]} "{place[0]}"', *declarations]
    body = "\n".join(statements)
    if body.strip():
        if re.search(r"\bco_await\b", re.sub(r"(?s)\{.*\}", "", body)) or re.search(r"^co_await", body, re.MULTILINE):
            code += ["[[maybe_unused]] inline rondo::task<> statements() {", names, "{", body, "}", "co_return;", "}"]
        elif re.search(r"^return\b", body, re.MULTILINE):
            code += ["[[maybe_unused]] inline auto statements() {", names, "{", body, "}", "}"]
        else:
            code += ["[[maybe_unused]] inline void statements() {", names, "{", body, "}", "}"]
    return includes, "\n".join(code)


def program_of(page, name, names):
    with open(page, encoding="utf-8") as file:
        text = file.read()
    includes, code, number = [], [], 0
    for match in BLOCK.finditer(text):
        if match["mark"] == FRAGMENT:
            continue
        place = (name, text.count("\n", 0, match.start("text")) + 1)
        more, block = block_of(number, place, match["text"], names)
        includes += more
        code.append(block)
        number += 1
    space = re.sub(r"\W", "_", name)
    return number, includes, "\n".join([f"namespace {space} {{", "using namespace docs;", *code, "}" * number, "}"])


def compile_pages(pages, root, names, words, directory):
    """As one program, because much of the time goes to what LibTorch's headers leave for its end."""
    number, includes, parts = 0, [], []
    for page in pages:
        blocks, more, code = program_of(page, os.path.relpath(page, root), names)
        number += blocks
        includes += more
        parts.append(code)
    done = subprocess.run([*words, "-fsyntax-only", "-fmax-errors=20", "-x", "c++", "-"],
                          input="\n".join([*includes, *parts]) + "\n", text=True, cwd=directory, capture_output=True)
    return number, done.stderr if done.returncode != 0 else ""


def main():
    build_dir, *pages = sys.argv[1:]
    programs = [] if pages else wrong_programs.PROGRAMS
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.abspath(os.path.join(here, "..", ".."))
    if not pages:
        pages = [os.path.join(root, "README.md")]
        for folder, _, names in sorted(os.walk(os.path.join(root, "docs"))):
            pages += [os.path.join(folder, name) for name in sorted(names) if name.endswith(".md")]
    words, directory = options_in(build_dir)
    names = names_of_reader(os.path.join(here, "prelude.hpp"))
    with tempfile.TemporaryDirectory() as scratch:
        words = with_prelude(words, directory, scratch, os.path.join(here, "prelude.hpp"))
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(lambda one: wrong_programs.complaint_about(*one, words, directory), programs)
            complaints = [complaint for complaint in found if complaint]
        words += ["-Werror", "-Wno-unused-but-set-variable", "-Wno-unused-parameter", "-Wno-unused-value",
                  "-Wno-return-type"]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            groups = [pages[i::PROGRAMS] for i in range(min(PROGRAMS, len(pages)))]
            results = list(pool.map(lambda group: compile_pages(group, root, names, words, directory), groups))
    complaints += [complaint for _, complaint in results if complaint]
    print("\n".join(complaints))
    print(f"{len(programs)} programs, {sum(number for number, _ in results)} blocks on {len(pages)} pages"
          f"{', not all as they should be' if complaints else ''}")
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
