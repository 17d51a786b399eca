"""Tests text cleaning and language identification."""

import pytest

from tests import pages

pytest.importorskip("trafilatura", reason="needs the extra `prep`")

from zoo.prep.cleaning import clean, languages
from zoo.prep.document import Document

# --- clean ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "clean_text"),
    [
        ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
        ("  a \t b\u00a0c  \n\n\n\n d ", "a b c\n\nd"),
        ("a\0b\x1bc\ufeff\u200b\u00ad\u202ed", "abcd"),
        ("e\u0301", "é"),
        ("می\u200cرود", "می\u200cرود"),
        ("می\u200c\u200cرود \u200cو\u200c خانه\u200c", "می\u200cرود و خانه"),
        ("co\u200coperate", "cooperate"),
        ("क्\u200dष", "क्\u200dष"),
        ("\U0001f469\u200d\U0001f4bb", "\U0001f469\u200d\U0001f4bb"),
        ("كتاب علي", "كتاب علي"),  # Arabic stays Arabic
        ("", ""),
    ],
)
def test_tidy(text, clean_text):
    assert clean.tidy(text) == clean_text


def test_only_persian_text_gets_persian_letters():
    persian, arabic = "اين كتاب براي پسر من خريده شد و گفت", "هذا كتاب علي وهو في البيت الكبير"
    for text, keeps_kaf in ((persian, False), (arabic, True)):
        document = Document(text=text)
        clean.clean(document, pages.settings()["clean"])
        assert ("ك" in document.text) == keeps_kaf, document.text
    # News with Arabic yeh and kaf: only 4 letters in 300 are Persian only.
    news = (
        "وزير امور خارجه ايران امروز در تهران با همتاي خود ديدار كرد و درباره روابط دو كشور و "
        "مسائل منطقه به بحث و تبادل نظر پرداخت. در اين ديدار كه معاونان نيز حضور داشتند بر ادامه "
        "همكاري هاي اقتصادي و علمي و فرهنگي تاكيد شد و دو طرف گفت و گو در اين باره را ادامه مي دهند"
    )
    assert clean.looks_persian(news)
    for language, keeps_kaf in (
        ("", False), ("fa", False), ("ar", True),
        ("fas", False), ("fa-IR", False), ("en", False), ("arb", True), ("ur_PK", True),
    ):  # fmt: skip
        document = Document(text=news, language=language)
        clean.clean(document, pages.settings()["clean"])
        assert ("ك" in document.text) == keeps_kaf
    # Arabic with a foreign name, and other languages in Arabic script.
    assert not clean.looks_persian("أعلنت شركة گوگل في القاهرة عن خدمة جديدة للمستخدمين في المدينة")
    assert not clean.looks_persian("ئۇيغۇر تىلى پارچە گەپ چوڭ")
    assert not clean.looks_persian("سنڌي ٻولي ۾ گهڻا پڙهندڙ آهن ۽ ڪتاب ٿا پڙهن")
    assert clean.looks_persian("این متن فارسی است که می‌گوید چه شد")
    assert not clean.looks_persian("English text, with one word: گل")


def test_mojibake_is_repaired_and_quotes_do_not_change():
    document = Document(text="dÃ©jÃ  vu — “so” ﬁne ...")
    clean.clean(document, pages.settings()["clean"])
    assert document.text == "déjà vu — “so” ﬁne ..."


@pytest.mark.parametrize(
    ("kind", "text", "masked"),
    [
        ("email", "Ask ann.b+c@mail.example.org, or @ann.", "Ask <email>, or @ann."),
        ("email", "a@b costs 5@2", "a@b costs 5@2"),
        ("ip", "from 192.168.0.1 and 8.8.8.8.", "from <ip> and <ip>."),
        ("ip", "version 1.2.3.4.5 and 300.1.1.1", "version 1.2.3.4.5 and 300.1.1.1"),
        ("ip", "at 2001:db8::1, 10:30 and std::vector", "at <ip>, 10:30 and std::vector"),
        ("phone", "Call +98 21 8888 1234 or (030) 1234567.", "Call <phone> or <phone>."),
        ("phone", "تلفن: ۰۲۱-۸۸۸۸۱۲۳۴ است", "تلفن: <phone> است"),
        ("phone", "Call 555-123-4567 now", "Call <phone> now"),
        ("phone", "in 1998-2004, on 2021-03-04, 10 000 000 people, 3.14159265 and 123456789",
         "in 1998-2004, on 2021-03-04, 10 000 000 people, 3.14159265 and 123456789"),
        ("phone", "سال ۱۳۹۹/۰۲/۱۲", "سال ۱۳۹۹/۰۲/۱۲"),
        ("phone", "on 01.02.2021 and 03/04/1999", "on 01.02.2021 and 03/04/1999"),
        ("ip", "addr:2001:db8::1 IPv6:2001:db8::2", "addr:<ip> IPv6:<ip>"),
        ("ip", "at 12:30:00:1:2:3:4:5:6:7, foo::b", "at 12:30:00:1:2:3:4:5:6:7, foo::b"),
        ("phone", "تلفن:۰۲۱-۸۸۸۸۷۷۷۷", "تلفن:<phone>"),
        ("phone", "شماره۰۹۱۲۳۴۵۶۷۸۹است", "شماره<phone>است"),
        ("phone", "Tel:021-88887777 Fax/021-88887778", "Tel:<phone> Fax/<phone>"),
        ("phone", "tel:+989123456789, Phone:(212) 555-1234", "tel:<phone>, Phone:<phone>"),
        ("phone", "۱۲.۰۰۰.۰۰۰.۰۰۰ تومان 12.000.000.000", "۱۲.۰۰۰.۰۰۰.۰۰۰ تومان 12.000.000.000"),
        ("phone", "in 2020-2021 1000 of them", "in 2020-2021 1000 of them"),
        ("phone", "https://example.org/a/0212345678", "https://example.org/a/0212345678"),
        ("phone", "example.org/0212345678 A0212345678", "example.org/0212345678 A0212345678"),
    ],
)  # fmt: skip
def test_personal_data_is_masked(kind, text, masked):
    assert clean.mask(text, kind) == masked


def test_a_title_is_masked_too():
    document = Document(text="Ask ann@example.org", title="Bob, bob@example.org, 192.168.0.1")
    clean.clean(document, pages.settings(clean__mask=["email", "ip"])["clean"])
    assert (document.text, document.title) == ("Ask <email>", "Bob, <email>, <ip>")


# --- languages ----------------------------------------------------------------------------------


def test_languages_and_sentences():
    assert languages.identify(pages.paragraphs(1))[0] == "en"
    code, probability = languages.identify("رئیس جمهور گفت که این طرح برای مردم کشور است")
    assert code == "fa"
    assert probability > 0.9
    for line in (
        "So it is.",
        "Is it?",
        "«بله.»",
        "آیا می‌روی؟",
        "پایان۔",
        "He said “yes.”",
        "终于。",
    ):
        assert languages.ends_sentence(line), line
    for line in ("A title", "Read more...", "ادامه مطلب", "three, four,"):
        assert not languages.ends_sentence(line), line
    assert languages.count_sentences("او رفت. آیا برگشت؟ نه! خوب") == 4
    assert languages.count_sentences("Version 1.5 is out. Good.") == 2
    assert languages.count_sentences("") == 0
