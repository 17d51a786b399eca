"""Reads an HTTP response as an archive holds it: status, type and decoded body.

Transfer and content codings are those of RFC 9112 and RFC 9110. As in browsers, a content coding
that nobody knows ("none", "utf-8") changes nothing, and chunk extensions are passed over.
"""

import re
import zlib
from dataclasses import dataclass

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"HTTP/\d+(?:\.\d+)?[ \t]+(\d{3})(?!\d)", re.IGNORECASE)
_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([^\s"';,]+)""", re.IGNORECASE)
# What no text holds: https://mimesniff.spec.whatwg.org/#binary-data-byte
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
# A frame of Zstandard, or one to skip (RFC 8878, 3.1); several may follow each other.
_ZSTD_FRAME = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")
_MAX_CODINGS = 5
TOO_LARGE = "records too large"
_CUT_OFF = "responses cut off"


class Unreadable(Exception):
    """A response without a usable body; the message is the reason, as it is counted."""


@dataclass
class Response:
    """The head of a response, and its body as it was sent.

    Attributes:
      status: of the last header block, those of 1xx left out.
      headers: names in lower case, in their order.
      packed: the body with its codings.
    """

    status: int
    headers: list[tuple[str, str]]
    packed: bytes

    @property
    def media_type(self) -> str:
        """Media type in lower case, or ""."""
        return self._header("content-type").partition(";")[0].strip().lower()

    @property
    def charset(self) -> str:
        """Declared encoding, or ""."""
        return charset_of(self._header("content-type"))

    def body(self, limit: int, coded_by=("content-encoding", "transfer-encoding")) -> bytes:
        """Returns the decoded body.

        Args:
          limit: number of bytes, decoded, that a body may have.
          coded_by: headers that name the codings which are still there.

        Raises:
          Unreadable: where it cannot be decoded, is cut off, or is larger.
        """
        codings = [coding for name in coded_by for coding in self._list(name)]
        if len(codings) > _MAX_CODINGS:
            raise Unreadable("responses of too many codings")
        body = self.packed
        for coding in reversed(codings):
            body = decoded(body, coding, limit)
        length = self._header("content-length").strip()
        coded = any(coding == "chunked" or coding in _CODINGS for coding in codings)
        if not coded and length.isdecimal() and len(length) < 20 and len(body) < int(length):
            raise Unreadable(_CUT_OFF)
        if len(body) > limit:
            raise Unreadable(TOO_LARGE)
        return body

    def _header(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")

    def _list(self, name: str) -> list[str]:
        values = ",".join(value for key, value in self.headers if key == name)
        codings = (value.partition(";")[0].strip().lower() for value in values.split(","))
        return [coding for coding in codings if coding not in ("", "identity", "none")]


def charset_of(content_type: str) -> str:
    """Returns the charset of a Content-Type, or ""."""
    match = _CHARSET.search(content_type)
    return match.group(1) if match else ""


def parse(block: bytes) -> Response:
    """Parses the block of a `response` record; raises `Unreadable` where it holds no head."""
    while True:
        status = _STATUS.match(block)
        if not status:
            begun = b"HTTP/".startswith(block[:5].upper()) and b"\n" not in block
            raise Unreadable(_CUT_OFF if begun else "responses without HTTP headers")
        end = _HEAD_END.search(block)
        if not end:
            raise Unreadable(_CUT_OFF)
        head, code = block[: end.start()], int(status.group(1))
        block = block[end.end() :]
        if not 100 <= code < 200:
            return Response(code, _headers(head), block)


def _headers(head: bytes) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for line in head.decode("latin-1").split("\n")[1:]:
        if line[:1] in (" ", "\t") and found:  # folded
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
            continue
        name, _, value = line.partition(":")
        found.append((name.strip().lower(), value.strip()))
    return found


def decoded(body: bytes, coding: str, limit: int) -> bytes:
    """Returns a body without one transfer or content coding.

    Args:
      body: as it was sent.
      coding: a name in lower case. An unknown one changes nothing, as in browsers.
      limit: number of bytes that the result may have.

    Raises:
      Unreadable: where the body does not fit the coding, is cut off, or is larger.
    """
    if coding == "chunked":
        return _unchunked(body)
    unpack = _CODINGS.get(coding)
    if unpack is None:
        if _BINARY.search(body[:1445]):
            raise Unreadable("responses of an unknown content coding")
        return body
    if not body:
        return body
    unpacked, whole = unpack(body, limit)
    if len(unpacked) > limit:
        raise Unreadable(TOO_LARGE)
    if not whole:
        raise Unreadable(_CUT_OFF)
    return unpacked


def _unchunked(body: bytes) -> bytes:
    pieces, place = [], 0
    while place < len(body):
        end = body.find(b"\n", place, place + 4096)
        line = body[place:] if end < 0 else body[place:end]
        size = line.partition(b";")[0].strip(b" \t\r")
        if not re.fullmatch(rb"0*[0-9A-Fa-f]{1,16}", size):
            raise Unreadable("responses of bad chunks")
        count = int(size, 16)
        if end >= 0 and not count:
            return b"".join(pieces)
        if end < 0 or end + 1 + count >= len(body):
            break
        pieces.append(body[end + 1 : end + 1 + count])
        place = end + 1 + count
        if not re.match(rb"\r?\n|\r\Z", body[place : place + 2]):
            raise Unreadable("responses of bad chunks")
        place += 2 if body[place] == 0x0D else 1
    raise Unreadable(_CUT_OFF)


# --- content codings: (body, limit) -> (at most limit + 1 bytes, whether the end was there) -------


def _inflated(body: bytes, limit: int, bits: tuple[int, ...]) -> tuple[bytes, bool]:
    for tried in bits:
        pieces, size, rest = [], 0, body
        try:
            while True:
                unpacker = zlib.decompressobj(tried)
                pieces.append(unpacker.decompress(rest, limit + 1 - size))
                size += len(pieces[-1])
                rest = unpacker.unused_data
                if size > limit or not unpacker.eof or not rest.startswith(b"\x1f\x8b"):
                    return b"".join(pieces), unpacker.eof
        except zlib.error:
            continue
    raise Unreadable("responses that are not packed as declared")


def _gzip(body: bytes, limit: int) -> tuple[bytes, bool]:
    return _inflated(body, limit, (31,))


def _deflate(body: bytes, limit: int) -> tuple[bytes, bool]:
    # Servers send it with the header that the standard asks for, and without.
    return _inflated(body, limit, (15, -15))


def _brotli(body: bytes, limit: int) -> tuple[bytes, bool]:
    import brotli

    unpacker, pieces, size, data = brotli.Decompressor(), [], 0, body
    try:
        while size <= limit and not unpacker.is_finished():
            piece = unpacker.process(data, output_buffer_limit=1 << 20)
            data = b""
            if not piece and unpacker.can_accept_more_data():
                break
            pieces.append(piece)
            size += len(piece)
    except brotli.error:
        raise Unreadable("responses that are not packed as declared") from None
    return b"".join(pieces), unpacker.is_finished()


def _zstandard(body: bytes, limit: int) -> tuple[bytes, bool]:
    import zstandard

    # The window that RFC 9659 allows.
    frames = zstandard.ZstdDecompressor(max_window_size=1 << 23)
    frame, pieces, size, place = None, [], 0, 0
    try:
        while place < len(body) and size <= limit:
            if frame is None:
                if place and not _ZSTD_FRAME.match(body, place):
                    break  # what follows is ignored, as after gzip
                frame = frames.decompressobj()
            data = body[place : place + 256]  # may unpack to 8 MB
            pieces.append(frame.decompress(data))
            size += len(pieces[-1])
            place += len(data) - len(frame.unused_data)
            if frame.eof:
                frame = None
    except zstandard.ZstdError:
        raise Unreadable("responses that are not packed as declared") from None
    return b"".join(pieces), frame is None


_CODINGS = {"gzip": _gzip, "x-gzip": _gzip, "deflate": _deflate, "br": _brotli, "zstd": _zstandard}
