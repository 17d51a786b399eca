"""Reads a file as a sequence of members: gzip members one by one, any other file as one member.

A WARC file has one gzip member per record, so damage ends with its member. Some tools split the
data at other places: a gzip member that does not begin like a record continues the previous one.
"""

import re
import zlib

from zoo.prep.reading.unpack import UnpackedFile, is_bomb, open_input

_MAGIC = re.compile(rb"\x1f\x8b\x08[\x00-\x1f]")
_PIECE = 1 << 16
_PROBE_BYTES = 4096  # compressed bytes that decide whether a member begins
_MAX_BOMBS = 16  # decompression bombs that are skipped in a file; one more ends it


class Members:
    """Iterates over the members of a file, forward only.

    Args:
      path: path of the file. A .gz file has members; any other file, also .zst, is one member.
      max_ratio: compression ratio above which a large file is a decompression bomb.
      begins: uncompressed bytes that each record begins with. After damage the reader searches for
        them.

    Attributes:
      problem: why the file ended early: "damaged", "truncated" or "bomb"; "" if it did not.
      damaged: whether this member ended early because of damage.
      skipped: what was skipped before this member: "damaged", "bomb" or "" for nothing.
    """

    def __init__(self, path: str, max_ratio: float, begins: bytes):
        name = path.lower()
        self.problem, self.skipped = "", ""
        self._is_gzip, self._record_start, self._max_ratio = name.endswith(".gz"), begins, max_ratio
        self._file = open_input(path) if self._is_gzip else UnpackedFile(path, max_ratio)
        self._compressed = b""  # compressed bytes that were read but not decompressed
        self._data, self._offset = b"", 0  # decompressed bytes, and offset of the next one
        self._size = self._size_before = 0  # size in total, and before this member
        self._bombs, self._is_bomb = 0, False
        self._decompressor = None
        self.damaged, self._is_ended, self._is_started = False, True, False

    def __enter__(self) -> "Members":
        return self

    def __exit__(self, *_):
        self._file.close()

    def next(self) -> bool:
        """Moves to the next member and returns whether there is one."""
        while self._fill():
            self._offset = len(self._data)
        self._data, self._offset = b"", 0
        if self.problem or (self._is_started and not self._is_gzip):
            return False
        if self._is_gzip and not self._find_member():
            return False
        self.damaged, self._is_ended, self._is_started, self._is_bomb = False, False, True, False
        self._size_before = self._size
        self._decompressor = zlib.decompressobj(31)
        return True

    def read(self, size: int) -> bytes:
        """Returns `size` bytes of the member, or fewer at its end."""
        pieces, missing = [], size
        while missing and (self._offset < len(self._data) or self._fill()):
            pieces.append(self._data[self._offset : self._offset + missing])
            self._offset += len(pieces[-1])
            missing -= len(pieces[-1])
        return b"".join(pieces)

    def skip_characters(self, characters: bytes) -> None:
        """Skips any number of the given characters."""
        while True:
            self._data, self._offset = self._data[self._offset :].lstrip(characters), 0
            if self._data or not self._fill():
                return

    def readline(self, limit: int) -> bytes:
        """Returns a line with its end, or its first `limit` bytes; b"" at the member's end."""
        while True:
            end = self._data.find(b"\n", self._offset, self._offset + limit) + 1
            if end or len(self._data) - self._offset >= limit or not self._fill():
                return self.read((end or self._offset + limit) - self._offset)

    def peek(self, size: int) -> bytes:
        """Returns the next `size` bytes, or fewer at the member's end, without consuming them."""
        while len(self._data) - self._offset < size and self._fill():
            pass
        return self._data[self._offset : self._offset + size]

    def unread(self, data: bytes) -> None:
        """Puts bytes back before the next byte."""
        self._data, self._offset = data + self._data[self._offset :], 0

    # --- unpacking --------------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Decompresses another piece of the member; returns False at its end."""
        while not self._is_ended or self._enter_continuation():
            data = self._decompress() if self._is_gzip else self._read()
            if data:
                self._size += len(data)
                self._data, self._offset = self._data[self._offset :] + data, 0
                return True
        return False

    def _read(self) -> bytes:
        data = self._file.read(_PIECE)
        self.problem, self._is_ended = self._file.problem, not data
        return data

    def _decompress(self) -> bytes:
        compressed = self._compressed or self._file.read(_PIECE)
        if not compressed:
            return self._end("truncated")
        try:
            data = self._decompressor.decompress(compressed, _PIECE)
        except zlib.error:
            # The next member may begin inside these bytes: search from there.
            self._compressed, self.damaged, self._is_ended = compressed[1:], True, True
            return b""
        self._compressed = self._decompressor.unconsumed_tail
        if self._decompressor.eof:
            self._compressed, self._is_ended = self._decompressor.unused_data, True
        if is_bomb(self._size + len(data), self._file.tell(), self._max_ratio):
            return self._end_bomb()
        return data

    def _end_bomb(self) -> bytes:
        """Ends a member that is a decompression bomb."""
        self._bombs += 1
        if self._bombs > _MAX_BOMBS:
            return self._end("bomb")
        self.damaged = self._is_bomb = self._is_ended = True
        self._size = self._size_before
        return b""

    def _end(self, problem: str) -> bytes:
        self.problem, self._is_ended = problem, True
        return b""

    # --- finding the next member ------------------------------------------------------------------

    def _enter_continuation(self) -> bool:
        """Enters the next gzip member if it continues this one; returns whether it does."""
        if not self._is_gzip or not self._is_started or self.problem or self.damaged:
            return False
        if not self._at_member():
            return False
        start = self._first_bytes(self._compressed)
        if start is None or (start and self._record_start.startswith(start)):
            return False
        self._decompressor, self._is_ended = zlib.decompressobj(31), False
        return True

    def _at_member(self) -> bool:
        """Skips zeros, which pad tapes; returns whether the header of a member follows."""
        while True:
            self._compressed = self._compressed.lstrip(b"\0")
            if len(self._compressed) >= _PROBE_BYTES or not (more := self._file.read(_PIECE)):
                return bool(_MAGIC.match(self._compressed))
            self._compressed += more

    def _find_member(self) -> bool:
        """Moves `_compressed` past damage to the next member; returns whether there is one."""
        self.skipped = ""
        if not self.damaged and self._at_member():
            return True
        if not self.damaged and not self._compressed:
            return False
        reason, offset = "bomb" if self._is_bomb else "damaged", 0
        while True:
            match = _MAGIC.search(self._compressed, offset)
            offset = match.start() if match else max(offset, len(self._compressed) - 3)
            if len(self._compressed) - offset < _PROBE_BYTES and (more := self._file.read(_PIECE)):
                self._compressed, offset = self._compressed[offset:] + more, 0
                continue
            if not match:
                self._end(reason)
                return False
            start = self._first_bytes(self._compressed[offset : offset + _PROBE_BYTES])
            if start and self._record_start.startswith(start):
                self.skipped, self._compressed = reason, self._compressed[offset:]
                return True
            offset += 1

    def _first_bytes(self, compressed: bytes) -> bytes | None:
        """Returns the first decompressed bytes of a member; None if it is not gzip."""
        try:
            return zlib.decompressobj(31).decompress(
                compressed[:_PROBE_BYTES], len(self._record_start)
            )
        except zlib.error:
            return None
