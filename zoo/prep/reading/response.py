"""Parses an HTTP response of an archive: status, media type and decoded body.

Transfer and content codings are those of RFC 9112 and RFC 9110. As in browsers, unknown content
codings ("none", "utf-8") and chunk extensions are ignored.
"""

import functools
import re
import zlib
from dataclasses import dataclass

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"HTTP/\d+(?:\.\d+)?[ \t]+(\d{3})(?!\d)", re.IGNORECASE)
_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([^\s"';,]+)""", re.IGNORECASE)
# Bytes that text does not contain: https://mimesniff.spec.whatwg.org/#binary-data-byte
_BINARY = re.compile(rb"[\x00-\x08\x0b\x0e-\x1a\x1c-\x1f]")
# Start of a Zstandard frame or skippable frame (RFC 8878, 3.1).
_ZSTD_FRAME = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")
_MAX_CODINGS = 5
TOO_LARGE = "records too large"
_CUT_OFF = "responses cut off"


class Unreadable(Exception):
    """A record without a usable page or text; the message is the reason in the counts."""


@dataclass
class Response:
    """A response with its body as it was sent.

    Attributes:
      status: status code, not 1xx.
      headers: (name in lower case, value) in order.
      encoded_body: body before its codings are removed.
    """

    status: int
    headers: list[tuple[str, str]]
    encoded_body: bytes

    @property
    def media_type(self) -> str:
        """Returns the media type in lower case, or ""."""
        return self._header("content-type").partition(";")[0].strip().lower()

    @property
    def charset(self) -> str:
        """Returns the declared character encoding, or ""."""
        return charset_of(self._header("content-type"))

    def body(self, limit: int, coded_by=("content-encoding", "transfer-encoding")) -> bytes:
        """Returns the decoded body.

        Args:
          limit: maximum bytes of the decoded body.
          coded_by: names of the headers whose codings must be removed.

        Raises:
          Unreadable: the body cannot be decoded, is truncated or exceeds the limit.
        """
        codings = [coding for name in coded_by for coding in self._codings(name)]
        if len(codings) > _MAX_CODINGS:
            raise Unreadable("responses with too many codings")
        body = self.encoded_body
        for coding in reversed(codings):
            body = decode_coding(body, coding, limit)
        length = self._header("content-length").strip()
        has_coding = any(coding == "chunked" or coding in _CODINGS for coding in codings)
        if not has_coding and length.isdecimal() and len(length) < 20 and len(body) < int(length):
            raise Unreadable(_CUT_OFF)
        if len(body) > limit:
            raise Unreadable(TOO_LARGE)
        return body

    def _header(self, name: str) -> str:
        return next((value for key, value in self.headers if key == name), "")

    def _codings(self, name: str) -> list[str]:
        values = ",".join(value for key, value in self.headers if key == name)
        codings = (value.partition(";")[0].strip().lower() for value in values.split(","))
        return [coding for coding in codings if coding not in ("", "identity", "none")]


def charset_of(content_type: str) -> str:
    """Returns the charset of a Content-Type, or ""."""
    match = _CHARSET.search(content_type)
    return match.group(1) if match else ""


def parse(block: bytes) -> Response:
    """Parses the block of a `response` record; raises `Unreadable` if it has no HTTP headers."""
    while True:
        status = _STATUS.match(block)
        if not status:
            is_incomplete_status = b"HTTP/".startswith(block[:5].upper()) and b"\n" not in block
            raise Unreadable(_CUT_OFF if is_incomplete_status else "responses without HTTP headers")
        end = _HEAD_END.search(block)
        if not end:
            raise Unreadable(_CUT_OFF)
        head, code = block[: end.start()], int(status.group(1))
        block = block[end.end() :]
        if not 100 <= code < 200:
            return Response(code, _headers(head), block)


def _headers(head: bytes) -> list[tuple[str, str]]:
    headers: list[tuple[str, str]] = []
    for line in head.decode("latin-1").split("\n")[1:]:
        if line[:1] in (" ", "\t") and headers:  # folded
            headers[-1] = (headers[-1][0], f"{headers[-1][1]} {line.strip()}")
            continue
        name, _, value = line.partition(":")
        headers.append((name.strip().lower(), value.strip()))
    return headers


def decode_coding(body: bytes, coding: str, limit: int) -> bytes:
    """Removes one transfer or content coding from a body.

    Args:
      body: encoded bytes.
      coding: name in lower case. An unknown coding is ignored, as in browsers.
      limit: maximum bytes of the result.

    Raises:
      Unreadable: the body is not in the declared coding, is truncated or exceeds the limit.
    """
    if coding == "chunked":
        return _join_chunks(body)
    unpack = _CODINGS.get(coding)
    if unpack is None:
        if _BINARY.search(body[:1445]):
            raise Unreadable("responses of an unknown content coding")
        return body
    if not body:
        return body
    decoded_body, complete = unpack(body, limit)
    if len(decoded_body) > limit:
        raise Unreadable(TOO_LARGE)
    if not complete:
        raise Unreadable(_CUT_OFF)
    return decoded_body


def _join_chunks(body: bytes) -> bytes:
    pieces, offset = [], 0
    while offset < len(body):
        end = body.find(b"\n", offset, offset + 4096)
        line = body[offset:] if end < 0 else body[offset:end]
        size = line.partition(b";")[0].strip(b" \t\r")
        if not re.fullmatch(rb"0*[0-9A-Fa-f]{1,16}", size):
            raise Unreadable("responses with invalid chunks")
        count = int(size, 16)
        if end >= 0 and not count:
            return b"".join(pieces)
        if end < 0 or end + 1 + count >= len(body):
            break
        pieces.append(body[end + 1 : end + 1 + count])
        offset = end + 1 + count
        if not re.match(rb"\r?\n|\r\Z", body[offset : offset + 2]):
            raise Unreadable("responses with invalid chunks")
        offset += 2 if body[offset] == 0x0D else 1
    raise Unreadable(_CUT_OFF)


# --- content codings: (body, limit) -> (at most limit + 1 bytes, whether the body is complete) ----


def _inflate(body: bytes, limit: int, bits: tuple[int, ...]) -> tuple[bytes, bool]:
    for window_bits in bits:
        pieces, size, rest = [], 0, body
        try:
            while True:
                unpacker = zlib.decompressobj(window_bits)
                pieces.append(unpacker.decompress(rest, limit + 1 - size))
                size += len(pieces[-1])
                rest = unpacker.unused_data
                if size > limit or not unpacker.eof or not rest.startswith(b"\x1f\x8b"):
                    return b"".join(pieces), unpacker.eof
        except zlib.error:
            continue
    raise Unreadable("responses with a wrong content coding")


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
        raise Unreadable("responses with a wrong content coding") from None
    return b"".join(pieces), unpacker.is_finished()


def _zstandard(body: bytes, limit: int) -> tuple[bytes, bool]:
    import zstandard

    # The largest window that RFC 9659 allows.
    frames = zstandard.ZstdDecompressor(max_window_size=1 << 23)
    frame, pieces, size, offset = None, [], 0, 0
    try:
        while offset < len(body) and size <= limit:
            if frame is None:
                if offset and not _ZSTD_FRAME.match(body, offset):
                    break  # bytes after the last frame are ignored, as after gzip
                frame = frames.decompressobj()
            data = body[offset : offset + 256]  # may decompress to 8 MB
            pieces.append(frame.decompress(data))
            size += len(pieces[-1])
            offset += len(data) - len(frame.unused_data)
            if frame.eof:
                frame = None
    except zstandard.ZstdError:
        raise Unreadable("responses with a wrong content coding") from None
    return b"".join(pieces), frame is None


_GZIP = functools.partial(_inflate, bits=(31,))
# Servers send deflate with the zlib header that the standard requires, and without.
_DEFLATE = functools.partial(_inflate, bits=(15, -15))
_CODINGS = {"gzip": _GZIP, "x-gzip": _GZIP, "deflate": _DEFLATE, "br": _brotli, "zstd": _zstandard}
