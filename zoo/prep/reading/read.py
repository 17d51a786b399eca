"""Reads documents from WARC and WET, HTML, text, JSONL and Parquet files.

Content that cannot be used is skipped and counted by reason in `Tally.unreadable`. No document
larger than `prep.max_document_bytes` is held in memory.
"""

import functools
import json
from collections.abc import Callable, Iterator, Mapping

from zoo.data.text.corpora import load_corpus
from zoo.prep.document import Document, Tally
from zoo.prep.reading import parquet, response, warc
from zoo.prep.reading.charset import decode, decode_utf8, replace_surrogates
from zoo.prep.reading.members import Members
from zoo.prep.reading.unpack import open_unpacked

PAGES = ("text/html", "application/xhtml+xml")
# Metadata of a document -> names of columns; the first one with a value counts.
_FIELDS = {
    "url": ("url", "link"),
    "title": ("title",),
    "date": ("date", "timestamp"),
    "language": ("language", "lang"),
    "licence": ("licence", "license"),
}


def documents(shard: Mapping, prep: Mapping, tally: Tally) -> Iterator[Document]:
    """Yields the documents of a shard in input order.

    The `key` of a document is its index among the records of the shard's files.

    Args:
      shard: dictionary from `zoo.prep.files.make_shards`.
      prep: section `prep` of the recipe.
      tally: its `unreadable` gets the skipped content.
    """
    stripe, stripes = shard["stripe"], shard["stripes"]
    before = 0
    for file in shard["files"]:
        number = -1

        def is_selected():
            # Called once per record, also for skipped ones, so that all stripes count alike.
            nonlocal number
            number += 1
            return number % stripes == stripe

        # Problems of a whole file are counted by its first stripe only.
        file_tally = tally if stripe == 0 else Tally()
        problems = file_tally.unreadable.total()
        try:
            for document in _READERS[file["kind"]](
                file["path"], prep, is_selected, tally, file_tally
            ):
                document.source, document.key = file["path"], before + number
                document.licence = document.licence or prep["licence"]
                yield document
        except OSError as error:
            file_tally.unreadable[f"files: {error.strerror or 'damaged'}"] += 1
        if number < 0 and file_tally.unreadable.total() == problems:
            file_tally.unreadable["files: no records"] += 1
        before += number + 1


# --- readers: (path, settings, whether the stripe has the next record, tally, tally of the file) --


# Record types without pages; they are skipped and not counted.
_NO_PAGE = ("warcinfo", "request", "metadata")


def _warc(path: str, prep: Mapping, is_selected: Callable, tally: Tally, file_tally: Tally):
    limit = prep["max_document_bytes"]
    with Members(path, prep["max_file_ratio"], b"WARC/") as members:
        for record in warc.read_records(members, limit):
            if (record.type in _NO_PAGE and not record.problem) or not is_selected():
                continue
            try:
                yield _document_of_record(record, limit)
            except response.Unreadable as reason:
                tally.unreadable[str(reason)] += 1
        if members.problem:
            file_tally.unreadable[f"files: {members.problem}"] += 1


def _document_of_record(record: warc.Record, limit: int) -> Document:
    """Returns the page or text of a record; raises `Unreadable` if it has none."""
    if record.problem:
        raise response.Unreadable(record.problem)
    url = record.headers.get("warc-target-uri", "").strip("<>")
    url = replace_surrogates(url)[:2000]
    if record.type == "conversion":
        declared_encoding = response.charset_of(record.headers.get("content-type", "")) or "utf-8"
        return Document(text=decode(record.body, declared_encoding, page=False), url=url)
    if record.type != "response":
        raise response.Unreadable("records of other types")
    if not url.lower().startswith(("http:", "https:")):
        raise response.Unreadable("records without a web page")
    http_response = response.parse(record.body)
    if http_response.status != 200:
        raise response.Unreadable("responses with a status other than 200")
    page = http_response.media_type in PAGES
    if not page and http_response.media_type != "text/plain":
        raise response.Unreadable("responses of other types")
    text = decode(http_response.body(limit), http_response.charset, page)
    return Document(html=text, url=url) if page else Document(text=text, url=url)


def _html(
    path: str, prep: Mapping, is_selected: Callable, tally: Tally, file_tally: Tally, page=True
):
    if not is_selected():
        return
    limit = prep["max_document_bytes"]
    with open_unpacked(path, prep["max_file_ratio"]) as file:
        content = file.read(limit + 1)
        _count_problem(file, file_tally)
        if file.raw.problem:  # an incomplete page is not used
            return
    if len(content) > limit:
        tally.unreadable["documents too large"] += 1
    elif not content.strip():
        tally.unreadable["empty documents"] += 1
    else:
        text = decode(content, page=page)
        yield Document(html=text) if page else Document(text=text)


def _jsonl(path: str, prep: Mapping, is_selected: Callable, tally: Tally, file_tally: Tally):
    # JSON escapes take up to 12 bytes per character; 6 are enough for real text.
    limit = 6 * prep["max_document_bytes"]
    with open_unpacked(path, prep["max_file_ratio"]) as file:
        while line := file.readline(limit + 1):
            is_too_long = len(line) > limit
            while is_too_long and line and not line.endswith(b"\n"):
                line = file.readline(1 << 16)
            if not (is_too_long or line.strip()) or not is_selected():
                continue
            if is_too_long:
                tally.unreadable["records too large"] += 1
            elif not file.raw.problem:
                text = decode_utf8(line)
                if text is None:
                    tally.unreadable["lines that are not UTF-8"] += 1
                    continue
                try:
                    row = json.loads(text, strict=False)
                except (ValueError, RecursionError):
                    tally.unreadable["lines that are not JSON"] += 1
                    continue
                if document := _document_of_row(row, prep, tally):
                    yield document
        _count_problem(file, file_tally)


def _parquet(path: str, prep: Mapping, is_selected: Callable, tally: Tally, file_tally: Tally):
    import pyarrow

    columns = {prep["text_field"], prep["html_field"], *sum(_FIELDS.values(), ())}
    try:
        for group in parquet.row_groups(path, columns, is_selected, prep["max_file_ratio"]):
            try:
                for row in group:
                    if document := _document_of_row(row, prep, tally):
                        yield document
            except parquet.DamagedRows:
                file_tally.unreadable["row groups damaged"] += 1
    except parquet.Bomb:
        file_tally.unreadable["files: bomb"] += 1
    except (pyarrow.ArrowException, ValueError, KeyError, NotImplementedError):
        file_tally.unreadable["files: damaged"] += 1


def _corpus(name: str, prep: Mapping, is_selected: Callable, tally: Tally, file_tally: Tally):
    corpus = load_corpus(name)
    language = corpus.languages[0] if len(corpus.languages) == 1 else ""
    for split in corpus.splits.values():
        for text in split():
            if is_selected():
                text = "\n".join(text) if isinstance(text, tuple) else text
                yield Document(text=text, language=language, licence=corpus.licence)


_READERS = {
    "warc": _warc, "html": _html, "text": functools.partial(_html, page=False), "jsonl": _jsonl,
    "parquet": _parquet, "corpus": _corpus,
}  # fmt: skip


# --- shared by readers ----------------------------------------------------------------------------


def _count_problem(file, file_tally: Tally) -> None:
    if file.raw.problem:
        file_tally.unreadable[f"files: {file.raw.problem}"] += 1


def _document_of_row(row, prep: Mapping, tally: Tally) -> Document | None:
    if not isinstance(row, dict):
        tally.unreadable["records without text"] += 1
        return None
    text = row.get(prep["text_field"]) if prep["text_field"] else None
    html = row.get(prep["html_field"]) if prep["html_field"] else None
    if parquet.DAMAGED in (text, html):
        tally.unreadable["records damaged"] += 1
        return None
    html = decode(html) if isinstance(html, bytes) else html
    text = decode(text, page=False) if isinstance(text, bytes) else text
    page = isinstance(html, str) and bool(html)
    content = html if page else text
    if not isinstance(content, str) or not content.strip():
        tally.unreadable["records without text"] += 1
        return None
    content = replace_surrogates(content)
    if len(content.encode()) > prep["max_document_bytes"]:
        tally.unreadable["records too large"] += 1
        return None
    document = Document(html=content) if page else Document(text=content)
    for field, names in _FIELDS.items():
        values = (row.get(name) for name in names)
        value = next((value for value in values if value and value is not parquet.DAMAGED), "")
        setattr(document, field, replace_surrogates(str(value))[:2000])
    return document
