"""Holds stop words and sentence ends, and identifies languages."""

import functools
import re
import unicodedata

# Prose contains at least two of these words. The English ones are those of Gopher.
STOP_WORDS = {
    "en": "the be to of and that have with",
    "de": "der die das und ist in zu den mit nicht von ein eine auf für",
    "fr": "le la les de des et est un une que dans pour pas sur",
    "es": "el la los las de y que en un una es con por para",
    "it": "il lo la gli le di e che un una è per con non",
    "pt": "o a os as de e que em um uma é com para não",
    "nl": "de het een en van is in dat niet op met voor",
    "pl": "i w na z się nie do to że jest o po jak",
    "ru": "и в не на что с по это как он к из у за",
    "tr": "ve bir bu da de için ile çok ne olarak daha",
    "ar": "من في على أن إلى هذا هذه التي الذي لا ما عن مع كان",
    "fa": "و در به از که این را با است آن برای تا بر هم خود یک ها های شد می",
}
STOP_WORDS = {code: frozenset(words.split()) for code, words in STOP_WORDS.items()}


def _marks() -> str:
    """Returns the combining marks, which `\\w` does not match, as ranges of a pattern."""
    ranges: list[list[int]] = []
    for code in range(0x300, 0x20000):  # no script of later planes has marks
        # 0xFE00 to 0xFE0F select the form of an emoji.
        if unicodedata.category(chr(code)) in ("Mn", "Mc") and not 0xFE00 <= code <= 0xFE0F:
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"{chr(first)}-{chr(last)}" for first, last in ranges)


# Characters of words, for a character class: vowel signs are part of words in Hindi and Arabic.
LETTERS = rf"\w{_marks()}"

# Full stop, question and exclamation marks of all scripts, and closing quotation marks.
ENDS = ".!?…\u061f\u06d4\u0964\u0965\u3002\uff01\uff1f\uff0e"
CLOSING = "\"'”’»)]›"
_SENTENCE_END = re.compile(rf"[{re.escape(ENDS)}]+[{re.escape(CLOSING)}]*(?=\s|$)")
_TEXT_END = re.compile(rf"[{re.escape(ENDS)}]+[{re.escape(CLOSING)}]*\Z")
_LINE_ENDS = tuple(ENDS + "\"'”’»")
_CJK_END = re.compile("[\u3002\uff01\uff1f]")


def ends_line(line: str) -> bool:
    """Returns whether a line ends with a sentence end or quotation mark, as in FineWeb."""
    return line.endswith(_LINE_ENDS)


def ends_sentence(line: str) -> bool:
    """Returns whether a line ends a sentence, in any script; "..." does not, as in C4."""
    stripped_line = line.rstrip(CLOSING)
    if stripped_line.endswith(("...", "…")):
        return False
    return stripped_line.endswith(tuple(ENDS)) or (line != stripped_line and line[-1] in '"”»')


def count_sentences(text: str) -> int:
    """Returns the number of sentences, including an unfinished last one."""
    ends = len(_SENTENCE_END.findall(text)) + (
        len(_CJK_END.findall(text)) if "\u3002" in text else 0
    )
    return ends + bool(text.strip() and not _TEXT_END.search(text.rstrip()[-20:]))


@functools.cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def identify(text: str) -> tuple[str, float]:
    """Returns (ISO 639-1 code, probability) of the language, by py3langid (97 languages)."""
    # The start of the text is enough; the time grows with the length.
    code, probability = _identifier().classify(text[:3000])
    return str(code), float(probability)
