"""Decodes the bytes of a page or text, with a declared encoding as browsers do.

Encoding labels are those of the WHATWG Encoding Standard (https://encoding.spec.whatwg.org), by the
library webencodings: `shift_jis` means Windows-31J and `iso-8859-9` means Windows-1254. Names that
only Python knows, such as `unicode_escape`, are ignored.
"""

import codecs
import re
from collections.abc import Iterator

import webencodings

# Share of undecodable bytes above which a declared encoding is considered wrong.
MAX_MISFITS = 0.01
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
# Bytes in which a page may declare its encoding. Browsers scan the first 1,024 bytes before
# parsing, but also apply a later <meta> during parsing.
_HEAD = 1 << 16
_XML = re.compile(rb"<\?xml[^>]*?\sencoding\s*=\s*[\"']\s*([\w.:+-]+)", re.IGNORECASE)
_TAG = re.compile(rb"<!--|<[!?]|</?([a-z][^\s/>]*)", re.IGNORECASE)
_ATTRIBUTE = re.compile(
    rb"""[\s/]*([^\s/>][^\s/>=]*)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>"'][^\s>]*)))?"""
)
# Elements whose content is not markup.
_RAW = (b"script", b"style", b"title", b"textarea", b"xmp", b"noframes", b"iframe")
_IN_CONTENT = re.compile(
    rb"""charset\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s;"'][^\s;]*))""", re.IGNORECASE
)
# Encoding of the standard -> Python codec that decodes it.
_PYTHON = {"gbk": "gb18030", "iso-2022-jp": "iso2022_jp_ext"}
_UTF16 = ("utf-16le", "utf-16be")
_JIS_ESCAPE = re.compile(rb"\x1b(?:\$[@B(]|\([IJ])")
# In these encodings a few characters may be valid UTF-8 by chance; many are not.
_TWO_BYTES = ("gbk", "gb18030", "big5", "euc-jp", "shift_jis", "euc-kr")
_FEW = 3  # characters
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SURROGATES = re.compile("[\ud800-\udfff]")
_JIS = str.maketrans("\u301c\u2016\u2212\u00a2\u00a3\u00ac", "\uff5e\u2225\uff0d\uffe0\uffe1\uffe2")
_GB18030 = {0xE5E5: "\u3000", 0xE7C7: "\u1e3f"}
# Characters that Python's codecs decode differently from the standard, with the standard's ones.
_CORRECTIONS = {
    # The bytes A0, FD, FE and FF are invalid Shift_JIS; Python maps them to private characters.
    "shift_jis": dict.fromkeys(range(0xF8F0, 0xF8F4), _REPLACEMENT),
    # JIS X 0208 as in the standard and Windows.
    "euc-jp": _JIS,
    "iso-2022-jp": _JIS,
    "gbk": _GB18030,
    "gb18030": _GB18030,
    "koi8-u": {0x255D: "\u045e", 0x256C: "\u040e"},  # as in KOI8-RU
}


def decode(content: bytes, declared_encoding: str = "", page: bool = True) -> str:
    """Decodes bytes to text.

    The first of these that applies decides:

    1. the byte order mark;
    2. UTF-8, if the bytes are UTF-8 (the declared encoding, if only a few characters fit both);
    3. the declared encoding, with U+FFFD for each undecodable byte, unless there is more than one
       and their share exceeds MAX_MISFITS;
    4. detection from the bytes.

    Args:
      content: any bytes.
      declared_encoding: label of the encoding from an HTTP header, or "".
      page: whether a <meta> or XML declaration inside the content counts too.
    """
    for mark, codec in _BOMS:
        if content.startswith(mark):
            return replace_surrogates(content[len(mark) :].decode(codec, "replace"))
    encodings = _declared_encodings(content, declared_encoding, page)
    for encoding in encodings:
        if encoding.name == "iso-2022-jp" and _JIS_ESCAPE.search(content):
            return _decode_as(content, encoding)
        # 7-bit encodings that browsers do not decode either.
        escapes = content.isascii() and (b"\x1b" in content or b"~{" in content)
        if encoding.name == "replacement" and escapes:
            return _REPLACEMENT
    encodings = [encoding for encoding in encodings if encoding.name != "replacement"]
    if not (b"\0" in content and encodings and encodings[0].name in _UTF16):
        text = _decode_if_utf8(content, encodings)
        if text is not None:
            return text
    texts = [_decode_as(content, encoding) for encoding in encodings]
    for text in texts:
        if _fits(text, content):
            return text
    from trafilatura.utils import detect_encoding

    for name in detect_encoding(content):
        encoding = webencodings.lookup(name)
        try:
            text = _decode_as(content, encoding) if encoding else content.decode(name)
        except (LookupError, ValueError):
            continue
        if _REPLACEMENT not in text:
            return replace_surrogates(text)
    texts.append(content.decode(errors="replace"))
    return min(texts, key=lambda text: text.count(_REPLACEMENT))


def decode_utf8(content: bytes) -> str | None:
    """Decodes a format that must be UTF-8, such as JSON; returns None if too many bytes are not.

    Undecodable bytes become U+FFFD.
    """
    text = content.removeprefix(codecs.BOM_UTF8).decode(errors="replace")
    return text if _fits(text, content) else None


def _fits(text: str, content: bytes) -> bool:
    return text.count(_REPLACEMENT) <= max(1, MAX_MISFITS * len(content))


def replace_surrogates(text: str) -> str:
    """Replaces lone surrogates, which JSON can contain and UTF-8 cannot."""
    return _SURROGATES.sub(_REPLACEMENT, text)


def _declared_encodings(
    content: bytes, declared_encoding: str, page: bool
) -> list[webencodings.Encoding]:
    """Returns the declared encodings in order of priority."""
    labels = [declared_encoding]
    if page:
        labels += _meta_charsets(content[:_HEAD])
        if match := _XML.match(content, 0, _HEAD):
            labels.append(match.group(1).decode("latin-1"))
    encodings = [webencodings.lookup(label) for label in labels]
    # A page that declares UTF-16 in ASCII-compatible bytes is not UTF-16.
    return [
        webencodings.UTF8 if number and encoding.name in _UTF16 else encoding
        for number, encoding in enumerate(encodings)
        if encoding
    ]


def _meta_charsets(content: bytes) -> Iterator[str]:
    """Yields the labels of <meta charset> and <meta http-equiv=content-type>, in page order.

    https://html.spec.whatwg.org/multipage/parsing.html#prescan-a-byte-stream-to-determine-its-encoding
    Skips scripts and other raw text, as a browser's parser does.
    """
    offset = 0
    while match := _TAG.search(content, offset):
        offset = match.end()
        tag = match.group().lower()
        if tag in (b"<!--", b"<!", b"<?"):
            end = b"-->" if tag == b"<!--" else b">"
            offset = content.find(end, offset - 2 if tag == b"<!--" else offset) + len(end)
            if offset < len(end):
                return
            continue
        attributes: dict[bytes, bytes] = {}
        while attribute := _ATTRIBUTE.match(content, offset):
            offset = attribute.end()
            value = next((v for v in attribute.groups()[1:] if v is not None), b"")
            attributes.setdefault(attribute.group(1).lower(), value)
        if tag == b"<meta":
            label = attributes.get(b"charset")
            if label is None and attributes.get(b"http-equiv", b"").lower() == b"content-type":
                match = _IN_CONTENT.search(attributes.get(b"content", b""))
                label = match and next(v for v in match.groups() if v is not None)
            if label:
                yield label.decode("latin-1")
        elif tag[1:] in _RAW:
            end = re.compile(rb"</" + tag[1:] + rb"[\s/>]", re.IGNORECASE).search(content, offset)
            if not end:
                return
            offset = end.end()


def _decode_if_utf8(content: bytes, encodings: list[webencodings.Encoding]) -> str | None:
    """Returns text if the bytes are UTF-8 with at most a few stray bytes, else None.

    Long text in another encoding is hardly ever valid UTF-8, but short Chinese or Japanese text may
    be.

    Args:
      content: any bytes.
      encodings: declared encodings. If one is not UTF-8, fewer stray bytes are accepted.
    """
    has_other_encoding = any(encoding.name != "utf-8" for encoding in encodings)
    try:
        text, bad = content.decode(), 0
    except UnicodeDecodeError:
        text = content.decode(errors="replace")
        bad = text.count(_REPLACEMENT)
    good = len(text) - sum(map(str.isascii, text)) - bad
    if bad:
        return text if good > (10 * bad if has_other_encoding else bad) else None
    if 0 < good <= _FEW and encodings and all(e.name in _TWO_BYTES for e in encodings):
        return None if _REPLACEMENT not in _decode_as(content, encodings[0]) else text
    return text


def _decode_as(content: bytes, encoding: webencodings.Encoding) -> str:
    name = encoding.codec_info.name
    if encoding.name == "x-user-defined":  # in a <meta> it means Windows-1252
        name = "cp1252"
    text = content.decode(_PYTHON.get(encoding.name, name), "as_browsers")
    return replace_surrogates(text.translate(_CORRECTIONS.get(encoding.name, {})))


def _decode_like_browsers(error: UnicodeDecodeError) -> tuple[str, int]:
    """Decodes bytes that the standard defines and Python's codecs reject; U+FFFD for the rest."""
    pair = error.object[error.start : error.start + 2]
    if error.encoding == "charmap" and pair[0] < 0xA0:
        return chr(pair[0]), error.start + 1  # C1 controls
    if error.encoding == "gb18030" and pair[0] == 0x80:
        return "€", error.start + 1
    if error.encoding == "big5hkscs" and pair == b"\xa3\xe1":
        return "€", error.start + 2
    if error.encoding.startswith(("euc_jp", "iso2022_jp")):
        row, cell = (byte & 0x7F for byte in (*pair, 0)[:2])
        eight_bits = error.encoding == "euc_jp"
        if (
            0x21 <= row <= 0x7E
            and 0x21 <= cell <= 0x7E
            and all(b > 0x7F for b in pair) == eight_bits
        ):
            # NEC and IBM extension characters, at their position in Shift_JIS.
            first = (row + 1) // 2 + (0x70 if row < 0x5F else 0xB0)
            second = cell + (0x1F + (cell >= 0x60) if row % 2 else 0x7E)
            try:
                return bytes([first, second]).decode("cp932"), error.start + 2
            except UnicodeDecodeError:
                pass
    # One byte, where browsers skip two: decoding resynchronizes after a stray or missing byte.
    return _REPLACEMENT, error.end


codecs.register_error("as_browsers", _decode_like_browsers)
