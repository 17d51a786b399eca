"""Repairs mojibake, normalizes white space, removes invisible characters, masks personal data.

Letters are not changed, except that Arabic yeh, alef maksura and kaf in Persian text become the
Persian letters. The zero-width non-joiner is kept in scripts that need it.
"""

import functools
import re
import unicodedata
from collections.abc import Mapping

from zoo.data.text.tokenizers import normalize
from zoo.prep.document import Document

# C0 controls except tab and newline, C1 controls, soft hyphen, direction marks, byte order mark,
# interlinear marks, tags, noncharacters.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e007f]"
)
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_SPACES = re.compile("[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_BLANK_LINES = re.compile("\n{3,}")
# ZWNJ and ZWJ are meaningful only between letters and marks of these scripts.
_JOINERS = re.compile("[\u200c\u200d]+")
_NEEDS_JOINERS = re.compile(
    "[\u0600-\u06ef\u06fa-\u08ff\ufb50-\ufdff\ufe70-\ufefc"  # Arabic, Syriac and related scripts
    "\u0900-\u0dff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1800-\u18af]"  # India to Mongolia
)
_EMOJI = re.compile("[\u2600-\u27bf\ufe0f\U0001f000-\U0001faff]")
# Language codes of Persian, and of other languages in Arabic script.
_PERSIAN = ("fa", "fas", "per", "pes", "prs")
_OTHER_ARABIC_SCRIPT = (
    "ar", "ara", "arb", "arz", "ckb", "ku", "ps", "pus", "sd", "snd", "ug", "uig", "ur", "urd",
)  # fmt: skip
# Letters of Persian but not of Arabic: peh, cheh, zheh, gaf, keheh, farsi yeh.
_PERSIAN_ONLY = re.compile("[\u067e\u0686\u0698\u06af\u06a9\u06cc]")
# Letters of Arabic that are rare in Persian: teh marbuta, alef with hamza above and below.
_ARABIC_ONLY = re.compile("[\u0629\u0623\u0625]")
# Letters of Uyghur, Kurdish or Sindhi, in which Arabic yeh and kaf are correct.
_OTHER_LETTERS = re.compile("[\u06c7\u06c6\u06d0\u06ad\u06d5\u067f\u06aa]")


def clean(document: Document, settings: Mapping) -> str:
    """Cleans text and title of a document in place.

    Args:
      document: a document with text.
      settings: section `prep.clean` of the recipe.

    Returns:
      The reason to drop the document: "no text" if no text is left, else "".
    """
    text = document.text
    if settings["repair"] and not text.isascii():
        text = repair_mojibake(text)
    code = document.language.lower().replace("_", "-").partition("-")[0]
    # A declared language without Arabic script may come from a template ("en"): check the text.
    persian = code in _PERSIAN or (code not in _OTHER_ARABIC_SCRIPT and looks_persian(text))
    text = tidy(text, persian)
    title = tidy(document.title)
    for kind in settings["mask"]:
        text, title = mask(text, kind), mask(title, kind)
    document.text, document.title = text, title
    return "" if text else "no text"


def repair_mojibake(text: str) -> str:
    """Returns text without mojibake; quotes, ligatures and character widths are not changed."""
    import ftfy

    return ftfy.fix_text(text, _repair_settings())


@functools.cache
def _repair_settings():
    from ftfy import TextFixerConfig

    return TextFixerConfig(
        unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False,
        fix_character_width=False, remove_terminal_escapes=True, remove_control_chars=False,
        normalization=None, explain=False,
    )  # fmt: skip


def tidy(text: str, persian: bool = False) -> str:
    """Returns NFC text with stripped lines, no invisible characters and no repeated spaces.

    Args:
      text: any str.
      persian: whether Arabic yeh, alef maksura and kaf become the Persian letters.
    """
    text = _LINE_ENDS.sub("\n", text)
    text = _INVISIBLE.sub("", text)
    if not text.isascii():
        text = _JOINERS.sub(_replace_joiner, text)
        text = normalize(text, "persian" if persian else "NFC")
    text = _SPACES.sub(" ", text)
    text = "\n".join([line.strip() for line in text.split("\n")])
    return _BLANK_LINES.sub("\n\n", text).strip()


def _replace_joiner(match: re.Match) -> str:
    text, start, end = match.string, match.start(), match.end()
    before, after = text[start - 1 : start], text[end : end + 1]
    if match.group().startswith("\u200d") and _EMOJI.match(before) and _EMOJI.match(after):
        return "\u200d"
    # A joiner before a space or at the start of the text has no effect.
    if _NEEDS_JOINERS.match(before) and after and not after.isspace():
        return match.group()[0]
    return ""


def looks_persian(text: str) -> bool:
    """Returns whether text in Arabic script is Persian, by letters that only Persian has.

    The threshold is only 1 in 150 letters, because a text that uses Arabic yeh and kaf is
    recognized only by the letters peh, cheh, zheh and gaf.
    """
    sample = text[:4000]
    if _OTHER_LETTERS.search(sample):
        return False
    arabic = sum("\u0600" <= c <= "\u06ff" for c in sample)
    persian = len(_PERSIAN_ONLY.findall(sample))
    return (
        arabic > 0.4 * max(1, sum(c.isalpha() for c in sample))
        and 150 * persian > arabic
        and persian > len(_ARABIC_ONLY.findall(sample))
    )


# --- personal data ------------------------------------------------------------------------------

_DIGIT = "[0-9\u06f0-\u06f9\u0660-\u0669]"
_EMAIL = re.compile(
    r"(?<![\w.+-])[\w.+%-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z\u0600-\u06ff]{2,24}(?![\w-])"
)
_IP4 = re.compile(
    r"(?<![\w.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\w]|\.\d)",
    re.ASCII,
)
_IP6 = re.compile(r"(?<![\w.])[0-9A-Fa-f:]{2,39}(?:\.[0-9.]{5,13})?(?![\w:])", re.ASCII)
# A letter or digit outside Persian and Arabic, which often have no space beside a number.
_LATIN = "[^\\W\u0620-\u065f\u066e-\u06d3\u06fa-\u06ff]"
# An international number, or one with its area code, in groups of digits. `_mask_phone` excludes
# years, dates, prices and plain numbers.
_PHONE = re.compile(
    rf"(?<!{_LATIN})(?<![.,-])(?<!{_DIGIT}[:/])(?:(?:\+|00|\u06f0\u06f0){_DIGIT}{{1,3}}[ .\-/]?)?"
    rf"(?:\({_DIGIT}{{1,5}}\)[ .\-/]?)?"
    rf"{_DIGIT}{{2,11}}(?:[ .\-/]{_DIGIT}{{2,8}}){{0,5}}(?!{_LATIN}|[.,:/-]{_DIGIT})"
)
_URL_PART = re.compile(r"://|www\.|\.\w+/")
_DATE = re.compile(rf"{_DIGIT}{{1,4}}([./-]){_DIGIT}{{1,2}}\1{_DIGIT}{{1,4}}\Z")


def mask(text: str, kind: str) -> str:
    """Returns text with personal data replaced by <email>, <ip> or <phone>.

    A phone number has 8 to 15 ASCII, Persian or Arabic digits, is not part of a URL, and starts
    with +, 00 or 0, or has an area code in parentheses, or has at least 10 digits in three or four
    groups: at most three digits in the first one, and not three in all others (thousands).

    Args:
      text: any str.
      kind: "email", "ip" or "phone".
    """
    if kind == "email":
        return _EMAIL.sub("<email>", text) if "@" in text else text
    if kind == "ip":
        return _IP6.sub(_mask_ip6, _IP4.sub("<ip>", text))
    return _PHONE.sub(_mask_phone, text)


def _mask_ip6(match: re.Match) -> str:
    import ipaddress

    if match.group().count(":") < 2 or match.group() == "::":
        return match.group()
    before = match.string[max(0, match.start() - 20) : match.start()]
    # In "addr:2001:db8::1" an address follows a word; in "1:2001:db8::1" the match is only a part.
    if before.endswith(":") and not re.search(r"\w*[^\W0-9A-Fa-f]\w*:\Z", before):
        return match.group()
    try:
        ipaddress.IPv6Address(match.group())
    except ValueError:
        return match.group()
    return "<ip>"


def _mask_phone(match: re.Match) -> str:
    number = match.group()
    digits = "".join(str(unicodedata.digit(c)) for c in number if c.isdigit())
    groups = [len(group) for group in re.findall(f"{_DIGIT}+", number)]
    has_prefix = number[0] == "+" or digits.startswith("0") or "(" in number
    before = match.string[max(0, match.start() - 200) : match.start()]
    in_url = _URL_PART.search(re.search(r"\S*\Z", before).group())
    if not 8 <= len(digits) <= 15 or _DATE.match(number) or in_url:
        return number
    has_groups = len(groups) in (3, 4) and groups[0] <= 3 and set(groups[1:]) != {3}
    return "<phone>" if has_prefix or (has_groups and len(digits) >= 10) else number
