"""Tests WARC files with a damaged record: it is counted, and all other records are read."""

import gzip
import random
import time
import zlib

import pytest

from tests import pages
from tests.memory import peak_of
from zoo.storage.paths import data_dir

pytest.importorskip("trafilatura", reason="needs the extra `prep`")

from zoo.prep.reading import unpack
from zoo.prep.reading.members import Members
from zoo.prep.reading.warc import read_records

PAGE = pages.page(3).encode()


def record(block, url="http://example.org/bad", length=None, kind="response"):
    """Returns an uncompressed record; `length` replaces its Content-Length."""
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:0>\r\n"
        f"WARC-Target-URI: {url}\r\nContent-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(block) if length is None else length}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def answer(body, *headers):
    """Returns an HTTP response of a page."""
    head = ["HTTP/1.1 200 OK", "Content-Type: text/html; charset=utf-8", *headers, "", ""]
    return "\r\n".join(head).encode() + body


def good(number):
    return record(answer(pages.page(number).encode()), f"http://example.org/{number}")


def chunked(body, extension=b""):
    parts = [body[i : i + 100] for i in range(0, len(body), 100)]
    chunks = b"".join(b"%x%s\r\n%s\r\n" % (len(part), extension, part) for part in parts)
    return chunks + b"0\r\n\r\n"


def brotli(body):
    import brotli as library

    return library.compress(body, quality=4)


def zstandard(body):
    import zstandard as library

    return library.compress(body)


def frames(body):
    """Returns Zstandard frames, with skippable frames between them and text after the last."""
    skipped = b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip"
    return skipped + zstandard(body[:300]) + skipped + zstandard(body[300:]) + b"\n<!-- 3 ms -->"


PACKED = gzip.compress(PAGE, mtime=0)
CHUNKED = "Transfer-Encoding: chunked"
READ = {
    "chunked": answer(chunked(PAGE), CHUNKED),
    "chunk extensions": answer(chunked(PAGE, b' ; a="b";c'), CHUNKED),
    "chunk sizes of many zeros": answer(
        chunked(PAGE).replace(b"64\r\n", b"%064x\r\n" % 100), CHUNKED
    ),
    "gzip": answer(PACKED, "Content-Encoding: gzip"),
    "x-gzip": answer(PACKED, "Content-Encoding: x-gzip"),
    "GZIP": answer(PACKED, "content-encoding: GZIP"),
    "gzip of several members": answer(
        gzip.compress(PAGE[:99]) + gzip.compress(PAGE[99:]), "Content-Encoding: gzip"
    ),
    "gzip in chunks": answer(chunked(PACKED), "Content-Encoding: gzip", CHUNKED),
    "gzip twice": answer(gzip.compress(PACKED), "Content-Encoding: gzip, gzip"),
    "deflate": answer(zlib.compress(PAGE), "Content-Encoding: deflate"),
    "deflate without a header": answer(zlib.compress(PAGE)[2:-4], "Content-Encoding: deflate"),
    "br": answer(brotli(PAGE), "Content-Encoding: br"),
    "zstd": answer(zstandard(PAGE), "Content-Encoding: zstd"),
    "zstd of several frames": answer(frames(PAGE), "Content-Encoding: zstd"),
    "none": answer(PAGE, "Content-Encoding: none"),
    "identity": answer(PAGE, "Content-Encoding: identity"),
    "unknown": answer(PAGE, "Content-Encoding: utf-8"),
    "after 100 Continue": b"HTTP/1.1 100 Continue\r\n\r\n" + answer(PAGE),
    "folded header": answer(PAGE, "X-A: b\r\n  c"),
}
CUT, BAD_CHUNKS, NOT_PACKED = (
    "responses cut off",
    "responses with invalid chunks",
    "responses with a wrong content coding",
)
COUNTED = {
    "gzip declared, not packed": (answer(PAGE, "Content-Encoding: gzip"), NOT_PACKED),
    "deflate declared, not packed": (answer(PAGE, "Content-Encoding: deflate"), NOT_PACKED),
    "br declared, not packed": (answer(PAGE, "Content-Encoding: br"), NOT_PACKED),
    "zstd declared, not packed": (answer(PAGE, "Content-Encoding: zstd"), NOT_PACKED),
    "half of gzip": (answer(PACKED[: len(PACKED) // 2], "Content-Encoding: gzip"), CUT),
    "half of deflate": (answer(zlib.compress(PAGE)[:-30], "Content-Encoding: deflate"), CUT),
    "half of br": (answer(brotli(PAGE)[:-30], "Content-Encoding: br"), CUT),
    "half of zstd": (answer(zstandard(PAGE)[:-30], "Content-Encoding: zstd"), CUT),
    "half of a page": (answer(PAGE[:-30], f"Content-Length: {len(PAGE)}"), CUT),
    "half of a page of an unknown coding": (
        answer(PAGE[:-30], "Content-Encoding: utf-8", f"Content-Length: {len(PAGE)}"),
        CUT,
    ),
    "half of the last frame of zstd": (answer(frames(PAGE)[:-40], "Content-Encoding: zstd"), CUT),
    "binary of an unknown coding": (
        answer(PACKED, "Content-Encoding: compress"),
        "responses of an unknown content coding",
    ),
    "not chunked": (answer(PAGE, CHUNKED), BAD_CHUNKS),
    "negative chunk": (answer(b"-5\r\nabcde\r\n0\r\n\r\n", CHUNKED), BAD_CHUNKS),
    "0x": (answer(b"0x5\r\nabcde\r\n0\r\n\r\n", CHUNKED), BAD_CHUNKS),
    "endless size": (answer(b"F" * 40 + b"\r\nabcde\r\n0\r\n\r\n", CHUNKED), BAD_CHUNKS),
    "short chunk": (answer(b"3\r\nabcde\r\n0\r\n\r\n", CHUNKED), BAD_CHUNKS),
    "long chunk": (answer(b"7fffffff\r\nabcde\r\n0\r\n\r\n", CHUNKED), CUT),
    "no last chunk": (answer(chunked(PAGE)[:-5], CHUNKED), CUT),
    "headers cut short": (b"HTTP/1.1 200 OK\r\nContent-Type: text/ht", CUT),
    "status cut short": (b"HTTP/1.1 2", CUT),
    "no headers": (PAGE, "responses without HTTP headers"),
    "nothing": (b"", CUT),
}


@pytest.mark.parametrize("packed", [True, False], ids=["members", "plain"])
@pytest.mark.parametrize("name", [*READ, *COUNTED])
def test_a_damaged_response_costs_only_itself(tmp_path, name, packed):
    block, reason = COUNTED.get(name) or (READ[name], None)
    parts = [good(0), record(block), *map(good, range(1, 10))]
    path = tmp_path / ("a.warc.gz" if packed else "a.warc")
    path.write_bytes(b"".join(map(gzip.compress, parts)) if packed else b"".join(parts))
    documents, unreadable = pages.read_all(path)
    urls = [document.url.rpartition("/")[2] for document in documents]
    assert urls == ["0", *([] if reason else ["bad"]), *map(str, range(1, 10))]
    assert unreadable == ({reason: 1} if reason else {})
    assert reason or documents[1].html == PAGE.decode()


BAD = record(answer(PAGE))
LENGTH = len(answer(PAGE))
CONTAINER = {
    # name: (bytes of the record, reason in a member of its own, reason in a plain file)
    "too long": (record(answer(PAGE), length=LENGTH + 700), "records cut off", None),
    "far too long": (record(answer(PAGE), length=10**12), "records cut off", None),
    "a request that is too long": (
        record(b"GET / HTTP/1.1\r\n\r\n", length=11 << 20, kind="request"),
        "records cut off",
        None,
    ),
    "a request without a length": (
        record(b"GET / HTTP/1.1\r\n\r\n", length="", kind="request"),
        "records damaged",
        None,
    ),
    "too short": (record(answer(PAGE), length=LENGTH - 100), "records with a wrong length", None),
    "no number": (record(answer(PAGE), length="many"), "records damaged", None),
    "negative": (record(answer(PAGE), length=-5), "records damaged", None),
    "no length": (BAD.replace(b"Content-Length", b"X-Length", 1), "records damaged", None),
    "version alone": (b"WARC/1.0", "records cut off", "records damaged"),
    "version line alone": (b"WARC/1.0\r\n", "records cut off", "records damaged"),
    "headers cut short": (BAD[:90] + b"\r\n", "records cut off", "records damaged"),
    "garbage": (b"\x00\x01 no record\r\n" * 20, "records damaged", None),
    "garbage without an end": (b"\x00\xff no record" * 20, "records damaged", None),
    "of another type": (record(b"x", kind="resource"), "records of other types", None),
}


@pytest.mark.parametrize(
    ("name", "packed"),
    [
        (name, packed)
        for name in CONTAINER
        for packed in ("members", "plain", "one member", "cut anywhere")
    ],
)
def test_a_damaged_record_costs_only_itself(tmp_path, name, packed):
    bad, reason, in_plain = CONTAINER[name]
    if packed != "members":
        reason = in_plain or reason.replace("cut off", "with a wrong length")
        bad += b"\r\n" if name == "version alone" else b""
    parts = [good(0), bad, *map(good, range(1, 5))]
    path = tmp_path / ("a.warc" if packed == "plain" else "a.warc.gz")
    whole = b"".join(map(gzip.compress, parts) if packed == "members" else parts)
    if packed == "one member":
        whole = gzip.compress(whole)
    elif packed == "cut anywhere":
        pieces = (whole[i : i + 777] for i in range(0, len(whole), 777))
        whole = b"".join(gzip.compress(piece) for piece in pieces)
    path.write_bytes(whole)
    documents, unreadable = pages.read_all(path)
    assert [document.url[-1] for document in documents] == [*"01234"]
    assert unreadable == {reason: 1}


def test_a_damaged_member_costs_only_itself(tmp_path):
    members = [gzip.compress(good(number)) for number in range(6)]
    for number, place in ((1, 5), (3, len(members[3]) // 2), (4, len(members[4]) - 6)):
        damaged = bytearray(members[number])
        damaged[place : place + 2] = b"\xff\xff"  # the header, the data, the checksum
        members[number] = bytes(damaged)
    (tmp_path / "a.warc.gz").write_bytes(members[0] + bytes(100) + b"".join(members[1:]))
    documents, unreadable = pages.read_all(tmp_path)
    # A damaged time stamp in the header of a member loses nothing.
    assert [document.url[-1] for document in documents] == [*"0125"]
    assert unreadable == {"records damaged": 2}


def test_a_gzip_body_inside_a_damaged_member_is_not_a_member(tmp_path):
    """The body is stored without compression, so the file contains its gzip header."""
    stored = bytearray(gzip.compress(record(READ["gzip"]), compresslevel=0, mtime=0))
    assert PACKED in stored
    stored[11:13] = b"\xff\xff"  # the length of the stored block
    (tmp_path / "a.warc.gz").write_bytes(gzip.compress(good(0)) + stored + gzip.compress(good(1)))
    documents, unreadable = pages.read_all(tmp_path)
    assert [document.url[-1] for document in documents] == [*"01"]
    assert unreadable == {"records damaged": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (gzip.compress(b"WARC/1.0"), "records cut off"),
        (gzip.compress(good(0))[:-30], "files: truncated"),
        (b"not gzip", "files: damaged"),
        (gzip.compress(b"not WARC"), "records damaged"),
        (b"", "files: no records"),
        (gzip.compress(b""), "files: no records"),
        (gzip.compress(record(b"", kind="warcinfo")), "files: no records"),
    ],
    # The content would change the ids, because a gzip header contains the time.
    ids=["version", "cut", "plain", "other", "empty", "empty_member", "no_response"],
)
def test_a_file_without_documents_is_counted(tmp_path, content, reason):
    (tmp_path / "a.warc.gz").write_bytes(content)
    assert pages.read_all(tmp_path) == ([], {reason: 1})


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_bomb_inside_a_response_takes_little_memory(tmp_path, coding):
    pack = {"gzip": gzip.compress, "deflate": zlib.compress, "br": brotli, "zstd": zstandard}
    bomb = pack[coding](bytes(64 << 20))
    (tmp_path / "a.warc").write_bytes(record(answer(bomb, f"Content-Encoding: {coding}")) + good(1))
    (documents, unreadable), peak = peak_of(pages.read_all, tmp_path, max_document_bytes=1 << 20)
    assert (len(documents), unreadable) == (1, {"records too large": 1})
    assert peak < 24 << 20


def test_large_records_are_skipped(tmp_path):
    large = record(answer(b"<p>" + bytes(3 << 20)))
    (tmp_path / "a.warc").write_bytes(good(0) + large + good(1))
    (tmp_path / "b.warc.gz").write_bytes(b"".join(map(gzip.compress, (good(0), large, good(1)))))
    documents, unreadable = pages.read_all(tmp_path, max_document_bytes=1 << 20)
    assert [document.url[-1] for document in documents] == [*"0101"]
    assert unreadable == {"records too large": 2}


def test_a_record_with_a_too_large_length_costs_only_itself(tmp_path):
    """The record declares 2 MB, which would include the next records."""
    too_long = record(answer(PAGE), length=2 << 20)
    parts = [good(0), too_long, good(1), good(2), record(answer(bytes(3 << 20))), good(3)]
    (tmp_path / "a.warc").write_bytes(b"".join(parts))
    documents, unreadable = pages.read_all(tmp_path, max_document_bytes=1 << 20)
    assert [document.url[-1] for document in documents] == [*"0123"]
    assert unreadable == {"records with a wrong length": 1, "records too large": 1}


def test_a_record_that_is_a_bomb_costs_only_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "FREE_BYTES", 1 << 20)
    bomb = gzip.compress(record(answer(bytes(9 << 20))))
    first, *others = (gzip.compress(good(number)) for number in range(3))
    path = tmp_path / "a.warc.gz"
    path.write_bytes(first + bomb + others[0] + bomb + bomb + others[1])
    documents, unreadable = pages.read_all(path, max_file_ratio=20)
    assert [document.url[-1] for document in documents] == [*"012"]
    assert unreadable == {"records too large": 3}
    # Too many bombs end the file.
    path.write_bytes(first + 40 * bomb + others[0])
    documents, unreadable = pages.read_all(path, max_file_ratio=20)
    assert [document.url[-1] for document in documents] == ["0"]
    assert unreadable == {"records too large": 16, "files: bomb": 1}


@pytest.mark.parametrize(("line", "count"), [(b"\n", 24), (b"x\n", 8), (b"X: y\n", 4)])
def test_millions_of_lines_are_skipped_quickly(tmp_path, line, count):
    lines = (b"" if line.isspace() else b"WARC/1.0\r\n") + line * (count << 20)
    parts = [good(0), lines, b"\n", good(1)]
    (tmp_path / "a.warc").write_bytes(b"".join(parts))
    start = time.process_time()
    documents, unreadable = pages.read_all(tmp_path)
    assert time.process_time() - start < 8
    assert [document.url[-1] for document in documents] == [*"01"]
    assert unreadable == ({} if line.isspace() else {"records damaged": 1})


@pytest.mark.parametrize("ending", [".warc.zst", ".jsonl.zst", ".txt.zst"])
def test_a_truncated_zstandard_file_is_counted(tmp_path, ending):
    whole = {".warc.zst": good(0), ".jsonl.zst": b'{"text": "one"}\n', ".txt.zst": b"one"}[ending]
    whole = zstandard(whole) + zstandard(whole)
    (tmp_path / f"a{ending}").write_bytes(whole)
    documents, unreadable = pages.read_all(tmp_path)
    assert (len(documents), unreadable) == (1 if ending == ".txt.zst" else 2, {})
    (tmp_path / f"a{ending}").write_bytes(whole[:-8])
    documents, unreadable = pages.read_all(tmp_path)
    assert (len(documents), unreadable) == (
        0 if ending == ".txt.zst" else 1,
        {"files: truncated": 1},
    )


def test_the_records_are_those_of_fastwarc(tmp_path):
    """Reads the same pages as one member, as Zstandard, with extra empty lines and so on."""
    fastwarc = pytest.importorskip("fastwarc.warc")
    import zstandard as library

    parts = [good(number) for number in range(20)]
    whole = b"".join(parts).replace(b"\r\n\r\nWARC/", b"\r\n\r\n\r\nWARC/", 3)
    for name, content in (
        ("a.warc", whole),
        ("b.warc.gz", gzip.compress(whole)),
        ("c.warc.gz", b"".join(map(gzip.compress, parts))),
        ("d.warc.zst", library.compress(whole)),
        (
            "g.warc.gz",
            b"".join(gzip.compress(whole[i : i + 500]) for i in range(0, len(whole), 500)),
        ),
        ("e.warc", whole.replace(b"WARC/1.0", b"WARC/1.1")),
        ("f.warc", whole.replace(b"WARC/1.0", b"WARC/0.18")),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        documents, unreadable = pages.read_all(path)
        assert not unreadable
        if not name.endswith("zst"):
            with open(path, "rb") as file:
                theirs = [
                    (each.headers["WARC-Target-URI"], each.reader.read().decode())
                    for each in fastwarc.ArchiveIterator(file)
                ]
            assert [(document.url, document.html) for document in documents] == theirs
        assert [document.url.rpartition("/")[2] for document in documents] == [*map(str, range(20))]


def test_real_files_are_read_as_fastwarc_reads_them():
    """The files date from 2008 (WARC/0.18) to 2017 and were written by three programs."""
    fastwarc = pytest.importorskip("fastwarc.warc")
    paths = sorted((data_dir() / "warc").glob("*.warc*"))
    if not paths:
        pytest.skip("ZOO_DATA_DIR holds no warc")
    for path in paths:
        with open(path, "rb") as file:
            theirs = [
                (each.record_id.strip("<>"), each.reader.read())
                for each in fastwarc.ArchiveIterator(file, parse_http=False)
            ]
        with Members(str(path), 200, b"WARC/") as members:
            ours = list(read_records(members, 10 << 20))
        assert not any(each.problem for each in ours)
        ours = [(each.headers["warc-record-id"].strip("<>"), each.body) for each in ours]
        assert ours == theirs


def test_random_damage_is_counted_and_costs_at_most_two_records(tmp_path):
    """Flips, deletes or inserts bytes in one member of ten; every lost record is counted."""
    draw = random.Random(0)
    members = [gzip.compress(good(number)) for number in range(10)]
    for turn in range(120):
        changed, bad = list(members), draw.randrange(10)
        data, place = bytearray(changed[bad]), draw.randrange(len(changed[bad]))
        kind = turn % 3
        if kind == 0:
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[place : place + draw.randint(1, 50)]
        else:
            data[place:place] = draw.randbytes(draw.randint(1, 50))
        changed[bad] = bytes(data)
        (tmp_path / "a.warc.gz").write_bytes(b"".join(changed))
        documents, unreadable = pages.read_all(tmp_path)
        urls = {document.url[-1] for document in documents}
        assert len(urls) == len(documents) >= 8
        assert {*"0123456789"} - urls <= {str(bad), str(bad + 1)}
        assert unreadable or len(documents) == 10, (turn, kind, place)
        assert all(d.html == pages.page(int(d.url[-1])) for d in documents)
