"""Rust source as text: comments and literals blanked, test modules found. Every position stays where it was."""

import re

TOKEN = re.compile(
    r"""
    //[^\n]*                                                  # comment to the end of the line
  | (?P<block>/\*)                                            # block comment, nested
  | \b(?:br|cr|r)(?P<hashes>\#*)"(?:.|\n)*?"(?P=hashes)       # raw string
  | \b[bc]?"(?:\\(?:.|\n)|[^"\\])*"                           # string
  | "(?:\\(?:.|\n)|[^"\\])*"
  | \bb?'(?:\\[^\n]+?|[^'\\\n])'                              # character, not a lifetime
  | '(?:\\[^\n]+?|[^'\\\n])'
    """,
    re.VERBOSE,
)


def code(text: str) -> str:
    """`text` with comments and literals replaced by blanks."""
    out, at = [], 0
    while match := TOKEN.search(text, at):
        end = end_of_block(text, match.start()) if match["block"] else match.end()
        out += [text[at : match.start()], re.sub(r"[^\n]", " ", text[match.start() : end])]
        at = end
    return "".join([*out, text[at:]])


def end_of_block(text: str, start: int) -> int:
    depth = 0
    for mark in re.finditer(r"/\*|\*/", text[start:]):
        depth += 1 if mark[0] == "/*" else -1
        if depth == 0:
            return start + mark.end()
    return len(text)


def test_modules(blanked: str) -> tuple[str, list[str]]:
    """`blanked` without its inline `#[cfg(test)]` items, and the names of the test modules that are files of their own."""
    files = []
    for match in reversed(list(re.finditer(r"#\[cfg\(test\)\]", blanked))):
        item = re.compile(r"[^;{]*([;{])").match(blanked, match.end())
        if item is None:
            continue
        if item[1] == ";":
            files += re.findall(r"\bmod\s+(\w+)\s*;", item[0])
            continue
        end, depth = item.end(), 1
        while depth and end < len(blanked):
            depth += {"{": 1, "}": -1}.get(blanked[end], 0)
            end += 1
        blanked = blanked[: match.start()] + re.sub(r"[^\n]", " ", blanked[match.start() : end]) + blanked[end:]
    return blanked, files


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
