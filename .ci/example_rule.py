"""The rule of examples: each public type, function, method, trait, constant and alias of the libraries is used in an example, where a reader looks for one.

That is the documentation of its own file, or of the module that the file is a part of. Hidden lines (`# ..`) show nothing; fields and variants are shown by their type.
A name is looked for, not a meaning: two methods of one name in a file are both shown by a call of either.
"""

import re

from rust_text import code, line_of, test_modules

LIBRARIES = ("tinyonn/src/", "tinyonn-linalg/src/", "tinyonn-spec/src/")
PUBLIC = re.compile(r"^\s*pub\s+(?:(?:const|unsafe|async)\s+)*(?:fn|struct|enum|trait|type|const|static|union)\s+(\w+)", re.MULTILINE)
# What stands behind the three backticks of an example that is compiled.
COMPILED = {"", "rust", "no_run", "should_panic", "compile_fail"}


def shown(text: str) -> set[str]:
    """The words that the visible lines of the examples in a file's documentation are made of."""
    words, compiled = set(), None
    for line in text.splitlines():
        found = re.match(r"\s*//[/!] ?(.*)", line)
        if found is None:
            compiled = None
        elif found[1].lstrip().startswith("```"):
            compiled = found[1].strip().removeprefix("```") in COMPILED if compiled is None else None
        elif compiled and not re.match(r"\s*#(?: |$)", found[1]):
            words.update(re.findall(r"\w+", found[1]))
    return words


def pages_of(name: str) -> list[str]:
    """The files whose documentation is that of the module which the file `name` is a part of."""
    folder, file = name.rsplit("/", 1)
    folder = folder.rsplit("/", 1)[0] if file == "mod.rs" else folder
    return [f"{folder}/mod.rs", f"{folder}.rs"]


def unshown(texts: dict[str, str]) -> list[str]:
    """`file:line: message` for every public item without an example."""
    words = {name: shown(text) for name, text in texts.items() if name.startswith(LIBRARIES) and name.endswith(".rs")}
    found = []
    for name in sorted(words):
        library, _ = test_modules(code(texts[name]))
        seen = words[name].union(*(words.get(page, set()) for page in pages_of(name)))
        for item in PUBLIC.finditer(library):
            if item[1] not in seen:
                line = line_of(library, item.start(1))
                found.append(f"{name}:{line}: no example shows `{item[1]}`; use it in one here, or keep it in the crate")
    return found
