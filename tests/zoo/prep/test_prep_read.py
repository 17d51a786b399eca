"""Tests reading, extraction and cleaning of valid and of damaged files."""

import gzip
import json
import os
import random
import signal
import threading
import time
import zlib
from collections import Counter

import pytest

from tests import pages
from tests.memory import peak_of
from zoo.errors import UsageError
from zoo.storage.paths import data_dir

pytest.importorskip("trafilatura", reason="needs the extra `prep`")

from zoo.prep import files, steps
from zoo.prep.cleaning import clean, extract
from zoo.prep.document import Document, Tally
from zoo.prep.reading import read, unpack

BODY = "<p>A sentence of a page that is long enough to be the main text of it, really.</p>"


# --- readers --------------------------------------------------------------------------------------


def test_every_kind_of_file_is_read(tmp_path):
    import pyarrow
    import pyarrow.parquet
    import zstandard

    (tmp_path / "a.html").write_text(pages.page(1))
    (tmp_path / "b.htm.gz").write_bytes(gzip.compress(pages.page(2).encode()))
    (tmp_path / "c.txt.zst").write_bytes(zstandard.compress("plain تُکست".encode()))
    (tmp_path / "d.jsonl").write_text('{"text": "one", "license": "CC0", "link": "http://e/1"}\n\n')
    table = pyarrow.table({"text": ["two", None], "title": ["T", "U"], "other": [1, 2]})
    pyarrow.parquet.write_table(table, tmp_path / "e.parquet")
    wet = (
        "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://e/3\r\n"
        "WARC-Record-ID: <urn:uuid:1>\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\n"
        "three\r\n\r\n"
    )
    (tmp_path / "f.wet").write_bytes(wet.encode())
    (tmp_path / "g.warc.gz").write_bytes(
        pages.warc(pages.page(4), "http://e/4") + pages.warc("gone", status=404)
        + pages.warc(b"GIF", kind="image/gif") + pages.warc("five", "http://e/5", "text/plain")
    )  # fmt: skip
    (tmp_path / "h.png").write_bytes(b"")
    documents, unreadable = pages.read_all(tmp_path, licence="CC BY")
    texts = [d.text or d.html for d in documents]
    assert texts == [
        pages.page(1), pages.page(2), "plain تُکست", "one", "two", "three", pages.page(4), "five",
    ]  # fmt: skip
    assert [d.html is not None for d in documents] == [True, True, *[False] * 4, True, False]
    assert [d.url.removeprefix("http://e/") for d in documents[3:]] == ["1", "", "3", "4", "5"]
    assert [d.licence for d in documents[2:5]] == ["CC BY", "CC0", "CC BY"]
    assert documents[4].title == "T"
    assert unreadable == {
        "records without text": 1,
        "responses with a status other than 200": 1,
        "responses of other types": 1,
        "files of unknown kind": 1,
    }


def test_a_corpus_by_name():
    shard = files.make_shards(files.corpus_files(["corpus:pydoc"]), 1 << 20)[0]
    documents = list(read.documents(shard, pages.settings(), Tally()))
    assert len(documents) > 50
    assert documents[0].licence
    assert documents[0].source == "pydoc"


def test_a_parquet_value_that_python_cannot_hold_costs_only_its_row(tmp_path):
    import pyarrow
    import pyarrow.parquet

    broken = pyarrow.array([b"one", b"\xff", b"three"]).cast(pyarrow.binary())
    texts = pyarrow.StringArray.from_buffers(3, *broken.buffers()[1:])
    dates = pyarrow.array([0, 0, 1_700_000_000_000], pyarrow.timestamp("s"))  # the last in ms
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "date": dates}), path)
    documents, unreadable = pages.read_all(path)
    assert [(x.text, x.date) for x in documents] == [("one", "1970-01-01 00:00:00"), ("three", "")]
    assert unreadable == {"records damaged": 1}


def test_html_with_a_lone_surrogate_is_still_html(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"html": "<p>Hi \\ud83d there</p>", "text": "other"}\n')
    (document,), _ = pages.read_all(tmp_path / "a.jsonl", html_field="html")
    assert (document.html, document.text) == ("<p>Hi \N{REPLACEMENT CHARACTER} there</p>", "")


def test_output_folders_are_not_input(tmp_path):
    """The output folder of this run and of an earlier run are skipped."""
    for folder, name in (("a", "x.txt"), ("a/D/text", "y.txt"), ("a/D2/work", "z.txt")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / name).write_text("text")
    for pattern in (tmp_path / "a", tmp_path / "a" / "**" / "*.txt"):
        skipped = Counter()
        (tmp_path / "a/D2/prepared.json").unlink(missing_ok=True)
        inputs = files.find_files([str(pattern)], skipped, tmp_path / "a" / "D")
        assert [file.path.rpartition("/")[2] for file in inputs] == ["z.txt", "x.txt"]
        assert not skipped
    (tmp_path / "a/D2/prepared.json").write_text("{}")
    (file,) = files.find_files([str(tmp_path / "a")], skipped, tmp_path / "a" / "D")
    assert file.path.endswith("x.txt")
    assert skipped == {"folders of prepared text": 1}


@pytest.mark.parametrize("ending", [".warc.gz", ".jsonl", ".parquet"])
def test_stripes_divide_the_documents_of_a_file(tmp_path, ending):
    path = tmp_path / f"many{ending}"
    texts = [f"text {i}" for i in range(23)]
    if ending == ".warc.gz":
        path.write_bytes(b"".join(pages.warc(text, kind="text/plain") for text in texts))
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\nbroken\n" for text in texts))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    shards = files.make_shards(files.find_files([str(path)], Counter()), path.stat().st_size // 3)
    assert len(shards) in (3, 4)
    tally = Tally()
    parts = [[d.text for d in read.documents(s, pages.settings(), tally)] for s in shards]
    assert sorted(sum(parts, [])) == sorted(texts)
    assert sum(map(bool, parts)) > 1
    assert sum(tally.unreadable.values()) == (23 if ending == ".jsonl" else 0)


@pytest.mark.parametrize(
    ("encoding", "declared"),
    [("utf-8-sig", ""), ("utf-16", ""), ("utf-16-be-bom", ""), ("cp1252", "iso-8859-1"),
     ("cp1256", "windows-1256"), ("koi8-r", "koi8-r"), ("cp1252", "no-such-code"),
     ("cp1252", "zip")],
)  # fmt: skip
def test_encodings_are_detected(encoding, declared):
    text = {"cp1256": "سلام عليكم، هذا كتاب", "koi8-r": "Съешь ещё этих мягких булок"}.get(
        encoding, "Größe, naïve façade — “quoted” déjà vu, und über Straßen"
    )
    if encoding == "utf-16-be-bom":
        data = b"\xfe\xff" + text.encode("utf-16-be")
    else:
        data = text.encode(encoding)
    meta = f'<meta charset="{declared}">'.encode() if declared else b""
    assert read.decode(meta + data).removeprefix(meta.decode()) == text or declared in (
        "no-such-code", "zip",
    )  # fmt: skip
    assert read.decode(data, declared)


@pytest.mark.parametrize("declared", ["utf-8", ""])
@pytest.mark.parametrize(
    "text",
    [
        "It’s a “quoted” text — and a café on the corner, isn’t it",
        "Die Straße führt über die Brücke; Köln läßt grüßen, und München auch",
        "El niño comió piñas en la montaña, y después se durmió",
    ],
)
def test_utf_8_with_a_stray_byte_is_still_utf_8(text, declared):
    for data in (text.encode() + "é".encode()[:1], text.encode().replace(b"q", b"q\xff", 1)):
        assert read.decode(data, declared).replace("\ufffd", "") == text


@pytest.mark.parametrize("encoding", ["gbk", "big5", "shift_jis", "euc-jp", "utf-8"])
def test_two_byte_encodings_are_not_read_as_damaged_utf_8(encoding):
    text = {
        "gbk": "中文网页测试内容，这是一个关于编码的问题",
        "big5": "中文網頁測試內容，這是一個關於",
    }
    text = text.get(encoding, "日本語のページです。東京大学は日本の大学であり、カタカナも使います")
    assert read.decode(text.encode(encoding), encoding) == text


def test_a_declared_7_bit_encoding_is_used():
    text = "日本語のページ"
    data = text.encode("iso-2022-jp")
    assert read.decode(data, "iso-2022-jp") == text
    assert read.decode(b'<meta charset="iso-2022-jp">' + data).endswith(text)


# --- damaged files --------------------------------------------------------------------------------


def test_bombs_end_early_and_are_counted(tmp_path):
    packer = zlib.compressobj(9, wbits=31)
    zeros = bytes(1 << 20)
    bomb = b"".join(packer.compress(zeros) for _ in range(200)) + packer.flush()
    start = time.monotonic()
    for name in ("a.jsonl.gz", "b.warc.gz", "c.html.gz"):
        (tmp_path / name).write_bytes(bomb)
    documents, unreadable = pages.read_all(tmp_path)
    assert not documents
    assert unreadable["files: bomb"] == 2
    assert unreadable["documents too large"] == 1  # a page is decompressed only up to its limit
    assert time.monotonic() - start < 30


def test_a_large_file_is_not_a_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "FREE_BYTES", 1000)
    rows = "".join(json.dumps({"text": f"{random.Random(i).random()}"}) + "\n" for i in range(500))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    assert len(pages.read_all(tmp_path, max_file_ratio=200)[0]) == 500
    assert pages.read_all(tmp_path, max_file_ratio=2)[1] == {"files: bomb": 1}


def test_a_bomb_inside_a_response_is_counted(tmp_path):
    inner = gzip.compress(bytes(50 << 20))
    head = (
        "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n"
        f"Content-Length: {len(inner)}\r\n\r\n"
    ).encode()
    block = head + inner
    (tmp_path / "a.warc").write_bytes(
        b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://e/\r\n"
        b"WARC-Record-ID: <u:1>\r\nContent-Type: application/http; msgtype=response\r\n"
        + f"Content-Length: {len(block)}\r\n\r\n".encode() + block + b"\r\n\r\n"
    )  # fmt: skip
    documents, unreadable = pages.read_all(tmp_path)
    assert not documents
    assert unreadable == {"records too large": 1}


def test_truncated_and_damaged_files_are_counted_and_the_rest_is_read(tmp_path):
    whole = gzip.compress("".join(f'{{"text": "row {i}"}}\n' for i in range(2000)).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    (tmp_path / "b.jsonl.gz").write_bytes(damaged)
    (tmp_path / "c.jsonl.gz").write_bytes(b"not gzip")
    record = gzip.decompress(pages.warc(pages.page(1)))
    (tmp_path / "d.warc").write_bytes(record + record[: len(record) // 2])
    (tmp_path / "e.warc.gz").write_bytes(pages.warc("x", kind="text/plain") + pages.warc("y")[:60])
    (tmp_path / "f.parquet").write_bytes(b"PAR1 not really PAR1")
    (tmp_path / "g.html.gz").write_bytes(gzip.compress(pages.page(2).encode())[:-20])
    (tmp_path / "h.txt").write_bytes(b"")
    documents, unreadable = pages.read_all(tmp_path)
    assert [d.text for d in documents if d.source.endswith("a.jsonl.gz")][:2] == ["row 0", "row 1"]
    assert sum(d.source.endswith("d.warc") for d in documents) == 1
    assert sum(d.source.endswith("e.warc.gz") for d in documents) == 1
    assert not any(d.source.endswith("g.html.gz") for d in documents)
    assert unreadable.pop("files: truncated") == 3
    assert unreadable.pop("files: damaged") >= 3
    assert unreadable.pop("records cut off") == 1
    assert unreadable.pop("empty documents") == 1


def test_bad_lines_are_counted(tmp_path):
    lines = [
        b'{"text": "good"}', b'{"text": 5}', b'{"other": "x"}', b"[1, 2]", b"nonsense",
        b"[" * 100_000, b'{"text": "half \\ud800 pair"}', b'{"text": "' + b"a" * 100_000 + b'"}',
        b'{"text": "bad \xff byte"}', b'{"text": "last"}',
    ]  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    documents, unreadable = pages.read_all(tmp_path, max_document_bytes=10_000)
    assert [d.text for d in documents][:1] == ["good"]
    assert documents[-1].text == "last"
    assert "half \ufffd pair" in [d.text for d in documents]
    assert unreadable == {
        "records without text": 3, "lines that are not JSON": 1, "records too large": 2,
    }  # fmt: skip


def test_json_is_always_decoded_as_utf_8(tmp_path):
    texts = ["El niño comió piñas en la montaña", "caf\u00e9", "plain", "größer"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    data = "\n".join(lines[:2]).encode("latin-1") + "\n\n".join(["", *lines[2:]]).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + data)
    documents, unreadable = pages.read_all(tmp_path)
    assert [document.text for document in documents] == ["caf\ufffd", "plain", "größer"]
    assert unreadable == {"lines that are not UTF-8": 1}
    (tmp_path / "a.jsonl").write_bytes(b"\n \n\n")
    assert pages.read_all(tmp_path) == ([], {"files: no records": 1})


@pytest.mark.parametrize(("declared", "codec"), [("", "utf-8"), ("; charset=gbk", "gbk")])
def test_wet_text_is_utf_8_unless_declared_otherwise(tmp_path, declared, codec):
    body = "It is an English text of some words – 好".encode(codec).replace(b"some", b"s\xffome")
    head = "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://e/\r\n"
    head += f"Content-Type: text/plain{declared}\r\nContent-Length: {len(body)}\r\n\r\n"
    (tmp_path / "a.wet").write_bytes(head.encode() + body + b"\r\n\r\n")
    (document,), unreadable = pages.read_all(tmp_path)
    assert document.text == "It is an English text of s\ufffdome words – 好"
    assert not unreadable


def test_a_line_of_a_hundred_megabytes_is_not_held_in_memory(tmp_path):
    with open(tmp_path / "a.jsonl", "wb") as file:
        file.write(b'{"text": "')
        for _ in range(100):
            file.write(b"a" * (1 << 20))
        file.write(b'"}\n{"text": "next"}\n')
    (documents, unreadable), peak = peak_of(pages.read_all, tmp_path, max_document_bytes=1 << 20)
    assert [d.text for d in documents] == ["next"]
    assert unreadable == {"records too large": 1}
    assert peak < 30 << 20


def test_links_out_of_the_folder_and_pipes_are_skipped(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir(), outside.mkdir()
    (outside / "secret.txt").write_text("secret")
    (inside / "mine.txt").write_text("mine")
    (inside / "to_secret.txt").symlink_to(outside / "secret.txt")
    (inside / "to_folder").symlink_to(outside)
    (inside / "to_mine.txt").symlink_to(inside / "mine.txt")
    (inside / "dangling.txt").symlink_to(inside / "nothing.txt")
    (inside / "loop.txt").symlink_to(inside / "loop.txt")
    os.mkfifo(inside / "pipe.txt")
    for pattern in (inside, inside / "*", inside / "**/*.txt"):
        documents, unreadable = pages.read_all(pattern)
        assert {d.text for d in documents} == {"mine"}
        assert unreadable["links out of the folder"] >= 1
        assert unreadable["not regular files"] == 1
        assert unreadable["missing files"] == 2
    # A link that the user names is followed.
    assert [d.text for d in pages.read_all(inside / "to_secret.txt")[0]] == ["secret"]
    with pytest.raises(UsageError, match="matches no file"):
        pages.read_all(tmp_path / "nothing*")


ENDINGS = (".warc", ".warc.gz", ".wet", ".html", ".html.gz", ".txt", ".jsonl", ".jsonl.gz",
           ".jsonl.zst", ".parquet")  # fmt: skip


@pytest.mark.parametrize("ending", ENDINGS)
def test_random_bytes_crash_no_reader_and_no_step(tmp_path, ending):
    import zstandard

    draw = random.Random(ending)
    if ending.endswith("parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"] * 50}), tmp_path / "x")
        seed = (tmp_path / "x").read_bytes()
        (tmp_path / "x").unlink()
    elif "warc" in ending or "wet" in ending:
        seed = gzip.decompress(pages.warc(pages.page(1))) * 2
    elif "jsonl" in ending:
        seed = b'{"text": "some text", "url": "http://e/"}\n' * 20
    else:
        seed = pages.page(1).encode()
    for number in range(30):
        data = bytearray(seed)
        for _ in range(draw.choice((1, 5, 50))):
            place = draw.randrange(len(data))
            data[place : place + draw.choice((0, 1, 4))] = draw.randbytes(draw.choice((0, 1, 3)))
        data = draw.randbytes(2000) if number % 5 == 0 else bytes(data)
        if ending.endswith(".gz"):
            data = gzip.compress(data)
        if ending.endswith(".zst"):
            data = zstandard.compress(data)
        if number % 3 == 0:
            data = bytearray(data)
            data[draw.randrange(len(data))] ^= draw.randrange(1, 256)
        (tmp_path / f"{number}{ending}").write_bytes(data)
    prep, tally = pages.settings(), Tally()
    prep["clean"]["mask"] = ["email", "ip", "phone"]
    for shard in files.make_shards(files.find_files([str(tmp_path)], Counter()), 1 << 30):
        for document in read.documents(shard, prep, tally):
            steps.apply_rules(document, prep, tally)
            document.to_json().encode()


def test_random_text_crashes_no_step():
    draw = random.Random(0)
    strange = "\u200c\u200d\u202eیكé\u0301\ufeff\U0001f469۱。\x85\u2028…�"
    alphabet = [*"abc .,!?{}#\n\t\0\r-*@+()0123456789<>", *strange]
    prep, tally = pages.settings(), Tally()
    prep["clean"]["mask"] = ["email", "ip", "phone"]
    for _ in range(60):
        text = "".join(draw.choices(alphabet, k=draw.choice((1, 20, 3000))))
        for name in prep["rules"]:
            document = Document(text=text)
            clean.clean(document, prep["clean"])
            if document.text:
                steps.RULES[name](document, prep[name])
            again = clean.tidy(document.text)
            assert clean.tidy(again) == again
    assert steps.apply_rules(Document(text="x" * 2_000_000), prep, tally) is False
    for text in ("1-" * 50_000, "a@" * 50_000, ":1" * 50_000, "a." * 50_000, "(1" * 50_000):
        start = time.monotonic()
        for kind in ("email", "ip", "phone"):
            clean.mask(text, kind)
        assert time.monotonic() - start < 10, f"masking {text[:4]!r}… takes too long"


# --- extract ----------------------------------------------------------------------------------


def test_main_text_title_date_and_language_are_extracted():
    meta = '<meta property="article:published_time" content="2021-03-04">'
    by = '<a rel="license" href="https://creativecommons.org/licenses/by/4.0/">CC BY</a>'
    html = pages.page(3).replace("<head>", f"<head>{meta}").replace("<footer>", f"<footer>{by}")
    document = Document(html=html, url="http://example.org/3")
    assert extract.extract(document, pages.settings()["extract"]) == ""
    assert document.text.split("\n")[1:] == pages.paragraphs(3).split("\n")
    assert (document.title, document.date, document.language) == ("Story 3", "2021-03-04", "en")
    assert "CC BY" in document.licence
    assert document.html is None


def test_reader_comments_are_left_out_by_default():
    comments = "".join(f"<p>A comment of a reader, number {i}, who agrees.</p>" for i in range(5))
    html = pages.page(3).replace("<footer>", f'<div id="comments">{comments}</div><footer>')
    for changes, expected in (({}, False), ({"extract__comments": True}, True)):
        document = Document(html=html)
        extract.extract(document, pages.settings(**changes)["extract"])
        assert pages.paragraphs(3).split("\n")[0] in document.text
        assert ("A comment of a reader" in document.text) == expected


@pytest.mark.parametrize(
    ("html", "reason"),
    [
        ("<div>" * 20_000 + "text", ""),
        ("<table><tr><td>" * 5000 + "x", ""),
        ("<p></p>", "no main text"),
        ("\0\0\0", "no page"),
        ("<" * 100_000, ""),
    ],
)
def test_pages_without_text_are_dropped(html, reason):
    result = extract.extract(Document(html=html), pages.settings()["extract"])
    assert result
    assert not reason or result in (reason, "no page", "no main text"), result


def test_a_page_that_takes_too_long_is_dropped(monkeypatch):
    def slow(document, page, settings):
        try:
            while True:
                pass
        except Exception:  # as a library may do
            return ""

    monkeypatch.setattr(extract, "_extract", slow)
    assert extract.extract(Document(html="<p>"), {"timeout": 0.2}) == "too slow"


def test_the_time_limit_of_a_page_is_cpu_time():
    """Time without CPU, here sleep, does not count, so load does not change the result."""
    with extract.time_limit(0.2):
        time.sleep(0.5)


def spin_forever():
    while True:
        pass


def test_the_time_limit_of_a_page_ignores_other_threads_and_late_signals():
    stop = threading.Event()

    def work():
        while not stop.is_set():
            pass

    busy = threading.Thread(target=work)
    busy.start()
    try:
        with extract.time_limit(0.4):
            time.sleep(1.0)  # the other thread takes a second of CPU time
        os.kill(os.getpid(), signal.SIGPROF)  # as if the signal had arrived late
    finally:
        stop.set()
        busy.join()
    with pytest.raises(extract.TooSlow), extract.time_limit(0.2):
        spin_forever()


def test_a_date_does_not_depend_on_the_day():
    """The library ignores dates in the future by default."""
    meta = '<meta property="article:published_time" content="2071-03-04">'
    document = Document(html=pages.page(3).replace("<head>", f"<head>{meta}"))
    extract.extract(document, pages.settings()["extract"])
    assert document.date == "2071-03-04"


def test_extraction_is_as_good_as_trafilatura_alone():
    """Counts the required and the forbidden segments on pages of trafilatura's evaluation."""
    import trafilatura

    folder = data_dir() / "trafilatura_eval"
    if not folder.exists():
        pytest.skip("ZOO_DATA_DIR holds no trafilatura_eval")
    evaluated = sorted(json.loads((folder / "evaldata.json").read_text()).items())[:12]
    scores = {"ours": Counter(), "theirs": Counter()}
    for url, page in evaluated:
        name = os.path.basename(page["path"])
        raw = gzip.decompress((folder / "html" / name).read_bytes())
        document = Document(html=read.decode(raw), url=url)
        extract.extract(document, pages.settings()["extract"])
        theirs = trafilatura.extract(raw, include_comments=False) or ""
        for who, text in (("ours", document.text), ("theirs", theirs)):
            scores[who]["hits"] += sum(segment in text for segment in page["with"])
            scores[who]["wrong"] += sum(segment in text for segment in page["without"])
    assert scores["ours"]["hits"] >= scores["theirs"]["hits"] > 0
    assert scores["ours"]["wrong"] <= scores["theirs"]["wrong"]
