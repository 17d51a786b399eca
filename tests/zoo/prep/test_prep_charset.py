"""Tests that declared encodings are decoded as browsers decode them."""

import pytest

pytest.importorskip("trafilatura", reason="needs the extra `prep`")

from zoo.prep.reading.read import decode

TEXTS = {
    "gb2312": "今天天气很好，我们去公园散步。图书馆里有很多书，一共借了三本，准备慢慢地读完它们。",
    "gbk": "今天天氣很好，我們去公園散步。圖書館裡有很多書，一共借了三本，準備慢慢地讀完它們。",
    "big5": "今天天氣很好，我們去公園散步。圖書館裡有很多書，一共借了三本，準備慢慢地讀完它們。",
    "shift_jis": "こんにちは世界。日本語のページです。東京大学は日本の大学で、カタカナも使います。",
    "euc-jp": "こんにちは世界。日本語のページです。東京大学は日本の大学で、カタカナも使います。",
    "euc-kr": "오늘은 날씨가 매우 좋아서 우리는 공원으로 산책을 갔습니다. 책이 많습니다.",
    "windows-1251": "Съешь ещё этих мягких французских булок, да выпей чаю — и всё.",
    "windows-1253": "Σήμερα ο καιρός είναι πολύ καλός και πήγαμε για έναν περίπατο στο πάρκο.",
    "windows-874": "วันนี้อากาศดีมาก เราไปเดินเล่นในสวนสาธารณะ ห้องสมุดมีหนังสือมากมาย",
    "utf-8": "Größe, naïve façade — “quoted” déjà vu, und über Straßen",
}
# An undefined byte per encoding; 0xff for the others.
STRAY = {"windows-1251": b"\x98", "windows-1253": b"\xd2", "windows-874": b"\xfc"}


@pytest.mark.parametrize("inside", [True, False], ids=["meta", "header"])
@pytest.mark.parametrize("label", TEXTS)
def test_a_stray_byte_is_one_replacement_character(label, inside):
    text = TEXTS[label]
    codec = {"shift_jis": "cp932", "euc-kr": "cp949", "windows-874": "cp874"}.get(label, label)
    stray = STRAY.get(label, b"\xff")
    expected = "\x98" if label == "windows-1251" else "\ufffd"  # a control character to browsers
    meta = f'<meta charset="{label}">' if inside else ""
    page = f"{meta}<p>{text}</p>\n<p>{text}</p>\n<p>".encode(codec) + stray + b"</p>"
    decoded = decode(page, "" if inside else label)
    assert decoded == f"{meta}<p>{text}</p>\n<p>{text}</p>\n<p>{expected}</p>"


def test_a_wrong_declared_encoding_is_replaced_by_detection():
    text = TEXTS["windows-1251"] * 5
    assert decode(text.encode("cp1251"), "big5") == text
    assert decode(("Größe und Straße " * 20).encode("cp1252"), "utf-8") == "Größe und Straße " * 20


@pytest.mark.parametrize(
    ("label", "content", "text"),
    [
        ("iso-8859-9", b"\x93\xc7ok g\xfczel\x94 \xddstanbul\x92da", "“Çok güzel” İstanbul’da"),
        ("iso-8859-1", b"\x80 \x93caf\xe9\x94 \x81", "€ “café” \x81"),
        ("latin1", b"caf\xe9\x85", "café…"),
        ("us-ascii", b"caf\xe9", "café"),
        ("shift_jis", b"\x87\x40 \x87\x8a \xfb\xfc", "① ㈱ 髙"),
        ("x-sjis", b"\x81\x60", "～"),
        ("euc-jp", b"\xad\xa1 \xa1\xc1 \xb0\xec", "① ～ 一"),
        ("iso-2022-jp", b'\x1b$B-!$"\x1b(B \x1b(I1\x1b(B', "①あ ｱ"),
        ("gb2312", b"\x80 \xd6\xd0 \x95\x32\x82\x36", "€ 中 𠀀"),
        ("GB_2312-80", b"\xd6\xd0", "中"),
        ("ks_c_5601-1987", b"\x81\x41\xb0\xa1", "갂가"),
        ("big5", b"\xa3\xe1 \xa4\xa4 \xf9\xd6", "€ 中 碁"),
        ("koi8-ru", b"\xae \xbe \xa4", "ў Ў є"),
        ("gbk", b"\xa3\xa0 \xa8\xbc", "\u3000 ḿ"),
        ("tis-620", b"\xc7\xd1\xb9 \x80", "วัน €"),
        ("iso-8859-8-i", b"\xf9\xec\xe5\xed", "שלום"),
        ("x-mac-cyrillic", "Привет".encode("mac-cyrillic"), "Привет"),
    ],
)
def test_labels_follow_the_whatwg_standard(label, content, text):
    assert decode(content, label) == text
    meta = f"<meta http-equiv=Content-Type content='text/html; charset={label}'>"
    assert decode(meta.encode() + content) == meta + text
    assert decode(content, f" {label.upper()}\n") == text


def test_utf_16_without_a_byte_order_mark():
    assert decode("héllo".encode("utf-16-le"), "utf-16") == "héllo"
    assert decode("héllo".encode("utf-16-be"), "utf-16be") == "héllo"


@pytest.mark.parametrize(
    "label",
    ["unicode_escape", "raw_unicode_escape", "utf-7", "punycode", "idna", "rot13", "hex", "zip",
     "undefined", "mbcs", "cp037", "utf_32"],
)  # fmt: skip
def test_names_that_only_python_knows_are_ignored(label):
    text = r"A \u0041 \x41 +AGE- xn--a 4142 – déjà vu"
    assert decode(text.encode(), label) == text
    ascii_text = r"A \u0041 \x41 +AGE- xn--a 4142"
    assert decode(ascii_text.encode(), label) == ascii_text
    page = f'<meta charset="{label}">{ascii_text}'
    assert decode(page.encode()) == page


def test_encodings_that_browsers_refuse_are_not_decoded():
    assert decode(b"~{VPND~}", "hz-gb-2312") == "\ufffd"
    assert decode(b"\x1b$)C\x0e0!\x0f", "iso-2022-kr") == "\ufffd"
    assert decode(b"plain text", "iso-2022-kr") == "plain text"


@pytest.mark.parametrize(
    ("label", "codec", "text"),
    [
        ("gb2312", "gbk", "目"),  # the bytes are valid UTF-8 too
        ("gb2312", "gbk", "农"),
        ("shift_jis", "cp932", "ﾒｹﾂｱ"),
        ("euc-kr", "cp949", "호"),
        ("euc-jp", "euc_jp", "年"),
        ("big5", "big5", "議"),
    ],
)
def test_a_few_characters_are_decoded_as_declared(label, codec, text):
    page = f'<meta charset="{label}"><p>{text} is the name.</p>'
    assert decode(page.encode(codec)) == page
    # UTF-8 is detected by characters that the declared encoding lacks, or by many characters.
    for other in ("“", "語", "déjà vu, naïve façade, café"):
        page = f'<meta charset="{label}"><p>{other}</p>'
        assert decode(page.encode()) == page


@pytest.mark.parametrize("label", ["gb2312", "big5", "shift_jis", "euc-kr", "windows-1253"])
def test_one_stray_byte_in_a_short_text(label):
    codec = {"shift_jis": "cp932", "euc-kr": "cp949"}.get(label, label)
    text = TEXTS[label][:12]
    assert decode(text.encode(codec) + b"\xff", label) == text + "\ufffd"


def test_the_encoding_with_the_fewest_undecodable_bytes_is_used():
    text = TEXTS["gb2312"][:20]
    assert decode(text.encode("gbk") + b"\xff \xff \xff", "gb2312") == text + "\ufffd \ufffd \ufffd"


def test_a_stray_byte_in_a_7_bit_encoding():
    text = TEXTS["shift_jis"]
    assert decode(text.encode("iso2022_jp") + b" \xa9", "iso-2022-jp") == text + " \ufffd"
    assert decode(text.encode("iso2022_jp") + "©".encode(), "iso-2022-jp") == text + "\ufffd\ufffd"


DECLARE = (  # pages that declare gbk, some with other text that looks like a declaration
    '<meta name="description" content="write charset=koi8-r"><meta charset=gbk>',
    '<meta name=x content="text/html; charset=koi8-r"><meta charset=gbk>',
    '<meta name=x data-charset="koi8-r"><metadata charset=koi8-r></metadata><meta charset=gbk>',
    '<meta http-equiv="Content-Type" content="text/html; charset = \'gb2312\'">',
    '<META CONTENT="text/html;charset=gb2312" HTTP-EQUIV=content-type>',
    '<meta title="5 > 3" charset=gbk>',
    "<meta\n/charset\n=\n' GBK '/>",
    f'<meta property="og:title" data-x="{"y" * 300}" charset=gbk>',
    f"<!-- {'y' * 5000} <meta charset=koi8-r> --><meta charset=gbk>",
    "<!--><meta charset=gbk><!-- -->",
    f"<style>{'p { color: red } ' * 3000}</style><meta charset=gbk>",
    "<script>if (a<b) document.write('<meta charset=koi8-r>')</script><meta charset=gbk>",
    "<title>How to write <meta charset=koi8-r></title><meta charset=gbk>",
    '<a title="<meta charset=koi8-r>"></a><meta charset=gbk>',
    "<meta charset=no-such><meta charset=gbk><meta charset=koi8-r>",
    '<?xml version="1.0" encoding="GB2312"?>',
    '<?xml version="1.0" encoding="koi8-r"?><meta charset=gbk>',
)


@pytest.mark.parametrize("head", DECLARE)
def test_the_declaration_in_a_page_follows_the_standard(head):
    page = f"{head}<p>{TEXTS['gb2312']}</p>"
    assert decode(page.encode("gbk")) == page


def test_no_page_makes_the_search_for_a_declaration_slow():
    import time

    start = time.monotonic()
    parts = ("<!--", "<a b='", '<a =" ', "<meta ", "<meta x=", "<?xml ", "<", "=", "<title>",
             "a=' ")  # fmt: skip
    for part in parts:
        decode((part * 100_000).encode() + b"\xd0")
    assert time.monotonic() - start < 20


def test_declarations_that_do_not_count():
    text = TEXTS["windows-1251"]
    # Every byte is valid KOI8-R, so only the comment rules that declaration out.
    page = f"<!-- <meta charset=koi8-r> --><meta charset=no-such><meta charset=windows-1251>{text}"
    assert decode(page.encode("cp1251")) == page
    page = f"<meta charset=utf-16>{text}"  # a page with an ASCII <meta> is not UTF-16
    assert decode(page.encode()) == page
    page = f"<meta charset=utf-16>{'plain text ' * 20}"
    assert decode(page.encode() + b"\xff") == f"{page}\ufffd"
    # HTML inside plain text or JSON declares nothing.
    text = '{"html": "<meta charset=gb2312>今天天气很好"}'
    assert decode(text.encode() + b"\xff", page=False) == text + "\ufffd"
