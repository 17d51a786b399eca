"""Decodes the bytes of a page or text as browsers do, where the page says how.

The labels are those of the WHATWG Encoding Standard (https://encoding.spec.whatwg.org), by the
library webencodings: `shift_jis` means Windows-31J, `iso-8859-9` means Windows-1254, and names that
only Python knows, such as `unicode_escape`, mean nothing.
"""

import codecs
import re
from collections.abc import Iterator

import webencodings

# More misfits than this share of the bytes, and the declared encoding is a wrong one.
MAX_MISFITS = 0.01
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
# Where a page may declare its encoding. Browsers look at 1,024 bytes before they parse, and heed a
# later <meta> while they parse.
_HEAD = 1 << 16
_XML = re.compile(rb"<\?xml[^>]*?\sencoding\s*=\s*[\"']\s*([\w.:+-]+)", re.IGNORECASE)
_TAG = re.compile(rb"<!--|<[!?]|</?([a-z][^\s/>]*)", re.IGNORECASE)
_ATTRIBUTE = re.compile(
    rb"""[\s/]*([^\s/>][^\s/>=]*)(?:\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s>"'][^\s>]*)))?"""
)
# Elements whose content is no markup.
_RAW = (b"script", b"style", b"title", b"textarea", b"xmp", b"noframes", b"iframe")
_IN_CONTENT = re.compile(
    rb"""charset\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s;"'][^\s;]*))""", re.IGNORECASE
)
# Python codecs that decode what the standard's decoder of this name does.
_PYTHON = {"gbk": "gb18030", "iso-2022-jp": "iso2022_jp_ext"}
_UTF16 = ("utf-16le", "utf-16be")
_JIS_ESCAPE = re.compile(rb"\x1b(?:\$[@B(]|\([IJ])")
# Two bytes of these are often UTF-8 too, many such pairs never.
_TWO_BYTES = ("gbk", "gb18030", "big5", "euc-jp", "shift_jis", "euc-kr")
_FEW = 3  # characters
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SURROGATES = re.compile("[\ud800-\udfff]")
_JIS = str.maketrans("\u301c\u2016\u2212\u00a2\u00a3\u00ac", "\uff5e\u2225\uff0d\uffe0\uffe1\uffe2")
_GB18030 = {0xE5E5: "\u3000", 0xE7C7: "\u1e3f"}
# What Python's codecs decode otherwise than the standard.
_OTHERWISE = {
    # The single bytes A0, FD, FE and FF are no Shift_JIS; Python maps them to private characters.
    "shift_jis": dict.fromkeys(range(0xF8F0, 0xF8F4), _REPLACEMENT),
    # JIS X 0208 as the standard and Windows have it.
    "euc-jp": _JIS,
    "iso-2022-jp": _JIS,
    "gbk": _GB18030,
    "gb18030": _GB18030,
    "koi8-u": {0x255D: "\u045e", 0x256C: "\u040e"},  # as in KOI8-RU
}


def decode(content: bytes, declared: str = "", page: bool = True) -> str:
    """Returns the text of bytes.

    In this order: by the byte order mark; as UTF-8, where the bytes are UTF-8 (but as declared,
    where no more than a few characters fit both); as declared, with U+FFFD for each byte that does
    not fit, unless these are more than one and more than MAX_MISFITS of all bytes; as the bytes
    look.

    Args:
      content: any bytes.
      declared: label of the encoding from an HTTP header, or "".
      page: whether a <meta> or an XML declaration inside counts too.
    """
    for mark, codec in _BOMS:
        if content.startswith(mark):
            return without_surrogates(content[len(mark) :].decode(codec, "replace"))
    encodings = _declared(content, declared, page)
    for encoding in encodings:
        if encoding.name == "iso-2022-jp" and _JIS_ESCAPE.search(content):
            return _decoded(content, encoding)
        # Encodings of seven bits that browsers do not decode, to the same end.
        escapes = content.isascii() and (b"\x1b" in content or b"~{" in content)
        if encoding.name == "replacement" and escapes:
            return _REPLACEMENT
    encodings = [encoding for encoding in encodings if encoding.name != "replacement"]
    if not (b"\0" in content and encodings and encodings[0].name in _UTF16):
        text = _utf8(content, encodings)
        if text is not None:
            return text
    texts = [_decoded(content, encoding) for encoding in encodings]
    for text in texts:
        if _fits(text, content):
            return text
    from trafilatura.utils import detect_encoding

    for name in detect_encoding(content):
        encoding = webencodings.lookup(name)
        try:
            text = _decoded(content, encoding) if encoding else content.decode(name)
        except (LookupError, ValueError):
            continue
        if _REPLACEMENT not in text:
            return without_surrogates(text)
    texts.append(content.decode(errors="replace"))
    return min(texts, key=lambda text: text.count(_REPLACEMENT))


def as_utf8(content: bytes) -> str | None:
    """Returns the text of what is UTF-8 by its format, such as JSON; None where much does not fit.

    A byte that does not fit is U+FFFD.
    """
    text = content.removeprefix(codecs.BOM_UTF8).decode(errors="replace")
    return text if _fits(text, content) else None


def _fits(text: str, content: bytes) -> bool:
    return text.count(_REPLACEMENT) <= max(1, MAX_MISFITS * len(content))


def without_surrogates(text: str) -> str:
    """Returns text that UTF-8 can hold: JSON can spell half a surrogate pair."""
    return _SURROGATES.sub(_REPLACEMENT, text)


def _declared(content: bytes, declared: str, page: bool) -> list[webencodings.Encoding]:
    """Returns the encodings that are declared, the one that counts first."""
    labels = [declared]
    if page:
        labels += _of_metas(content[:_HEAD])
        if match := _XML.match(content, 0, _HEAD):
            labels.append(match.group(1).decode("latin-1"))
    found = [webencodings.lookup(label) for label in labels]
    # Where the page itself says UTF-16, it was read as ASCII so far.
    return [
        webencodings.UTF8 if number and encoding.name in _UTF16 else encoding
        for number, encoding in enumerate(found)
        if encoding
    ]


def _of_metas(content: bytes) -> Iterator[str]:
    """Yields the labels of <meta charset> and of <meta http-equiv=content-type>, in their order.

    https://html.spec.whatwg.org/multipage/parsing.html#prescan-a-byte-stream-to-determine-its-encoding
    and, as a browser's parser does, outside of scripts and other raw text.
    """
    place = 0
    while match := _TAG.search(content, place):
        place = match.end()
        tag = match.group().lower()
        if tag in (b"<!--", b"<!", b"<?"):
            end = b"-->" if tag == b"<!--" else b">"
            place = content.find(end, place - 2 if tag == b"<!--" else place) + len(end)
            if place < len(end):
                return
            continue
        found: dict[bytes, bytes] = {}
        while attribute := _ATTRIBUTE.match(content, place):
            place = attribute.end()
            value = next((v for v in attribute.groups()[1:] if v is not None), b"")
            found.setdefault(attribute.group(1).lower(), value)
        if tag == b"<meta":
            label = found.get(b"charset")
            if label is None and found.get(b"http-equiv", b"").lower() == b"content-type":
                match = _IN_CONTENT.search(found.get(b"content", b""))
                label = match and next(v for v in match.groups() if v is not None)
            if label:
                yield label.decode("latin-1")
        elif tag[1:] in _RAW:
            end = re.compile(rb"</" + tag[1:] + rb"[\s/>]", re.IGNORECASE).search(content, place)
            if not end:
                return
            place = end.end()


def _utf8(content: bytes, encodings: list[webencodings.Encoding]) -> str | None:
    """Returns text where the bytes are UTF-8, perhaps with a stray byte; None where they are not.

    Many bytes of no other encoding look like UTF-8: Chinese and Japanese ones where a third does.

    Args:
      encodings: that are declared. Where none of them is UTF-8, that takes more to be wrong.
    """
    other = any(encoding.name != "utf-8" for encoding in encodings)
    try:
        text, bad = content.decode(), 0
    except UnicodeDecodeError:
        text = content.decode(errors="replace")
        bad = text.count(_REPLACEMENT)
    good = len(text) - sum(map(str.isascii, text)) - bad
    if bad:
        return text if good > (10 * bad if other else bad) else None
    if 0 < good <= _FEW and encodings and all(e.name in _TWO_BYTES for e in encodings):
        return None if _REPLACEMENT not in _decoded(content, encodings[0]) else text
    return text


def _decoded(content: bytes, encoding: webencodings.Encoding) -> str:
    name = encoding.codec_info.name
    if encoding.name == "x-user-defined":  # of a <meta>, Windows-1252 is meant
        name = "cp1252"
    text = content.decode(_PYTHON.get(encoding.name, name), "as_browsers")
    return without_surrogates(text.translate(_OTHERWISE.get(encoding.name, {})))


def _as_browsers(error: UnicodeDecodeError) -> tuple[str, int]:
    """Decodes what the standard has and Python's codecs lack; U+FFFD for the rest."""
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
            # The characters of NEC and IBM, by their place in Shift_JIS.
            first = (row + 1) // 2 + (0x70 if row < 0x5F else 0xB0)
            second = cell + (0x1F + (cell >= 0x60) if row % 2 else 0x7E)
            try:
                return bytes([first, second]).decode("cp932"), error.start + 2
            except UnicodeDecodeError:
                pass
    # One byte, where browsers pass over two: behind a stray or missing byte this finds the next
    # character again.
    return _REPLACEMENT, error.end


codecs.register_error("as_browsers", _as_browsers)
