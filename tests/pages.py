"""Generates the web pages for the tests of `zoo.prep`; every call gives the same pages."""

import gzip
import json
import random
from collections import Counter
from pathlib import Path

from zoo.prep.settings import defaults

SUBJECTS = "The river|A farmer|My neighbour|The old teacher|Her brother|The young doctor|Our train|"
SUBJECTS += "The northern wind|A careful reader|The village baker|His lawyer|The small museum"
VERBS = "carried|remembered|described|repaired|followed|painted|collected|watched|answered|found"
OBJECTS = "a wooden bridge|the letters of the king|three boxes of apples|the history of the town|"
OBJECTS += "an unusual machine|the garden behind the church|a map of the coast|many black horses"
ENDS = "before the winter came|with the help of friends|and that was the end of it|in the morning|"
ENDS += "because the road was closed|while it rained|to the surprise of everyone|for many years"


def sentences(seed, count=12):
    """Returns sentences; two seeds are unlikely to give the same sentence."""
    draw = random.Random(seed)
    parts = [part.strip("|").split("|") for part in (SUBJECTS, VERBS, OBJECTS, ENDS)]
    result = []
    for _ in range(count):
        words = " ".join(draw.choice(part) for part in parts)
        result.append(f"{words}, {draw.randint(2, 99)} of them in {draw.randint(1800, 2020)}.")
    return result


def paragraphs(seed, count=12):
    """Returns a text of three sentences per line."""
    text = sentences(seed, count)
    return "\n".join(" ".join(text[i : i + 3]) for i in range(0, count, 3))


def page(seed, count=12, body="", links=()):
    """Returns an article with a menu, a script and a footer around it."""
    lines = "".join(f"<p>{line}</p>" for line in paragraphs(seed, count).split("\n"))
    anchors = "".join(f'<li><a href="{link}">Read {link}</a></li>' for link in links)
    return (
        f'<!doctype html><html lang="en"><head><title>Story {seed}</title>'
        f"<script>var menu = {{}};</script></head><body><nav><ul><li>Home</li>{anchors}</ul></nav>"
        f"<article><h1>Story {seed}</h1>{lines}{body}</article>"
        f"<footer>Copyright. All rights reserved.</footer></body></html>"
    )


def settings(**changes):
    """Returns a resolved section `prep`; `dedup__ngram=3` sets a nested key."""
    prep = json.loads(json.dumps(defaults()))
    for key, value in changes.items():
        section, _, name = key.rpartition("__")
        place = prep[section] if section else prep
        assert name in place, key
        place[name] = value
    return prep


def read_all(path, **changes):
    """Returns (documents, unreadable counts) of a file or folder, one stripe per file."""
    from zoo.prep import files
    from zoo.prep.document import Tally
    from zoo.prep.reading import read

    skipped, tally, documents = Counter(), Tally(), []
    for shard in files.make_shards(files.find_files([str(path)], skipped), 1 << 40):
        documents += read.documents(shard, settings(**changes), tally)
    return documents, dict(tally.unreadable + skipped)


DATA = {
    "tokenizer": "bpe",
    "vocabulary_size": 400,
    "normalization": "NFC",
    "sequence_length": 32,
    "packing": "best_fit",
}


def site(folder: Path, count=40):
    """Writes `count` stories as HTML, text, JSONL and WARC; returns the folder.

    Story 1 also has an exact and a near duplicate, and one page is too short.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(count // 2):
        (folder / f"page-{seed:03d}.html").write_text(page(seed))
    (folder / "short.html").write_text("<html><body><p>Nothing here.</p></body></html>")
    rows = [{"text": paragraphs(seed), "url": f"http://example.org/{seed}"}
            for seed in range(count // 2, count)]  # fmt: skip
    rows.append({"text": paragraphs(1, 60)})
    rows.append({"text": paragraphs(1, 60)})
    rows.append({"text": paragraphs(1, 60).replace("winter", "spring", 1)})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    with gzip.GzipFile(folder / "rows.jsonl.gz", "wb", mtime=0) as file:
        file.write(lines.encode())
    (folder / "story.txt").write_text(paragraphs("text", 30))
    (folder / "crawl.warc.gz").write_bytes(
        b"".join(warc(page(f"warc {i}", 30), f"http://example.net/{i}") for i in range(6))
    )
    return folder


def warc(body, url="http://example.org/", kind="text/html; charset=utf-8", status=200):
    """Returns a gzipped response record."""
    body = body.encode() if isinstance(body, str) else body
    head = f"HTTP/1.1 {status} OK\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    block = head.encode() + body
    record = (
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:0>\r\n"
        f"WARC-Date: 2026-01-01T00:00:00Z\r\nWARC-Target-URI: {url}\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(block)}\r\n\r\n"
    )
    return gzip.compress(record.encode() + block + b"\r\n\r\n", mtime=0)
