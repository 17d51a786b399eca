"""Reads the records of a WARC file (ISO 28500), and goes on after those that are wrong.

A record that is wrong costs itself. The next one is found by its gzip member, or in a file that is
not packed by records, by the line "WARC/1.x" that it begins with.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from zoo.prep.members import Members
from zoo.prep.response import TOO_LARGE

_VERSION = re.compile(rb"WARC/\d{1,2}\.\d{1,2}[ \t]*\r?\n\Z")
_NEXT = re.compile(rb"\r?\n(WARC/\d{1,2}\.\d{1,2}[ \t]*\r?\n)")
# The same with the header that follows, for blocks that are passed over unread.
_NEXT_HEAD = re.compile(rb"\n(WARC/\d{1,2}\.\d{1,2}[ \t]*\r?\n[A-Za-z-]{1,40}:)")
_LINE, _HEAD = 1 << 16, 1 << 20  # bytes that a header line, and all of them, may have
_PIECE, _OVERLAP = 1 << 16, 128
DAMAGED, CUT_OFF = "records damaged", "records cut off"
WRONG_LENGTH = "records of a wrong length"


@dataclass
class Record:
    """A record, or what is left of one.

    Attributes:
      headers: names in lower case.
      body: its block.
      problem: why it cannot be used, else "".
    """

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    problem: str = ""

    @property
    def type(self) -> str:
        """The WARC-Type in lower case, or ""."""
        return self.headers.get("warc-type", "").lower()


def records(members: Members, limit: int) -> Iterator[Record]:
    """Yields the records of a file, and one with a `problem` for each that is wrong.

    What ends the file early is left in `members.problem`, and not a record.

    Args:
      members: of the file, begun nowhere; each begins with b"WARC/".
      limit: number of bytes that a block may have.
    """
    while members.next():
        if members.skipped:
            yield Record(problem=TOO_LARGE if members.skipped == "bomb" else DAMAGED)
        while record := _record(members, limit):
            # The member's damage, or the file's end, is counted by itself.
            if members.damaged or (record.problem and members.problem):
                break
            yield record


def _record(members: Members, limit: int) -> Record | None:
    """Returns the next record of a member; None at its end."""
    while (line := members.readline(_LINE)) and not line.strip():
        pass
    if not line:
        return None
    if not _VERSION.match(line):
        cut = not members.peek(1) and b"WARC/1.0\r\n".startswith(line)
        members.unread(line)
        _resync(members)
        return Record(problem=CUT_OFF if cut else DAMAGED)
    headers = _headers(members)
    if headers is None:
        cut = not members.peek(1)
        _resync(members)
        return Record(problem=CUT_OFF if cut else DAMAGED)
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdigit() and len(length) < 19):
        _resync(members)
        return Record(headers, problem=DAMAGED)
    return _with_body(members, headers, int(length), limit)


def _headers(members: Members) -> dict[str, str] | None:
    """Returns the headers up to the empty line; None where there is no such line."""
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


def _with_body(members: Members, headers: dict, length: int, limit: int) -> Record:
    if length > limit:
        problem = _passed_over(members, length)
        if not problem and not _at_end(members):
            _resync(members)
            problem = WRONG_LENGTH
        return Record(headers, problem=problem or TOO_LARGE)
    body = members.read(length)
    if len(body) == length and _at_end(members):
        return Record(headers, body)
    if match := _NEXT.search(body):  # too long: it holds the next record
        members.unread(body[match.start(1) :])
        return Record(headers, problem=WRONG_LENGTH)
    if len(body) < length:
        return Record(headers, problem=CUT_OFF)
    _resync(members)
    return Record(headers, problem=WRONG_LENGTH)


def _passed_over(members: Members, length: int) -> str:
    """Passes over a block of `length` bytes, but not over a record in it.

    Returns:
      "" where the block was there, else CUT_OFF or WRONG_LENGTH.
    """
    before = b""
    while length and (piece := members.read(min(length, _PIECE))):
        length -= len(piece)
        data = before + piece
        if b"\nWARC/" in data and (match := _NEXT_HEAD.search(data)):
            members.unread(data[match.start(1) :])
            return WRONG_LENGTH
        before = data[-_OVERLAP:]
    return CUT_OFF if length else ""


def _at_end(members: Members) -> bool:
    """Whether a record ends here: by two ends of line, another record or the member's end."""
    after = members.peek(16)
    rest = after.lstrip(b"\r\n")
    return after.startswith(b"\r\n\r\n") or not rest or rest.startswith(b"WARC/")


def _resync(members: Members) -> bool:
    """Moves to where the next record begins; whether there is one in this member."""
    at_start = True
    while line := members.readline(_LINE):
        match = _VERSION.search(line)
        # Behind garbage without an end of line the first header tells.
        if match and ((at_start and not match.start()) or members.peek(5) == b"WARC-"):
            members.unread(line[match.start() :])
            return True
        at_start = line.endswith(b"\n")
    return False
