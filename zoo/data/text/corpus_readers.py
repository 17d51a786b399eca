"""Reads documents from text files: UTF-8, gzip, and the formats of the corpora.

Text is not normalized, except that \\r\\n and \\r become \\n in text of users. A byte order mark at
the start of a file is dropped, and invalid UTF-8 becomes U+FFFD. A `Tally` counts replacements.
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

from zoo.errors import RunError
from zoo.storage.bounds import (
    JSON_EXPANSION,
    MAX_LINE_BYTES,
    TEXT_EXPANSION,
    Decompressed,
    check_memory,
)
from zoo.storage.disk import open_file, unreadable

VERSES_PER_DOCUMENT = 100
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_GZIP_START = b"\x1f\x8b"
_CHUNK = 1 << 20  # bytes

# Characters of a text whose title is to be predicted.
SOURCE_LENGTH = 400
MIN_SOURCE = 100


@dataclass
class Tally:
    """Counts of replaced and skipped text.

    Attributes:
      invalid: invalid UTF-8 sequences, by file.
      line_ends: \\r\\n and \\r that became \\n, by file.
      empty: skipped "files", "documents" and "pairs" without text.
    """

    invalid: Counter = field(default_factory=Counter)
    line_ends: Counter = field(default_factory=Counter)
    empty: Counter = field(default_factory=Counter)


@dataclass(frozen=True)
class TextFile:
    """A text file, which each method reads anew; a file named .gz is decompressed.

    Attributes:
      path: path of the file.
      stamp: size and modification time. If they change, reading fails, so that no run mixes two
        versions of a text.
    """

    path: Path
    stamp: tuple[int, int]

    @classmethod
    def at(cls, path: Path) -> "TextFile":
        """Returns the text file at `path` with its current stamp."""
        return cls(path, _stamp(path))

    def sha256(self, as_stored: bool = False) -> str:
        """Returns the hex sha256 of the decompressed bytes, or of the bytes as stored."""
        with self._opened(as_stored) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def text(self, tally: Tally | None = None) -> str:
        """Returns the whole text; raises RunError if the file cannot be read."""
        with self._opened() as file:
            parts, size = [], 0
            while part := file.read(_CHUNK):
                parts.append(part)
                size += len(part)
                check_memory(self.path, TEXT_EXPANSION * size)
            return self._decode(b"".join(parts), tally, at_start=True)

    def lines(self, tally: Tally | None = None) -> Iterator[str]:
        """Yields the lines without their ends (\\n or \\r\\n); holds one line at a time."""
        with self._opened() as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b"")):
                if len(line) > MAX_LINE_BYTES:
                    raise RunError(
                        f"{self.path} cannot be read: line {number + 1:,} is longer than "
                        f"{MAX_LINE_BYTES >> 20} MiB."
                    )
                check_memory(self.path, JSON_EXPANSION * len(line))
                text = self._decode(line, tally, at_start=number == 0)
                yield text.removesuffix("\n").removesuffix("\r")

    @contextlib.contextmanager
    def _opened(self, as_stored: bool = False) -> Iterator[io.BufferedIOBase]:
        if _stamp(self.path) != self.stamp:
            raise RunError(f"{self.path} was changed while it was in use. Run the command again.")
        try:
            with open_file(self.path) as raw:
                if as_stored or self.path.suffix != ".gz":
                    yield raw
                else:
                    # Without a buffer, each line would take microseconds of Python.
                    with io.BufferedReader(Decompressed(self.path, raw), _CHUNK) as stream:
                        yield stream
        except (OSError, EOFError, zlib.error) as error:
            raise unreadable(self.path, error) from None

    def _decode(self, data: bytes, tally: Tally | None, at_start: bool) -> str:
        if at_start:
            # Decoding these as UTF-8 would give nonsense without an error.
            if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise RunError(
                    f"{self.path} must be UTF-8. Received: UTF-16, which "
                    "`iconv -f UTF-16 -t UTF-8` converts."
                )
            if data.startswith(_GZIP_START):
                twice = self.path.suffix == ".gz"
                advice = " twice: decompress it once" if twice else ": its name must end in .gz"
                raise RunError(f"{self.path} is compressed with gzip{advice}.")
            data = data.removeprefix(codecs.BOM_UTF8)
        try:
            return data.decode()
        except UnicodeDecodeError:
            text = data.decode(errors="replace")
        if tally is not None:
            # The file may have valid U+FFFD.
            valid = data.count(_REPLACEMENT.encode())
            tally.invalid[self.path] += text.count(_REPLACEMENT) - valid
        return text


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from None
    return status.st_size, status.st_mtime_ns


# --- text of users ------------------------------------------------------------------------------


def whole_texts(files: Sequence[TextFile], tally: Tally) -> Iterator[str]:
    """Yields one document per file; skips and counts empty files."""
    for file in files:
        if text := _universal_newlines(file.text(tally), file, tally):
            yield text
        else:
            tally.empty["files"] += 1


def json_texts(files: Sequence[TextFile], tally: Tally) -> Iterator[str]:
    """Yields the "text" of each line, a JSON object; skips blank lines and counts empty texts.

    Raises:
      RunError: if a line is not such an object; names the line.
    """
    for file in files:
        for number, line in enumerate(file.lines(tally), start=1):
            if not line.strip():
                continue
            text = _json_text(file, number, line)
            try:
                text.encode()
            except UnicodeEncodeError:
                # JSON can encode a lone surrogate, UTF-8 cannot.
                text, invalid = re.subn("[\ud800-\udfff]", _REPLACEMENT, text)
                tally.invalid[file.path] += invalid
            if text := _universal_newlines(text, file, tally):
                yield text
            else:
                tally.empty["documents"] += 1


def _universal_newlines(text: str, file: TextFile, tally: Tally) -> str:
    """Replaces \\r\\n and \\r by \\n and counts them."""
    if "\r" not in text:
        return text
    text, pairs = text.replace("\r\n", "\n"), text.count("\r\n")
    tally.line_ends[file.path] += pairs + text.count("\r")
    return text.replace("\r", "\n")


def _json_text(file: TextFile, number: int, line: str) -> str:
    value = None
    try:
        # Not strict, because many programs write raw tabs and NULs.
        value = json.loads(line, strict=False)
        text = value["text"]
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError):
        received = _short(line)
        if isinstance(value, dict):
            received = f"an object with {_keys(value)}"
        raise RunError(
            f'{file.path}, line {number:,}: must be a JSON object with a "text" of type string. '
            f"Received: {received}."
        ) from None
    return text


def _keys(json_object: dict) -> str:
    """Returns up to ten keys with the types of their values, for an error message."""
    names = {str: "string", bool: "boolean", int: "number", float: "number", type(None): "null"}
    names |= {dict: "object", list: "list"}
    descriptions = [f"{_short(key)} ({names[type(value)]})" for key, value in json_object.items()]
    more = f" and {len(descriptions) - 10} more" if len(descriptions) > 10 else ""
    return f"the keys {', '.join(descriptions[:10])}{more}" if descriptions else "no keys"


def tab_separated_pairs(file: TextFile, tally: Tally) -> Iterator[tuple[str, str]]:
    """Yields the first two columns of each line; skips blank lines and counts half-empty pairs.

    Raises:
      RunError: if a line has one column; names the line.
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


# --- formats of the zoo's corpora ---------------------------------------------------------------
# The hashes of these files are checked before, so the readers need no error handling.


def wikipedia_articles(files: Sequence[TextFile]) -> Iterator[tuple[str, str]]:
    """Yields (page id, article) of WikiExtractor's output, from `<doc id="…" …>` to `</doc>`."""
    article = re.compile(r'^<doc id="(\d+)" [^\n]*>\n(.*?)^</doc>$', re.DOTALL | re.MULTILINE)
    for file in files:
        for match in article.finditer(file.text()):
            yield match.group(1), match.group(2)


def wikipedia_titles(files: Sequence[TextFile]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yields (page id, (beginning of the article, title)); the article's first line is its title.

    Articles with less than `MIN_SOURCE` characters are left out.
    """
    for page_id, article in wikipedia_articles(files):
        title, _, text = article.strip().partition("\n")
        if len(source := _beginning(text)) >= MIN_SOURCE:
            yield page_id, (source, title)


def news_titles(files: Sequence[TextFile]) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yields (link, (beginning of the abstract and the paragraphs, title)) of news articles."""
    for file in files:
        for article in json.loads(file.text()):
            source = _beginning("\n".join([article["abstract"] or "", *article["paragraphs"]]))
            if article["title"] and len(source) >= MIN_SOURCE:
                yield article["link"], (source, article["title"])


def _beginning(text: str) -> str:
    """Returns the first `SOURCE_LENGTH` characters of a text as one line, cut at a space."""
    text = " ".join(text[: 4 * SOURCE_LENGTH].split())
    return text if len(text) <= SOURCE_LENGTH else text[:SOURCE_LENGTH].rpartition(" ")[0]


def wikitext_articles(files: Sequence[TextFile]) -> Iterator[str]:
    """Yields the articles of WikiText, each from the blank line before ` = Title = `."""
    for file in files:
        yield from re.split(r"(?=^ \n = [^=\n]+ = \n \n)", file.text(), flags=re.MULTILINE)[1:]


def named_texts(files: Sequence[TextFile]) -> Iterator[tuple[str, str]]:
    """Yields (file name without .txt and .gz, text), one document per file."""
    for file in files:
        yield file.path.name.removesuffix(".gz").removesuffix(".txt"), file.text()


def verses(files: Sequence[TextFile]) -> Iterator[tuple[str, str]]:
    """Yields (POET NUMBER, 100 hemistichs, one per line) of each poet's file.

    The files do not mark where a poem ends. The scraper's header of two lines, blank lines, stray
    carriage returns and surrounding spaces are dropped.
    """
    for poet, text in named_texts(files):
        lines = [line for row in re.split(r"[\r\n]+", text) if (line := row.strip())][2:]
        for start in range(0, len(lines), VERSES_PER_DOCUMENT):
            document = "\n".join(lines[start : start + VERSES_PER_DOCUMENT]) + "\n"
            yield f"{poet} {start // VERSES_PER_DOCUMENT}", document


def news_articles(files: Sequence[TextFile]) -> Iterator[tuple[str, str]]:
    """Yields (link, article); an article is its title, abstract and paragraphs, one per line."""
    for file in files:
        for article in json.loads(file.text()):
            parts = [article["title"], article["abstract"], *article["paragraphs"]]
            yield article["link"], "\n".join(filter(None, parts)) + "\n"


def aligned_lines(first: TextFile, second: TextFile) -> Iterator[tuple[str, str]]:
    """Yields pairs of lines of two files that are translations of each other."""
    return zip(first.lines(), second.lines(), strict=True)
