"""From files of text to documents: UTF-8 and gzip, and the formats of the corpora.

Text is handed on as the file holds it, without Unicode normalization, except that in a user's own
text \\r\\n and \\r become \\n (universal newlines). A byte order mark at a file's start is dropped;
invalid UTF-8 is read as U+FFFD. All of this is counted in a `Tally`.
"""

import codecs
import contextlib
import hashlib
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zoo.data.bounds import (
    JSON_EXPANSION,
    LONGEST_LINE,
    TEXT_EXPANSION,
    Decompressed,
    check_memory,
)
from zoo.data.disk import open_file, unreadable
from zoo.errors import RunError

VERSES_PER_DOCUMENT = 100
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_GZIP_START = b"\x1f\x8b"
_CHUNK = 1 << 20  # bytes


@dataclass
class Tally:
    """What was replaced or left out while reading; counted by `TextFile` and the readers.

    Attributes:
      invalid: sequences that are not UTF-8, by file.
      line_ends: \\r\\n and \\r that became \\n, by file.
      empty: things without text that were skipped, by what they are: "files", "documents", "pairs".
    """

    invalid: Counter = field(default_factory=Counter)
    line_ends: Counter = field(default_factory=Counter)
    empty: Counter = field(default_factory=Counter)


@dataclass(frozen=True)
class TextFile:
    """A file of text, read anew by each method; a name that ends in .gz is decompressed.

    Attributes:
      path: where it is.
      stamp: its size and time of change when it was found: reading it later, after a change,
        fails instead of mixing two texts in one run.
    """

    path: Path
    stamp: tuple[int, int]

    @classmethod
    def found(cls, path: Path) -> "TextFile":
        """Returns `path` as it is now."""
        return cls(path, _stamp(path))

    def sha256(self, as_stored: bool = False) -> str:
        """Returns the hash of the bytes, decompressed or as they are stored, in hex."""
        with self._opened(as_stored) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def text(self, tally: Tally | None = None) -> str:
        """Returns all of it; raises RunError where it cannot be read."""
        with self._opened() as file:
            parts, size = [], 0
            while part := file.read(_CHUNK):
                parts.append(part)
                size += len(part)
                check_memory(self.path, TEXT_EXPANSION * size)
            return self._decode(b"".join(parts), tally, at_start=True)

    def lines(self, tally: Tally | None = None) -> Iterator[str]:
        """Yields the lines, without their ends (\\n or \\r\\n); never holds more than one."""
        with self._opened() as file:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b"")):
                if len(line) > LONGEST_LINE:
                    raise RunError(
                        f"{self.path} cannot be read: line {number + 1:,} is longer than "
                        f"{LONGEST_LINE >> 20} MiB."
                    )
                check_memory(self.path, JSON_EXPANSION * len(line))
                text = self._decode(line, tally, at_start=number == 0)
                yield text.removesuffix("\n").removesuffix("\r")

    @contextlib.contextmanager
    def _opened(self, as_stored: bool = False) -> Iterator[io.BufferedIOBase]:
        if _stamp(self.path) != self.stamp:
            raise RunError(f"{self.path} was changed while it was in use. Start again.")
        try:
            with open_file(self.path) as raw:
                if as_stored or self.path.suffix != ".gz":
                    yield raw
                else:
                    # The buffer: a line would take microseconds of Python otherwise.
                    with io.BufferedReader(Decompressed(self.path, raw), _CHUNK) as unpacked:
                        yield unpacked
        except (OSError, EOFError, zlib.error) as error:
            raise unreadable(self.path, error) from None

    def _decode(self, data: bytes, tally: Tally | None, at_start: bool) -> str:
        if at_start:
            # Read as UTF-8, each of these would be a long text of nonsense, not an error.
            if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise RunError(
                    f"{self.path} is UTF-16, not UTF-8: `iconv -f UTF-16 -t UTF-8` converts it."
                )
            if data.startswith(_GZIP_START):
                twice = self.path.suffix == ".gz"
                how = " twice: unpack it once" if twice else ": its name must end in .gz"
                raise RunError(f"{self.path} is compressed by gzip{how}.")
            data = data.removeprefix(codecs.BOM_UTF8)
        try:
            return data.decode()
        except UnicodeDecodeError:
            text = data.decode(errors="replace")
        if tally is not None:
            # A valid U+FFFD in the file is text like any other.
            valid = data.count(_REPLACEMENT.encode())
            tally.invalid[self.path] += text.count(_REPLACEMENT) - valid
        return text


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from None
    return status.st_size, status.st_mtime_ns


# --- the user's own text ------------------------------------------------------------------------


def whole_texts(files: Sequence[TextFile], tally: Tally) -> Iterator[str]:
    """Yields one document a file; skips and counts files without a character."""
    for file in files:
        if text := _universal_newlines(file.text(tally), file, tally):
            yield text
        else:
            tally.empty["files"] += 1


def json_texts(files: Sequence[TextFile], tally: Tally) -> Iterator[str]:
    """Yields the "text" of each line, a JSON object; skips blank lines and counts empty texts.

    Raises:
      RunError: a line that is something else, by its number.
    """
    for file in files:
        for number, line in enumerate(file.lines(tally), start=1):
            if not line.strip():
                continue
            text = _json_text(file, number, line)
            try:
                text.encode()
            except UnicodeEncodeError:
                # JSON can spell half a surrogate pair, which no UTF-8 can hold.
                text, invalid = re.subn("[\ud800-\udfff]", _REPLACEMENT, text)
                tally.invalid[file.path] += invalid
            if text := _universal_newlines(text, file, tally):
                yield text
            else:
                tally.empty["documents"] += 1


def _universal_newlines(text: str, file: TextFile, tally: Tally) -> str:
    """Replaces \\r\\n and \\r by \\n, as Python's text files do, and counts them."""
    if "\r" not in text:
        return text
    text, pairs = text.replace("\r\n", "\n"), text.count("\r\n")
    tally.line_ends[file.path] += pairs + text.count("\r")
    return text.replace("\r", "\n")


def _json_text(file: TextFile, number: int, line: str) -> str:
    found = None
    try:
        # Not strict: a raw tab or NUL in a text is what many programs write.
        found = json.loads(line, strict=False)
        text = found["text"]
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        received = _short(line)
        if isinstance(found, dict):
            received = f"an object with {_keys(found)}"
        raise RunError(
            f'{file.path}, line {number:,}: must be a JSON object with a "text" of type string. '
            f"Received: {received}."
        ) from None
    return text


def _keys(found: dict) -> str:
    """Names an object's keys and the types of their values; at most ten."""
    names = {str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    names |= {dict: "object", list: "list"}
    listed = [f"{_short(key)} ({names[type(value)]})" for key, value in found.items()]
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return f"the keys {', '.join(listed[:10])}{more}" if listed else "no keys"


def tab_separated_pairs(file: TextFile, tally: Tally) -> Iterator[tuple[str, str]]:
    """Yields the first two columns of each line; skips blank lines and counts half-empty pairs.

    Raises:
      RunError: a line of one column, by its number.
    """
    for number, line in enumerate(file.lines(tally), start=1):
        if not line.strip():
            continue
        source, tab, rest = line.partition("\t")
        if not tab:
            raise RunError(
                f"{file.path}, line {number:,}: must be SOURCE<TAB>TARGET. "
                f"Received: {_short(line)}."
            )
        target = rest.partition("\t")[0]
        if source.strip() and target.strip():
            yield source, target
        else:
            tally.empty["pairs"] += 1


def _short(line: str) -> str:
    return repr(line if len(line) <= 60 else line[:57] + "...")


# --- the corpora's own formats ------------------------------------------------------------------
# Their files are checked against known hashes first, so these readers meet no other content.


def wikipedia_articles(files: Sequence[TextFile]) -> Iterator[tuple[str, str]]:
    """Yields (page id, article) of WikiExtractor's output: what lies between the lines
    `<doc id="…" url="…" title="…">` and `</doc>`, the title first.
    """
    article = re.compile(r'^<doc id="(\d+)" [^\n]*>\n(.*?)^</doc>$', re.DOTALL | re.MULTILINE)
    for file in files:
        for match in article.finditer(file.text()):
            yield match.group(1), match.group(2)


def wikitext_articles(files: Sequence[TextFile]) -> Iterator[str]:
    """Yields the articles of WikiText, each from the blank line before its ` = Title = `."""
    for file in files:
        yield from re.split(r"(?=^ \n = [^=\n]+ = \n \n)", file.text(), flags=re.MULTILINE)[1:]


def named_texts(files: Sequence[TextFile]) -> Iterator[tuple[str, str]]:
    """Yields (file name without .txt and .gz, text), one document a file."""
    for file in files:
        yield file.path.name.removesuffix(".gz").removesuffix(".txt"), file.text()


def verses(files: Sequence[TextFile]) -> Iterator[tuple[str, str]]:
    """Yields (POET NUMBER, 100 hemistichs, one a line) of each poet's file.

    The files mark no poems: where one ends, only its rhyme tells. The two-line header that the
    scraper wrote is dropped, and with it, as scraps of the web page, blank lines, stray carriage
    returns and space around a hemistich.
    """
    for poet, text in named_texts(files):
        lines = [line for row in re.split(r"[\r\n]+", text) if (line := row.strip())][2:]
        for start in range(0, len(lines), VERSES_PER_DOCUMENT):
            document = "\n".join(lines[start : start + VERSES_PER_DOCUMENT]) + "\n"
            yield f"{poet} {start // VERSES_PER_DOCUMENT}", document


def news_articles(files: Sequence[TextFile]) -> Iterator[tuple[str, str]]:
    """Yields (link, article): title, abstract and paragraphs, one a line."""
    for file in files:
        for article in json.loads(file.text()):
            parts = [article["title"], article["abstract"], *article["paragraphs"]]
            yield article["link"], "\n".join(filter(None, parts)) + "\n"


def aligned_lines(first: TextFile, second: TextFile) -> Iterator[tuple[str, str]]:
    """Yields the lines of two files that are translations of each other, line by line."""
    return zip(first.lines(), second.lines(), strict=True)
