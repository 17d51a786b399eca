"""Reads the records of a WARC file (ISO 28500) and continues after damaged records.

A damaged record costs only itself. The next record is found by its gzip member, or, in a file that
is not compressed record by record, by its first line "WARC/1.x".
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from zoo.prep.reading.members import Members
from zoo.prep.reading.response import TOO_LARGE

_VERSION = re.compile(rb"WARC/\d{1,2}\.\d{1,2}[ \t]*\r?\n\Z")
_NEXT = re.compile(rb"\r?\n(WARC/\d{1,2}\.\d{1,2}[ \t]*\r?\n)")
_LINE_OF = rb"WARC/\d{1,2}\.\d{1,2}[ \t]{0,40}\r?\n"
# Start of a record inside a block of wrong length, and inside garbage, where a record may also
# begin in the middle of a line if a header "WARC-…" follows.
_IN_BLOCK = re.compile(rb"(?<=\n)" + _LINE_OF + rb"(?=[A-Za-z-]{1,40}:)")
_IN_GARBAGE = re.compile(rb"(?<=\n)" + _LINE_OF + rb"|" + _LINE_OF + rb"(?=WARC-)")
_LINE, _HEAD = 1 << 16, 1 << 20  # maximum bytes of a header line, and of all header lines
_PIECE, _OVERLAP = 1 << 16, 128
DAMAGED, CUT_OFF = "records damaged", "records cut off"
WRONG_LENGTH = "records with a wrong length"


@dataclass
class Record:
    """A record, or the part of a damaged record that could be read.

    Attributes:
      headers: header values; names in lower case.
      body: content block.
      problem: why the record cannot be used, else "".
    """

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    problem: str = ""

    @property
    def type(self) -> str:
        """The WARC-Type in lower case, or ""."""
        return self.headers.get("warc-type", "").lower()


def read_records(members: Members, limit: int) -> Iterator[Record]:
    """Yields the records of a file, and a record with a `problem` for each damaged one.

    If the file ends early, `members.problem` says why; that is not yielded as a record.

    Args:
      members: members of the file, with `begins` b"WARC/" and nothing read yet.
      limit: maximum bytes of a block.
    """
    while members.next():
        if members.skipped:
            yield Record(problem=TOO_LARGE if members.skipped == "bomb" else DAMAGED)
        while record := _read_record(members, limit):
            # Damage of the member and an early end of the file are counted separately.
            if members.damaged or (record.problem and members.problem):
                break
            yield record


def _read_record(members: Members, limit: int) -> Record | None:
    """Returns the next record of a member, None at its end."""
    members.skip_characters(b" \t\r\n")
    line = members.readline(_LINE)
    if not line:
        return None
    if not _VERSION.match(line):
        is_cut_off = not members.peek(1) and b"WARC/1.0\r\n".startswith(line)
        members.unread(line)
        _resync(members)
        return Record(problem=CUT_OFF if is_cut_off else DAMAGED)
    headers = _read_headers(members)
    if headers is None:
        is_cut_off = not members.peek(1)
        _resync(members)
        return Record(problem=CUT_OFF if is_cut_off else DAMAGED)
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit() and len(length) < 19):
        _resync(members)
        return Record(headers, problem=DAMAGED)
    return _read_body(members, headers, int(length), limit)


def _read_headers(members: Members) -> dict[str, str] | None:
    """Returns the headers up to the empty line, None if there is no such line."""
    headers: dict[str, str] = {}
    size, name = 0, ""
    while line := members.readline(_LINE):
        size += len(line)
        if size > _HEAD or not line.endswith(b"\n"):
            return None
        if _VERSION.match(line):  # another record begins
            members.unread(line)
            return None
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if not text:
            return headers
        if text[0] in " \t" and name:  # folded
            headers[name] += f" {text.strip()}"
            continue
        name, _, value = text.partition(":")
        name = name.strip().lower()
        headers.setdefault(name, value.strip())
    return None


def _read_body(members: Members, headers: dict, length: int, limit: int) -> Record:
    if length > limit:
        problem = _skip_block(members, length)
        if not problem and not _at_end(members):
            _resync(members)
            problem = WRONG_LENGTH
        return Record(headers, problem=problem or TOO_LARGE)
    body = members.read(length)
    if len(body) == length and _at_end(members):
        return Record(headers, body)
    if match := _NEXT.search(body):  # the block is too long and contains the next record
        members.unread(body[match.start(1) :])
        return Record(headers, problem=WRONG_LENGTH)
    if len(body) < length:
        return Record(headers, problem=CUT_OFF)
    _resync(members)
    return Record(headers, problem=WRONG_LENGTH)


def _skip_block(members: Members, length: int) -> str:
    """Skips a block of `length` bytes, up to a record inside it.

    Returns:
      "" if the block is complete, else CUT_OFF or WRONG_LENGTH.
    """
    at_record, missing_bytes = _search(members, _IN_BLOCK, length)
    return WRONG_LENGTH if at_record else CUT_OFF if missing_bytes else ""


def _resync(members: Members) -> None:
    """Moves to the start of the next record, or to the end of the member."""
    _search(members, _IN_GARBAGE, sys.maxsize)


def _search(members: Members, record: re.Pattern, length: int) -> tuple[bool, int]:
    """Moves to the start of a record, or past `length` bytes.

    Returns:
      Whether a record begins here, and how many of the bytes were not read.
    """
    before = b"\n"  # a line begins here
    while length and (piece := members.read(min(length, _PIECE))):
        length -= len(piece)
        data = before + piece
        if b"WARC/" in data and (match := record.search(data)):
            members.unread(data[match.start() :])
            return True, length
        before = data[-_OVERLAP:]
    return False, length


def _at_end(members: Members) -> bool:
    """Returns whether a record ends here: two line ends, a record or the member's end follow."""
    after = members.peek(16)
    rest = after.lstrip(b"\r\n")
    return after.startswith(b"\r\n\r\n") or not rest or rest.startswith(b"WARC/")
