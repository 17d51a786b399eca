"""Finds the files of `prep.input` and divides them into shards.

The shards depend only on the files and on `prep.shard_bytes`, never on the machine.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from glob import iglob
from pathlib import Path

from zoo.data.text.corpora import list_corpora
from zoo.errors import UsageError, near_names
from zoo.prep.document import MAX_STRIPES

PACKED = (".gz", ".zst")
# Suffix -> reader.
KINDS = {
    ".warc": "warc",
    ".wet": "warc",
    ".html": "html",
    ".htm": "html",
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}
FILES_PER_SHARD = 2000  # at most, of small files that share a shard


@dataclass(frozen=True)
class InputFile:
    """An input file; size and time detect a change.

    Attributes:
      path: absolute path, or the name of a corpus.
      kind: a value of KINDS, or "corpus".
      size: bytes.
      changed: modification time in nanoseconds.
    """

    path: str
    kind: str
    size: int
    changed: int


def kind_of(path: str) -> str:
    """Returns the reader of a file by its name; "" if no reader knows the suffix."""
    name = path.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return KINDS.get(os.path.splitext(name)[1], "")


def split_input(text: str) -> tuple[list[str], list[str], list[str]]:
    """Returns the patterns, the corpora and the URLs of `prep.input`."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    addresses = [word for word in words if re.match("https?://", word, re.IGNORECASE)]
    corpora = [word for word in words if word.startswith("corpus:")]
    return [w for w in words if w not in addresses and w not in corpora], corpora, addresses


def find(patterns: list[str], skipped: Counter, out: str | Path | None = None) -> list[InputFile]:
    """Returns the files of patterns and folders, sorted by name, each once.

    Files below `out` are ignored. Skipped and counted are symbolic links that leave the folder of
    the pattern, files that are not regular or not readable, unknown suffixes, and the output
    folders of earlier `zoo prepare` runs.

    Args:
      patterns: paths, folders or glob patterns.
      skipped: gets the number of skipped files per reason.
      out: output folder of this run.

    Raises:
      UsageError: a pattern matches no file.
    """
    files: dict[str, InputFile] = {}
    out = os.path.realpath(out) if out else ""
    for pattern in patterns:
        path = os.path.abspath(os.path.expanduser(pattern))
        if os.path.isdir(path):
            root, names = path, _below(path, out, skipped)
        elif os.path.lexists(path):  # named by the user: a link is meant
            root, names = os.path.dirname(os.path.realpath(path)), [path]
        else:
            root = _fixed_part(path)
            names = iglob(path, recursive=True)
        root, any_name = os.path.realpath(root), False
        for name in names:
            any_name = True
            if out and _inside(name, out):
                continue
            file = _file(name, root, skipped)
            if file:
                files[file.path] = file
        if not any_name:
            raise UsageError(
                f"prep.input matches no file. Received: {pattern!r}. Patterns may use *, ?, [] "
                "and **."
            )
    return [files[path] for path in sorted(files)]


def _inside(path: str, folder: str) -> bool:
    return os.path.commonpath([os.path.realpath(path), folder]) == folder


def _below(folder: str, out: str, skipped: Counter):
    def count(error):
        skipped["folders without permission"] += 1

    for place, folders, names in os.walk(folder, onerror=count):  # does not follow links
        folders.sort()
        if out and _inside(place, out):
            folders.clear()
            continue
        if "prepared.json" in names or os.path.exists(os.path.join(place, "work", "plan.json")):
            skipped["folders of prepared text"] += 1
            folders.clear()
            continue
        for name in names:
            yield os.path.join(place, name)


def _fixed_part(pattern: str) -> str:
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts) - 1)
    return str(Path(*parts[:fixed]))


def _file(name: str, root: str, skipped: Counter) -> InputFile | None:
    real = os.path.realpath(name)
    try:
        status = os.stat(real)
        if stat.S_ISDIR(status.st_mode):
            return None
        if os.path.commonpath([real, root]) != root:
            skipped["links out of the folder"] += 1
        elif not stat.S_ISREG(status.st_mode):  # opening a pipe would block
            skipped["not regular files"] += 1
        elif not os.access(real, os.R_OK):
            skipped["files without permission"] += 1
        elif not (kind := kind_of(name)):
            skipped["files of unknown kind"] += 1
        elif re.search("[\ud800-\udfff]", name):  # bytes that are not UTF-8
            skipped["files with undecodable names"] += 1
        else:
            return InputFile(name, kind, status.st_size, status.st_mtime_ns)
    except OSError:
        skipped["missing files"] += 1
    return None


def corpus_files(names: list[str]) -> list[InputFile]:
    """Returns input files for `corpus:NAME` entries; raises `UsageError` for an unknown name."""
    names = [name.removeprefix("corpus:") for name in names]
    for name in names:
        if name not in list_corpora():
            raise UsageError(
                f"Unknown corpus {name!r}.{near_names(name, list_corpora())} "
                f"Known: {', '.join(list_corpora())}."
            )
    return [InputFile(name, "corpus", 0, 0) for name in sorted(set(names))]


def shards(files: list[InputFile], shard_bytes: int) -> list[dict]:
    """Returns shards: {"files": [...], "stripe": k, "stripes": n}.

    Small files share a shard. A large file becomes n consecutive shards ("stripes"), each of which
    takes every n-th document. Each stripe decompresses the whole file, so n is at most MAX_STRIPES.
    """
    result: list[dict] = []
    together: list[Mapping] = []
    size = 0

    def close():
        nonlocal together, size
        if together:
            result.append({"files": together, "stripe": 0, "stripes": 1})
        together, size = [], 0

    for file in files:
        one = vars(file)
        if file.kind == "corpus" or file.size >= shard_bytes:
            close()
            several = 1 if file.kind in ("html", "text") else -(-file.size // shard_bytes)
            stripes = max(1, min(MAX_STRIPES, several))
            result += [{"files": [one], "stripe": k, "stripes": stripes} for k in range(stripes)]
            continue
        if size + file.size > shard_bytes or len(together) == FILES_PER_SHARD:
            close()
        together.append(one)
        size += file.size
    close()
    return result
