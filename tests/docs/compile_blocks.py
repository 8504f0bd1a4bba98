#!/usr/bin/env python3
"""Compiles what the documentation shows: every block of C++ in README and docs.

usage: compile_blocks.py BUILD_DIR [PAGE...]

Compiler and options come from BUILD_DIR/compile_commands.json, with -Werror. Blocks of a page follow each other, so that one can use the types and
functions of those before it; what readers have of their own (a model, an optimizer, a data set…) is in prelude.hpp.
Declarations of a block are compiled as they stand, and its statements as the body of a function. A block after a line
`<!-- fragment -->` is none that could be compiled.
"""

import concurrent.futures
import os
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tools"))
import misuse_test  # noqa: E402

PROGRAMS = 4
FRAGMENT = "<!-- fragment -->"
BLOCK = re.compile(r"^(?P<mark>[^\n]*)\n```cpp\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
NAME = r"[\w:<>,*& ]+?"
FUNCTION = re.compile(rf"(template .*?>\s*)?(inline |static |constexpr )*{NAME}[ &*]\w+\([^;=]*?\)( const)?( noexcept)? \{{", re.DOTALL)
TYPE = re.compile(r"(struct|class|template|enum|namespace|using|TORCH_MODULE|extern)\b")


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


def block_of(number, place, text):
    """The includes of a block, and its code, with an open namespace."""
    includes, declarations, statements = [], [], []
    for chunk in chunks_of(text):
        if chunk.startswith("#include"):
            includes.append(chunk)
        elif is_declaration(chunk):
            declarations.append(chunk)
        else:
            statements.append(chunk)
    code = [f"namespace block_{number} {{", f'#line {place[1]} "{place[0]}"', *declarations]
    body = "\n".join(statements)
    if body.strip():
        if re.search(r"\bco_await\b", re.sub(r"(?s)\{.*\}", "", body)) or re.search(r"^co_await", body, re.MULTILINE):
            code += ["[[maybe_unused]] inline rondo::task<> statements() {", body, "co_return;", "}"]
        elif re.search(r"^return\b", body, re.MULTILINE):
            code += ["[[maybe_unused]] inline auto statements() {", body, "}"]
        else:
            code += ["[[maybe_unused]] inline void statements() {", body, "}"]
    return includes, "\n".join(code)


def program_of(page, name):
    with open(page, encoding="utf-8") as file:
        text = file.read()
    includes, code, number = [], [], 0
    for match in BLOCK.finditer(text):
        if match["mark"] == FRAGMENT:
            continue
        place = (name, text.count("\n", 0, match.start("text")) + 1)
        more, block = block_of(number, place, match["text"])
        includes += more
        code.append(block)
        number += 1
    space = re.sub(r"\W", "_", name)
    return number, includes, "\n".join([f"namespace {space} {{", "using namespace docs;", *code, "}" * number, "}"])


def compile_pages(pages, root, words, directory):
    """As one program, because much of the time goes to what LibTorch's headers leave for its end."""
    number, includes, parts = 0, [], []
    for page in pages:
        blocks, more, code = program_of(page, os.path.relpath(page, root))
        number += blocks
        includes += more
        parts.append(code)
    done = subprocess.run([*words, "-fsyntax-only", "-fmax-errors=20", "-x", "c++", "-"],
                          input="\n".join([*includes, *parts]) + "\n", text=True, cwd=directory, capture_output=True)
    return number, done.stderr if done.returncode != 0 else ""


def main():
    build_dir, *pages = sys.argv[1:]
    here = os.path.dirname(os.path.abspath(__file__))
    root = os.path.abspath(os.path.join(here, "..", ".."))
    if not pages:
        pages = [os.path.join(root, "README.md")]
        for folder, _, names in sorted(os.walk(os.path.join(root, "docs"))):
            pages += [os.path.join(folder, name) for name in sorted(names) if name.endswith(".md")]
    words, directory = misuse_test.options_in(build_dir)
    with tempfile.TemporaryDirectory() as scratch:
        words = misuse_test.with_prelude(words, directory, scratch, os.path.join(here, "prelude.hpp"))
        words += ["-Werror", "-Wno-unused-but-set-variable", "-Wno-unused-parameter", "-Wno-unused-value"]
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            groups = [pages[i::PROGRAMS] for i in range(min(PROGRAMS, len(pages)))]
            results = list(pool.map(lambda group: compile_pages(group, root, words, directory), groups))
    complaints = [complaint for _, complaint in results if complaint]
    print("\n".join(complaints))
    print(f"{sum(number for number, _ in results)} blocks on {len(pages)} pages"
          f"{'; not all of them compile' if complaints else ''}")
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
