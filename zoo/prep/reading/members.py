"""Reads a file as a row of members: gzip members one by one, any other file as a single one.

A WARC file has a gzip member for each record, so that what is wrong in one ends with its member.
"""

import os
import re
import zlib

from zoo.prep.reading.unpack import Unpacked, is_bomb, open_input

_MAGIC = re.compile(rb"\x1f\x8b\x08[\x00-\x1f]")
_PIECE = 1 << 16
_TRIED = 4096  # packed bytes that tell whether a member begins


class Members:
    """The members of a file, forward only.

    Args:
      path: of the file. One that ends in .gz is read by members; others, .zst too, are one member.
      max_ratio: unpacked to packed bytes, above which a large file is a bomb.
      begins: what each member begins with, unpacked. It is looked for after damage.

    Attributes:
      problem: why the file ended early: "damaged", "truncated" or "bomb"; "" where all was well.
      damaged: whether something is wrong with this member, which has ended then.
      losses: number of damaged stretches that were skipped to find the next member.
    """

    def __init__(self, path: str, max_ratio: float, begins: bytes):
        name = path.lower()
        self.problem, self.losses = "", 0
        self._by_members, self._begins, self._max_ratio = name.endswith(".gz"), begins, max_ratio
        self._file = open_input(path) if self._by_members else Unpacked(path, max_ratio)
        self._size = None if name.endswith((".gz", ".zst")) else os.path.getsize(path)
        self._packed = b""  # read, and not unpacked
        self._data, self._at = b"", 0  # unpacked, and from where on not taken
        self._unpacked = 0
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
        self.damaged, self._over, self._begun = False, False, True
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

    def skip(self, size: int) -> int:
        """Skips bytes of the member; returns how many there were, `size` or less."""
        left = size
        while left and (piece := self.read(min(left, _PIECE))):
            left -= len(piece)
        return size - left

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

    def left(self) -> float:
        """Returns the number of bytes left; infinity where the file is packed."""
        if self._size is None:
            return float("inf")
        return self._size - self._unpacked + len(self._data) - self._at

    # --- unpacking --------------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Unpacks one piece more of the member; False at its end."""
        while not self._over:
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
            return self._end("bomb")
        return data

    def _end(self, problem: str) -> bytes:
        self.problem, self._over = problem, True
        return b""

    def _find_member(self) -> bool:
        """Moves `_packed` to the next member, over zeros and what is damaged."""
        if not self.damaged:
            while not (rest := self._packed.lstrip(b"\0")):  # tapes are padded with zeros
                self._packed = self._file.read(_PIECE)
                if not self._packed:
                    return False
            self._packed = rest
            if _MAGIC.match(self._packed + self._file.peek(4)[:4]):
                return True
        place = 0
        while True:
            match = _MAGIC.search(self._packed, place)
            place = match.start() if match else max(place, len(self._packed) - 3)
            if len(self._packed) - place < _TRIED and (more := self._file.read(_PIECE)):
                self._packed, place = self._packed[place:] + more, 0
                continue
            if not match:
                self._end("damaged")
                return False
            if self._is_member(self._packed[place : place + _TRIED]):
                self.losses += 1
                self._packed = self._packed[place:]
                return True
            place += 1

    def _is_member(self, packed: bytes) -> bool:
        try:
            found = zlib.decompressobj(31).decompress(packed, len(self._begins))
        except zlib.error:
            return False
        return bool(found) and self._begins.startswith(found)
