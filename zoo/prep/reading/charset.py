"""Decodes the bytes of a page or text as browsers do, where the page says how.

The labels are those of the WHATWG Encoding Standard (https://encoding.spec.whatwg.org), by the
library webencodings: `shift_jis` means Windows-31J, `iso-8859-9` means Windows-1254, and names that
only Python knows, such as `unicode_escape`, mean nothing.
"""

import codecs
import re

import webencodings

# More misfits than this share of the bytes, and the declared encoding is a wrong one.
MAX_MISFITS = 0.01
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"), (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_DECLARED = re.compile(
    rb"""<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*["']?\s*([\w.:+-]+)""",
    re.IGNORECASE,
)
# Python codecs that decode what the standard's decoder of this name does.
_PYTHON = {"gbk": "gb18030", "iso-2022-jp": "iso2022_jp_ext"}
_UTF16 = ("utf-16le", "utf-16be")
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SURROGATES = re.compile("[\ud800-\udfff]")
# The single bytes A0, FD, FE and FF are no Shift_JIS; Python maps them to private characters.
_NO_SHIFT_JIS = dict.fromkeys(range(0xF8F0, 0xF8F4), _REPLACEMENT)
# JIS X 0208 as the standard and Windows have it.
_JIS = str.maketrans("\u301c\u2016\u2212\u00a2\u00a3\u00ac", "\uff5e\u2225\uff0d\uffe0\uffe1\uffe2")


def decode(content: bytes, declared: str = "", page: bool = True) -> str:
    """Returns the text of bytes.

    In this order: by the byte order mark; as UTF-8, where the bytes are UTF-8; as declared, with
    U+FFFD for each byte that does not fit, unless these are more than MAX_MISFITS of all bytes; as
    the bytes look.

    Args:
      content: any bytes.
      declared: label of the encoding from an HTTP header, or "".
      page: whether a <meta> or an XML declaration inside counts too.
    """
    for mark, codec in _BOMS:
        if content.startswith(mark):
            return without_surrogates(content[len(mark) :].decode(codec, "replace"))
    encodings = _declared(content, declared, page)
    if content.isascii():
        for encoding in encodings:
            if encoding.name == "iso-2022-jp" and b"\x1b" in content:
                return _decoded(content, encoding)
            # Encodings of seven bits that browsers do not decode, to the same end.
            if encoding.name == "replacement" and (b"\x1b" in content or b"~{" in content):
                return _REPLACEMENT
    encodings = [encoding for encoding in encodings if encoding.name != "replacement"]
    if not (b"\0" in content and encodings and encodings[0].name in _UTF16):
        text = _utf8(content, any(encoding.name != "utf-8" for encoding in encodings))
        if text is not None:
            return text
    for encoding in encodings:
        text = _decoded(content, encoding)
        if text.count(_REPLACEMENT) <= MAX_MISFITS * len(content):
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
    return content.decode(errors="replace")


def without_surrogates(text: str) -> str:
    """Returns text that UTF-8 can hold: JSON can spell half a surrogate pair."""
    return _SURROGATES.sub(_REPLACEMENT, text)


def _declared(content: bytes, declared: str, page: bool) -> list[webencodings.Encoding]:
    found = [webencodings.lookup(declared)]
    if page:
        for match in _DECLARED.finditer(_COMMENT.sub(b"", content[:4096])):
            encoding = webencodings.lookup(match.group(1).decode("latin-1"))
            if encoding:
                # What could be read so far is ASCII.
                found.append(webencodings.UTF8 if encoding.name in _UTF16 else encoding)
                break
    return [encoding for encoding in found if encoding]


def _utf8(content: bytes, other: bool) -> str | None:
    """Returns text where the bytes are UTF-8, perhaps with a stray byte; None where they are not.

    Bytes of no other encoding look like UTF-8: Chinese and Japanese ones where a third does.

    Args:
      other: whether another encoding is declared; that takes more to be wrong.
    """
    try:
        return content.decode()
    except UnicodeDecodeError:
        text = content.decode(errors="replace")
    bad = text.count(_REPLACEMENT)
    good = len(text) - sum(map(str.isascii, text)) - bad
    return text if good > (10 * bad if other else bad) else None


def _decoded(content: bytes, encoding: webencodings.Encoding) -> str:
    name = encoding.codec_info.name
    if encoding.name == "x-user-defined":  # of a <meta>, Windows-1252 is meant
        name = "cp1252"
    text = content.decode(_PYTHON.get(encoding.name, name), "as_browsers")
    if encoding.name == "shift_jis":
        text = text.translate(_NO_SHIFT_JIS)
    elif encoding.name in ("euc-jp", "iso-2022-jp"):
        text = text.translate(_JIS)
    return without_surrogates(text)


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
    return _REPLACEMENT, error.end


codecs.register_error("as_browsers", _as_browsers)
