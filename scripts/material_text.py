"""Text by kind, a file a document, out of unpacked packages and crates: the second half of fetch_material.sh.

    python3 scripts/material_text.py UNPACKED CARGO_LOCK OUT    # writes OUT/text/KIND and OUT/held_out_text/KIND

A document is a manual page, a source file, some entries of a dictionary, a chapter of the Bible, or part of a section of a handbook. Of each kind so
many are taken, in the order of the SHA-256 of their names, as make 8 MB: an even sample, the same wherever the packages are.
"""

import gzip
import hashlib
import html
import lzma
import os
import pathlib
import re
import subprocess
import sys
import tarfile

MOST_BYTES = 8_000_000  # Of a kind.
SHORTEST, LONGEST = 400, 24_576  # Of a document, in bytes: stubs say nothing, and of long ones a test reads the beginning.
PART = 3_000  # What is cut, is cut into parts of about so many characters.
LEAST_DOCUMENTS = 100


def manual_pages(*roots):
    """The roff of each page, without the comments above it, which hold the same licence over and over."""
    for root in roots:
        for path in sorted(root.rglob("man[1-9]*/*.gz")):
            if not path.is_symlink():
                text = gzip.decompress(path.read_bytes()).decode("utf-8", "ignore")
                yield path.stem, re.sub(r"\A(?:\s*[.']\\\"[^\n]*\n|\s*\n)+", "", text)


def tree(root, pattern):
    for path in sorted(root.rglob(pattern)):
        if path.is_file() and not path.is_symlink():
            yield str(path.relative_to(root)), path.read_text("utf-8", "ignore")


def newlib(root):
    for archive in root.rglob("newlib-*.tar.xz"):
        with lzma.open(archive) as stream, tarfile.open(fileobj=stream) as files:
            for member in files:
                if member.isfile() and member.name.endswith((".c", ".h")):
                    yield member.name, files.extractfile(member).read().decode("utf-8", "ignore")


def crates(lock):
    """Sources of the crates in a lock file, from where cargo keeps them."""
    home = pathlib.Path(os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo"))
    locked = re.findall(r'name = "([^"]+)"\nversion = "([^"]+)"\nsource = "registry', lock.read_text("utf-8"))
    for name, version in locked:
        for root in sorted(home.glob(f"registry/src/*/{name}-{version}"))[:1]:
            for path, text in tree(root, "src/**/*.rs"):
                yield f"{name}-{version}/{path}", text


def joined(pieces, separator):
    """Pieces in a row as documents of some PART characters."""
    document, number = [], 0
    for piece in pieces:
        document.append(piece)
        if sum(map(len, document)) >= PART:
            yield f"{number:06}", separator.join(document)
            document, number = [], number + 1
    yield f"{number:06}", separator.join(document)


def dictionary(root):
    for path in root.rglob("gcide.dict.dz"):
        text = gzip.decompress(path.read_bytes()).decode("utf-8", "ignore")
        # An entry begins at the margin behind an empty line.
        yield from joined(re.split(r"\n\n(?=\S)", text), "\n\n")


def bible(program, data):
    """Chapters, printed by the package's own program, which alone reads its file."""
    [program], [data] = program.rglob("bin/bible"), data.rglob("bible.data")
    command = [str(program), "-f", "-p", f"{data.parent}/", "gen1:1-rev22:21"]
    verses = subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
    chapters = {}
    for chapter, verse in re.findall(r"^(\S+ ?\S*):\d+ (.*)$", verses, re.M):
        chapters.setdefault(chapter, []).append(verse)
    return [(chapter, "\n".join(lines)) for chapter, lines in chapters.items()]


def handbook(root):
    for path in sorted(root.rglob("html/en-US/*.html")):
        body = re.sub(r"(?s)Download the ebook|\A.*<body[^>]*>|<(script|style|ul class=\"docnav).*?</(script|style|ul)>", "", path.read_text("utf-8"))
        text = html.unescape(re.sub(r"<[^>]+>", "", re.sub(r"</(p|div|h\d|li|pre|dt|dd)>", "\n\n", body)))
        paragraphs = [re.sub(r"[ \t]+", " ", piece).strip() for piece in re.split(r"\n\s*\n", text)]
        for part, document in joined(filter(None, paragraphs), "\n\n"):
            yield f"{path.stem}.{part}", document


def write(folder, documents):
    """Writes the sample of a kind; refuses one that is too small to be split and tested on."""
    documents = {name: text.encode() for name, text in documents}
    folder.mkdir(parents=True)
    total = count = 0
    for name in sorted(documents, key=lambda name: hashlib.sha256(name.encode()).digest()):
        text = documents[name]
        if SHORTEST <= len(text) <= LONGEST and total + len(text) <= MOST_BYTES:
            (folder / (re.sub(r"[^\w.-]+", "_", name)[-200:] + ".txt")).write_bytes(text)
            total, count = total + len(text), count + 1
    if count < LEAST_DOCUMENTS:
        sys.exit(f"error: {folder.name}: {count} documents, {LEAST_DOCUMENTS} are needed; its packages hold other files than they used to")


def main():
    unpacked, lock, out = map(pathlib.Path, sys.argv[1:])
    kinds = {
        "text/english": manual_pages(unpacked / "manpages", unpacked / "manpages-dev"),
        "text/french": manual_pages(unpacked / "manpages-fr", unpacked / "manpages-fr-dev"),
        "text/german": manual_pages(unpacked / "manpages-de", unpacked / "manpages-de-dev"),
        "text/c": newlib(unpacked / "newlib-source"),
        "text/python": [*tree(unpacked / "python3-django", "*.py"), *tree(unpacked / "python3-networkx", "*.py")],
        "text/rust": crates(lock),
        "text/dictionary": dictionary(unpacked / "dict-gcide"),
        "held_out_text/bible": bible(unpacked / "bible-kjv", unpacked / "bible-kjv-text"),
        "held_out_text/handbook": handbook(unpacked / "debian-handbook"),
    }
    for kind, documents in kinds.items():
        write(out / kind, documents)


if __name__ == "__main__":
    main()
