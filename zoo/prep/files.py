"""From `prep.input` to the files that are read, cut into shards of work.

The shards depend on the files and on `prep.shard_bytes` alone, never on the machine.
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
# Ending -> how it is read.
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
# Files of one document each are read together, at most so many.
FILES_A_SHARD = 2000


@dataclass(frozen=True)
class InputFile:
    """A file, and what tells that it was changed.

    Attributes:
      path: absolute, or corpus:NAME.
      kind: a value of KINDS, or "corpus".
      size: bytes.
      changed: nanoseconds, its time of change.
    """

    path: str
    kind: str
    size: int
    changed: int


def kind_of(path: str) -> str:
    """Returns how a file is read, by its name; "" where it is not."""
    name = path.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return KINDS.get(os.path.splitext(name)[1], "")


def split_input(text: str) -> tuple[list[str], list[str], list[str]]:
    """Returns the patterns, the corpora and the addresses of `prep.input`."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    addresses = [word for word in words if re.match("https?://", word, re.IGNORECASE)]
    corpora = [word for word in words if word.startswith("corpus:")]
    return [w for w in words if w not in addresses and w not in corpora], corpora, addresses


def find(patterns: list[str], skipped: Counter, out: str | Path | None = None) -> list[InputFile]:
    """Returns the files of patterns and folders, sorted by name, each once.

    What lies in `out` is left out. Left out and counted in `skipped`: links that lead out of the
    folder where the pattern starts, what is no plain file, what cannot be read, endings that nobody
    reads, and in a folder all that an earlier `zoo prepare` left below it.

    Raises:
      UsageError: for a pattern that names nothing.
    """
    found: dict[str, InputFile] = {}
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
                found[file.path] = file
        if not any_name:
            raise UsageError(
                f"prep.input names no file: {pattern!r}. Patterns are *, ?, [] and **."
            )
    return [found[path] for path in sorted(found)]


def _inside(path: str, folder: str) -> bool:
    return os.path.commonpath([os.path.realpath(path), folder]) == folder


def _below(folder: str, out: str, skipped: Counter):
    def closed(error):
        skipped["folders without permission"] += 1

    for place, folders, names in os.walk(folder, onerror=closed):  # follows no links to folders
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
        elif not stat.S_ISREG(status.st_mode):  # a pipe would be waited for for ever
            skipped["not plain files"] += 1
        elif not os.access(real, os.R_OK):
            skipped["files without permission"] += 1
        elif not (kind := kind_of(name)):
            skipped["files of unknown kind"] += 1
        elif not _encodable(name):
            skipped["files with undecodable names"] += 1
        else:
            return InputFile(name, kind, status.st_size, status.st_mtime_ns)
    except OSError:
        skipped["files that are not there"] += 1
    return None


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def corpus_files(names: list[str]) -> list[InputFile]:
    """Returns `corpus:NAME`s as files; raises `UsageError` for an unknown one."""
    names = [name.removeprefix("corpus:") for name in names]
    for name in names:
        if name not in list_corpora():
            raise UsageError(
                f"{name!r} is no corpus.{near_names(name, list_corpora())} "
                f"Known: {', '.join(list_corpora())}."
            )
    return [InputFile(name, "corpus", 0, 0) for name in sorted(set(names))]


def shards(files: list[InputFile], shard_bytes: int) -> list[dict]:
    """Returns the pieces of work: {"files": [...], "stripe": k, "stripes": n}.

    Small files share a shard. A large one is n shards, one after the other, that each take every
    n-th document. Each unpacks all of the file, so there are at most MAX_STRIPES.
    """
    made: list[dict] = []
    together: list[Mapping] = []
    size = 0

    def close():
        nonlocal together, size
        if together:
            made.append({"files": together, "stripe": 0, "stripes": 1})
        together, size = [], 0

    for file in files:
        one = vars(file)
        if file.kind == "corpus" or file.size >= shard_bytes:
            close()
            several = 1 if file.kind in ("html", "text") else -(-file.size // shard_bytes)
            stripes = max(1, min(MAX_STRIPES, several))
            made += [{"files": [one], "stripe": k, "stripes": stripes} for k in range(stripes)]
            continue
        if size + file.size > shard_bytes or len(together) == FILES_A_SHARD:
            close()
        together.append(one)
        size += file.size
    close()
    return made
