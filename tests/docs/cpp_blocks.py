"""Writes the C++ blocks of a page of the documentation to a header, so that the tests compile what readers copy.

usage: cpp_blocks.py PAGE HEADER

Blocks that declare something come first, as they are. Those that begin with "loop |" are put into a function
`void attach_all(rondo::loop& loop)`, in their order.
"""
import re
import sys

page, header = sys.argv[1:]
with open(page, encoding="utf-8") as file:
    blocks = re.findall(r"^```cpp\n(.*?)^```$", file.read(), re.MULTILINE | re.DOTALL)
if not blocks:
    sys.exit(f"{page}: there is no C++ block")

uses = [block for block in blocks if block.startswith("loop |")]
for block in blocks:
    if block not in uses and len(block.strip().splitlines()) > 10:
        sys.exit(f"{page}: an example has more than 10 lines:\n{block}")
with open(header, "w", encoding="utf-8") as file:
    file.write("\n".join(block for block in blocks if block not in uses))
    file.write("\ninline void attach_all(rondo::loop& loop) {\n" + "".join(uses) + "}\n")
