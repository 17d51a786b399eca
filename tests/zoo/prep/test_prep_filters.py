"""Tests every rule with texts that it keeps and drops, in English and in Persian."""

import inspect

import pytest

from tests import pages

pytest.importorskip("trafilatura", reason="needs the extra `prep`")

from zoo.errors import RunError, UsageError
from zoo.prep.cleaning import filters
from zoo.prep.document import Document
from zoo.prep.settings import defaults

ENGLISH = pages.paragraphs(7, 24)
PERSIAN_LINES = (
    "رئیس جمهور گفت که این طرح برای مردم کشور در سال ۱۳۹۹ آماده می‌شود و با آن کار خواهند کرد.",
    "او به خبرنگاران گفت: «آیا این راه از همه بهتر نیست؟»",
    "در این شهر کوچک، خانه‌های قدیمی بسیار است و مردم آن را دوست دارند!",
    "کتاب‌ها را از روی میز برداشت و به برادر خود داد تا در راه بخواند.",
    "باران تمام شب بارید و صبح، رودخانه از پل بالاتر آمده بود.",
    "هر روز پیش از آفتاب به باغ می‌رفت، درخت‌ها را آب می‌داد و برمی‌گشت.",
)
PERSIAN = "\n".join(PERSIAN_LINES)


def reason(rule, text, language="en", url="", **changes):
    document = Document(text=text, language=language, url=url)
    return filters.RULES[rule](document, {**defaults()[rule], **changes}), document


@pytest.mark.parametrize("rule", sorted(filters.RULES))
@pytest.mark.parametrize(("text", "language"), [(ENGLISH, "en"), (PERSIAN, "fa")])
def test_prose_passes_every_rule(rule, text, language):
    changes = {} if rule != "gopher_repetition" else {"max_duplicate_ngrams": ()}
    dropped, document = reason(rule, text, language, "http://example.org/a", **changes)
    assert dropped == ""
    assert document.text == text
    assert document.language == language


def test_every_rule_uses_all_of_its_settings():
    prep = defaults()
    assert tuple(prep["rules"]) == tuple(filters.RULES)
    for name, rule in filters.RULES.items():
        source = inspect.getsource(rule) + inspect.getsource(filters._passes_c4)
        for key in prep[name]:
            dynamic = name == "gopher_repetition" and key.startswith("max_duplicate")
            assert dynamic or f'settings["{key}"]' in source, (name, key)


@pytest.mark.parametrize(
    ("rule", "text", "expected"),
    [
        ("gopher_quality", "too short.", "few words"),
        ("gopher_quality", "a b c " * 50, "short words"),
        ("gopher_quality", "extraordinarily incomprehensible " * 50, "long words"),
        ("gopher_quality", "the #wonderful tags of " * 50, "symbols"),
        ("gopher_quality", "the of some... " * 30, "symbols"),
        ("gopher_quality", "\n".join(f"- point {i} of the list" for i in range(40)), "bullets"),
        ("gopher_quality", "another wonderful tale of the town it was...\n" * 9, "symbols"),
        ("gopher_quality", f"{'the tales of a wonderful town ' * 3}...\n" * 9, "ellipses"),
        ("gopher_quality", "the numbers of 123 456 789 " * 20, "few letters"),
        ("gopher_quality", "buy cheap watches online today " * 20, "stop words"),
        ("gopher_repetition", "one line\n" * 10, "lines"),
        ("gopher_repetition", "a par\n\n" * 10, "paragraphs"),
        ("gopher_repetition", "buy now " * 50, "top 2-gram"),
        ("c4", "Lorem ipsum dolor. " + ENGLISH, "lorem ipsum"),
        ("c4", "if (x) { return } " + ENGLISH, "curly bracket"),
        ("c4", "One sentence of words. And two of them.", "few sentences"),
        ("c4", "word\n" * 10, "no lines"),
        ("fineweb", "\n".join(f"Some heading number {i} of many more headings" for i in range(9)),
         "lines without end"),
        ("fineweb", "\n".join(f"Short {i}." for i in range(20)), "short lines"),
        ("fineweb", f"{ENGLISH}\n{ENGLISH}", "repeated lines"),
        ("fineweb", "\n\n\n\n".join(f"{w * 31}." for w in "abcdefgh"), "line ends"),
        ("toxicity", "you fucking bitch " + "word " * 20, "toxic"),
    ],
)  # fmt: skip
def test_text_that_is_not_prose_is_dropped(rule, text, expected):
    assert reason(rule, text)[0] == expected


def test_persian_text_is_filtered_by_persian_words():
    no_stop_words = "ساعت ارزان خرید آنلاین تخفیف ویژه محصول جدید " * 10
    assert reason("gopher_quality", no_stop_words, "fa")[0] == "stop words"
    assert reason("gopher_quality", no_stop_words, "sw")[0] == ""  # a language without a list
    titles = "\n".join(f"عنوان خبر شمارهٔ {i} از خبرهای امروز در این شهر" for i in range(9))
    assert reason("fineweb", titles, "fa")[0] == "lines without end"
    assert reason("toxicity", "جنده " * 5 + PERSIAN, "fa")[0] == "toxic"
    assert reason("c4", "خانه. کتاب؟", "fa")[0] == "no lines"
    assert reason("c4", "آیا او به خانه رفت؟ به خانه رفت.", "fa")[0] == "few sentences"


def test_c4_removes_lines():
    noise = "Please enable Javascript to see this page.\nWe use cookies to serve you.\nMenu\n"
    dropped, document = reason("c4", noise + ENGLISH)
    assert dropped == ""
    assert document.text == ENGLISH
    text = "A title without a full stop\n" + ENGLISH
    assert reason("c4", text, terminal_punctuation=True)[1].text == ENGLISH


def test_only_listed_languages_are_kept():
    assert reason("language", PERSIAN, keep=("fa", "en"))[0] == ""
    assert reason("language", ENGLISH, keep=("fa",))[0] == "is en"
    dropped, document = reason("language", "ok 123", keep=("fa", "en"), least=0.999)
    assert dropped
    assert document.language


def test_addresses(tmp_path):
    (tmp_path / "domains.txt").write_text("# a list\nbad.org\n\n")
    changes = {"blocked_domains": str(tmp_path / "domains.txt")}
    for url, expected in (
        ("http://bad.org/a", "blocked domain"),
        ("http://www.BAD.org", "blocked domain"),
        ("http://notbad.org/", ""),
        ("http://example.org/xxx-videos", "blocked word"),
        ("http://essex.ac.uk/", ""),
        ("http://[broken", "no address"),
        ("", ""),
    ):
        assert reason("address", ENGLISH, url=url, **changes)[0] == expected, url


HINDI = " ".join(["नदी के किनारे एक छोटा सा गाँव था जहाँ लोग सुबह खेतों में काम करते थे।"] * 9)


def test_vowel_signs_are_parts_of_words():
    """The mean word length is 3.5 characters with vowel signs and 2.6 without."""
    assert reason("gopher_quality", HINDI, "hi")[0] == ""
    assert filters._WORD.findall("हिन्दी کِتاب ❤️") == ["हिन्दी", "کِتاب"]
    assert filters._MARKS.sub("", "«की।") == "की"


def test_citations_are_removed_from_line_ends():
    lines = ["The river rose over its banks in the night.[3]",
             "Nobody knew of it until the morning came. [citation needed]"]  # fmt: skip
    text = "\n".join(lines * 3)
    dropped, document = reason("c4", text, min_sentences=6)
    assert dropped == ""
    assert document.text.split("\n")[:2] == [line.partition("[")[0].rstrip() for line in lines]
    assert reason("c4", text, min_sentences=7)[0] == "few sentences"


def test_every_kept_line_counts_as_a_sentence():
    """As in C4 and FineWeb's code, six lines without a full stop are six sentences."""
    text = "\n".join(f"First take {n} wooden boards and put them down" for n in range(6))
    assert reason("c4", text, min_sentences=6)[0] == ""
    assert reason("c4", text, min_sentences=7)[0] == "few sentences"


def test_line_ends_are_those_of_fineweb():
    lines = ["He went on...", "They said 'no'", "Was it so?", "So it was.", "این بود؟", "«بله»"]
    least = {"min_lines_ended": 1.0, "max_short_lines": 1.0, "max_newlines": 1.0}
    assert reason("fineweb", "\n".join(lines), **least)[0] == ""
    assert reason("fineweb", "\n".join([*lines, "and so on,"]), **least)[0] == "lines without end"


def test_persian_word_lists(tmp_path):
    """A word continues after a ZWNJ; a list may have a byte order mark and Arabic letters."""
    path = tmp_path / "words.txt"
    path.write_text("\ufeffکس\nكثيف\n")
    for text, expected in (("هیچ\u200cکس نبود", ""), ("کس نبود", "blocked word"),
                           ("بسیار کثیف بود", "blocked word")):  # fmt: skip
        assert reason("blocked_words", text, "fa", file=str(path))[0] == expected, text
    assert reason("toxicity", "بسیار کثیف بود", "fa", file=str(path))[0] == "toxic"


def test_word_lists_and_scorers(tmp_path, monkeypatch):
    path = tmp_path / "words.txt"
    path.write_text("wooden bridge\nکتاب\n")
    text = "A Wooden  bridge? A wooden bridge."
    assert reason("blocked_words", text, file=str(path))[0] == "blocked word"
    assert reason("blocked_words", text, file=str(path), most=1)[0] == ""
    assert reason("blocked_words", "a wooden bridgehead", file=str(path))[0] == ""
    assert reason("blocked_words", "این کتاب است", file=str(path))[0] == "blocked word"
    with pytest.raises(RunError, match="cannot be read"):
        reason("blocked_words", text, file=str(tmp_path / "none"))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_scorer.py").write_text("def score(text): return len(text)\n")
    assert reason("toxicity", "abc", scorer="my_scorer:score", most=2)[0] == "toxic"
    assert reason("toxicity", "ab", scorer="my_scorer:score", most=2)[0] == ""
    with pytest.raises(UsageError, match="MODULE:FUNCTION"):
        reason("toxicity", "ab", scorer="no_module:score")
