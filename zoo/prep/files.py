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

COMPRESSED = (".gz", ".zst")
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
    for suffix_of_compression in COMPRESSED:
        name = name.removesuffix(suffix_of_compression)
    return KINDS.get(os.path.splitext(name)[1], "")


def split_input(text: str) -> tuple[list[str], list[str], list[str]]:
    """Returns the patterns, the corpora and the URLs of `prep.input`."""
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    urls = [entry for entry in entries if re.match("https?://", entry, re.IGNORECASE)]
    corpora = [entry for entry in entries if entry.startswith("corpus:")]
    return [entry for entry in entries if entry not in urls and entry not in corpora], corpora, urls


def find_files(
    patterns: list[str], skip_reasons: Counter, out: str | Path | None = None
) -> list[InputFile]:
    """Returns the files of patterns and folders, sorted by name, each once.

    Files below `out` are ignored. Skipped and counted are symbolic links that leave the folder of
    the pattern, files that are not regular or not readable, unknown suffixes, and the output
    folders of earlier `zoo prepare` runs.

    Args:
      patterns: paths, folders or glob patterns.
      skip_reasons: gets the number of skipped files per reason.
      out: output folder of this run.

    Raises:
      UsageError: a pattern matches no file.
    """
    files: dict[str, InputFile] = {}
    out = os.path.realpath(out) if out else ""
    for pattern in patterns:
        path = os.path.abspath(os.path.expanduser(pattern))
        if os.path.isdir(path):
            root, names = path, _files_below(path, out, skip_reasons)
        elif os.path.lexists(path):  # named by the user: a link is meant
            root, names = os.path.dirname(os.path.realpath(path)), [path]
        else:
            root = _fixed_part(path)
            names = iglob(path, recursive=True)
        root, has_match = os.path.realpath(root), False
        for name in names:
            has_match = True
            if out and _is_inside(name, out):
                continue
            file = _input_file(name, root, skip_reasons)
            if file:
                files[file.path] = file
        if not has_match:
            raise UsageError(
                f"prep.input matches no file. Received: {pattern!r}. Patterns may use *, ?, [] "
                "and **."
            )
    return [files[path] for path in sorted(files)]


def _is_inside(path: str, folder: str) -> bool:
    return os.path.commonpath([os.path.realpath(path), folder]) == folder


def _files_below(folder: str, out: str, skip_reasons: Counter):
    def count(error):
        skip_reasons["folders without permission"] += 1

    for path, folders, names in os.walk(folder, onerror=count):  # does not follow links
        folders.sort()
        if out and _is_inside(path, out):
            folders.clear()
            continue
        if "prepared.json" in names or os.path.exists(os.path.join(path, "work", "plan.json")):
            skip_reasons["folders of prepared text"] += 1
            folders.clear()
            continue
        for name in names:
            yield os.path.join(path, name)


def _fixed_part(pattern: str) -> str:
    parts = Path(pattern).parts
    num_fixed_parts = next(
        (i for i, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts) - 1
    )
    return str(Path(*parts[:num_fixed_parts]))


def _input_file(name: str, root: str, skip_reasons: Counter) -> InputFile | None:
    real = os.path.realpath(name)
    try:
        status = os.stat(real)
        if stat.S_ISDIR(status.st_mode):
            return None
        if os.path.commonpath([real, root]) != root:
            skip_reasons["links out of the folder"] += 1
        elif not stat.S_ISREG(status.st_mode):  # opening a pipe would block
            skip_reasons["not regular files"] += 1
        elif not os.access(real, os.R_OK):
            skip_reasons["files without permission"] += 1
        elif not (kind := kind_of(name)):
            skip_reasons["files of unknown kind"] += 1
        elif re.search("[\ud800-\udfff]", name):  # bytes that are not UTF-8
            skip_reasons["files with undecodable names"] += 1
        else:
            return InputFile(name, kind, status.st_size, status.st_mtime_ns)
    except OSError:
        skip_reasons["missing files"] += 1
    return None


def corpus_files(names: list[str]) -> list[InputFile]:
    """Returns input files for `corpus:NAME` entries; raises `UsageError` for an unknown name."""
    names = [name.removeprefix("corpus:") for name in names]
    for name in names:
        if name not in list_corpora():
            raise UsageError(
                f"prep.input names an unknown corpus: {name!r}.{near_names(name, list_corpora())} "
                f"Known: {', '.join(list_corpora())}."
            )
    return [InputFile(name, "corpus", 0, 0) for name in sorted(set(names))]


def make_shards(files: list[InputFile], shard_bytes: int) -> list[dict]:
    """Returns shards: {"files": [...], "stripe": k, "stripes": n}.

    Small files share a shard. A large file becomes n consecutive shards ("stripes"), each of which
    takes every n-th document. Each stripe decompresses the whole file, so n is at most MAX_STRIPES.
    """
    result: list[dict] = []
    small_files: list[Mapping] = []
    size = 0

    def close():
        nonlocal small_files, size
        if small_files:
            result.append({"files": small_files, "stripe": 0, "stripes": 1})
        small_files, size = [], 0

    for file in files:
        fields = vars(file)
        if file.kind == "corpus" or file.size >= shard_bytes:
            close()
            count = 1 if file.kind in ("html", "text") else -(-file.size // shard_bytes)
            stripes = max(1, min(MAX_STRIPES, count))
            result += [{"files": [fields], "stripe": k, "stripes": stripes} for k in range(stripes)]
            continue
        if size + file.size > shard_bytes or len(small_files) == FILES_PER_SHARD:
            close()
        small_files.append(fields)
        size += file.size
    close()
    return result
