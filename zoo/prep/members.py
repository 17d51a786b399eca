"""Reads a file as a row of members: gzip members one by one, any other file as a single one.

A WARC file has a gzip member for each record, so that what is wrong in one ends with its member.
Some packers cut the data anywhere instead: a gzip member that does not begin as records do
continues the member before it.
"""

import re
import zlib

from zoo.prep.unpack import Unpacked, is_bomb, open_input

_MAGIC = re.compile(rb"\x1f\x8b\x08[\x00-\x1f]")
_PIECE = 1 << 16
_TRIED = 4096  # packed bytes that tell whether a member begins
_BOMBS = 16  # that are passed over in a file; one more ends it


class Members:
    """The members of a file, forward only.

    Args:
      path: of the file. One that ends in .gz is read by members; others, .zst too, are one member.
      max_ratio: unpacked to packed bytes, above which a large file is a bomb.
      begins: what each record begins with, unpacked. It is looked for after damage.

    Attributes:
      problem: why the file ended early: "damaged", "truncated" or "bomb"; "" where all was well.
      damaged: whether something is wrong with this member, which has ended then.
      skipped: what was passed over to find this member: "damaged", "bomb" or "" for nothing.
    """

    def __init__(self, path: str, max_ratio: float, begins: bytes):
        name = path.lower()
        self.problem, self.skipped = "", ""
        self._by_members, self._begins, self._max_ratio = name.endswith(".gz"), begins, max_ratio
        self._file = open_input(path) if self._by_members else Unpacked(path, max_ratio)
        self._packed = b""  # read, and not unpacked
        self._data, self._at = b"", 0  # unpacked, and from where on not taken
        self._unpacked = self._unpacked_before = 0  # in all, and up to this member
        self._bombs, self._is_bomb = 0, False
        self._unpacker = None
        self.damaged, self._over, self._begun = False, True, False

    def __enter__(self) -> "Members":
        return self

    def __exit__(self, *_):
        self._file.close()

    def next(self) -> bool:
        """Goes to the next member; whether there is one. What is left of this one is skipped."""
        while self._fill():
            self._at = len(self._data)
        self._data, self._at = b"", 0
        if self.problem or (self._begun and not self._by_members):
            return False
        if self._by_members and not self._find_member():
            return False
        self.damaged, self._over, self._begun, self._is_bomb = False, False, True, False
        self._unpacked_before = self._unpacked
        self._unpacker = zlib.decompressobj(31)
        return True

    def read(self, size: int) -> bytes:
        """Returns `size` bytes of the member, or what is left of it."""
        pieces, missing = [], size
        while missing and (self._at < len(self._data) or self._fill()):
            pieces.append(self._data[self._at : self._at + missing])
            self._at += len(pieces[-1])
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def pass_over(self, characters: bytes) -> None:
        """Passes over `characters`, in any order and number."""
        while True:
            self._data, self._at = self._data[self._at :].lstrip(characters), 0
            if self._data or not self._fill():
                return

    def readline(self, limit: int) -> bytes:
        """Returns a line with its end, or its first `limit` bytes; b"" at the member's end."""
        while True:
            end = self._data.find(b"\n", self._at, self._at + limit) + 1
            if end or len(self._data) - self._at >= limit or not self._fill():
                return self.read((end or self._at + limit) - self._at)

    def peek(self, size: int) -> bytes:
        """Returns the next `size` bytes, or what is left of the member, and leaves them."""
        while len(self._data) - self._at < size and self._fill():
            pass
        return self._data[self._at : self._at + size]

    def unread(self, data: bytes) -> None:
        """Puts bytes back before those that come next."""
        self._data, self._at = data + self._data[self._at :], 0

    # --- unpacking --------------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Unpacks one piece more of the member; False at its end."""
        while not self._over or self._continues():
            data = self._unpack() if self._by_members else self._read()
            if data:
                self._unpacked += len(data)
                self._data, self._at = self._data[self._at :] + data, 0
                return True
        return False

    def _read(self) -> bytes:
        data = self._file.read(_PIECE)
        self.problem, self._over = self._file.problem, not data
        return data

    def _unpack(self) -> bytes:
        packed = self._packed or self._file.read(_PIECE)
        if not packed:
            return self._end("truncated")
        try:
            data = self._unpacker.decompress(packed, _PIECE)
        except zlib.error:
            # The next member may begin in what was handed over: it is looked for from there.
            self._packed, self.damaged, self._over = packed[1:], True, True
            return b""
        self._packed = self._unpacker.unconsumed_tail
        if self._unpacker.eof:
            self._packed, self._over = self._unpacker.unused_data, True
        if is_bomb(self._unpacked + len(data), self._file.tell(), self._max_ratio):
            return self._bomb()
        return data

    def _bomb(self) -> bytes:
        """Ends a member that unpacks to too much; the next one is looked for without unpacking."""
        self._bombs += 1
        if self._bombs > _BOMBS:
            return self._end("bomb")
        self.damaged = self._is_bomb = self._over = True
        self._unpacked = self._unpacked_before
        return b""

    def _end(self, problem: str) -> bytes:
        self.problem, self._over = problem, True
        return b""

    # --- where the next member begins -------------------------------------------------------------

    def _continues(self) -> bool:
        """Goes on in the next gzip member where it continues this one; whether it does."""
        if not self._by_members or not self._begun or self.problem or self.damaged:
            return False
        if not self._at_member():
            return False
        start = self._start(self._packed)
        if start is None or (start and self._begins.startswith(start)):
            return False
        self._unpacker, self._over = zlib.decompressobj(31), False
        return True

    def _at_member(self) -> bool:
        """Moves `_packed` over zeros, which pad tapes; whether the header of a member follows."""
        while True:
            self._packed = self._packed.lstrip(b"\0")
            if len(self._packed) >= _TRIED or not (more := self._file.read(_PIECE)):
                return bool(_MAGIC.match(self._packed))
            self._packed += more

    def _find_member(self) -> bool:
        """Moves `_packed` to the next member, over what is damaged; whether there is one."""
        self.skipped = ""
        if not self.damaged and self._at_member():
            return True
        if not self.damaged and not self._packed:
            return False
        reason, place = "bomb" if self._is_bomb else "damaged", 0
        while True:
            match = _MAGIC.search(self._packed, place)
            place = match.start() if match else max(place, len(self._packed) - 3)
            if len(self._packed) - place < _TRIED and (more := self._file.read(_PIECE)):
                self._packed, place = self._packed[place:] + more, 0
                continue
            if not match:
                self._end(reason)
                return False
            start = self._start(self._packed[place : place + _TRIED])
            if start and self._begins.startswith(start):
                self.skipped, self._packed = reason, self._packed[place:]
                return True
            place += 1

    def _start(self, packed: bytes) -> bytes | None:
        """Returns the first bytes that a member unpacks to; None where it is none."""
        try:
            return zlib.decompressobj(31).decompress(packed[:_TRIED], len(self._begins))
        except zlib.error:
            return None
