"""From files to documents: WARC and WET, pages, texts, JSONL and Parquet.

Whatever a file holds, reading it ends: what cannot be used is skipped and counted, by its reason,
in `Tally.unreadable`. Nothing larger than `prep.max_document_bytes` is ever held.
"""

import json
from collections.abc import Callable, Iterator, Mapping

from zoo.prep import parquet, response, warc
from zoo.prep.charset import as_utf8, decode, without_surrogates
from zoo.prep.document import Document, Tally
from zoo.prep.members import Members
from zoo.prep.unpack import opened

PAGES = ("text/html", "application/xhtml+xml")
# What a document may bring along; the first name that is there counts.
_FIELDS = {
    "url": ("url", "link"),
    "title": ("title",),
    "date": ("date", "timestamp"),
    "language": ("language", "lang"),
    "licence": ("licence", "license"),
}


def documents(shard: Mapping, prep: Mapping, tally: Tally) -> Iterator[Document]:
    """Yields the documents of a shard of `zoo.prep.files`, in the order of the input.

    Their `key` is their place among the records of the shard's files.

    Args:
      shard: with "files", "stripe" and "stripes".
      prep: the recipe's section.
      tally: its `unreadable` is added to.
    """
    stripe, stripes = shard["stripe"], shard["stripes"]
    before = 0
    for file in shard["files"]:
        number = -1

        def mine():
            # Called once for every record, whatever becomes of it: stripes share them all.
            nonlocal number
            number += 1
            return number % stripes == stripe

        # What a whole file suffers is counted by one of its stripes.
        whole = tally if stripe == 0 else Tally()
        problems = whole.unreadable.total()
        try:
            for document in _READERS[file["kind"]](file["path"], prep, mine, tally, whole):
                document.source, document.key = file["path"], before + number
                document.licence = document.licence or prep["licence"]
                yield document
        except OSError as error:
            whole.unreadable[f"files: {error.strerror or 'damaged'}"] += 1
        if number < 0 and whole.unreadable.total() == problems:
            whole.unreadable["files: no records"] += 1
        before += number + 1


# --- readers: (path, settings, whether the next record is ours, tally, tally of the file) ---------


# Records that never hold a page: whole ones are left out and not counted.
_ABOUT = ("warcinfo", "request", "metadata")


def _warc(path: str, prep: Mapping, mine: Callable, tally: Tally, whole: Tally):
    limit = prep["max_document_bytes"]
    with Members(path, prep["max_file_ratio"], b"WARC/") as members:
        for record in warc.records(members, limit):
            if (record.type in _ABOUT and not record.problem) or not mine():
                continue
            try:
                yield _of_record(record, limit)
            except response.Unreadable as reason:
                tally.unreadable[str(reason)] += 1
        if members.problem:
            whole.unreadable[f"files: {members.problem}"] += 1


def _of_record(record: warc.Record, limit: int) -> Document:
    """Returns the page or text of a record; raises `Unreadable` with the reason why it is none."""
    if record.problem:
        raise response.Unreadable(record.problem)
    url = record.headers.get("warc-target-uri", "").strip("<>")
    url = without_surrogates(url)[:2000]
    if record.type == "conversion":
        declared = response.charset_of(record.headers.get("content-type", "")) or "utf-8"
        return Document(text=decode(record.body, declared, page=False), url=url)
    if record.type != "response":
        raise response.Unreadable("records of other types")
    if not url.lower().startswith(("http:", "https:")):
        raise response.Unreadable("records of no page")
    answer = response.parse(record.body)
    if answer.status != 200:
        raise response.Unreadable("responses other than 200")
    page = answer.media_type in PAGES
    if not page and answer.media_type != "text/plain":
        raise response.Unreadable("responses of other types")
    text = decode(answer.body(limit), answer.charset, page)
    return Document(html=text, url=url) if page else Document(text=text, url=url)


def _whole(path: str, prep: Mapping, tally: Tally, whole: Tally) -> bytes | None:
    limit = prep["max_document_bytes"]
    with opened(path, prep["max_file_ratio"]) as file:
        content = file.read(limit + 1)
        _count_problem(file, whole)
        if file.raw.problem:  # half a page is no page
            return None
    if len(content) > limit:
        tally.unreadable["documents too large"] += 1
        return None
    if not content.strip():
        tally.unreadable["empty documents"] += 1
        return None
    return content


def _html(path: str, prep: Mapping, mine: Callable, tally: Tally, whole: Tally):
    content = _whole(path, prep, tally, whole) if mine() else None
    if content is not None:
        yield Document(html=decode(content))


def _text(path: str, prep: Mapping, mine: Callable, tally: Tally, whole: Tally):
    content = _whole(path, prep, tally, whole) if mine() else None
    if content is not None:
        yield Document(text=decode(content, page=False))


def _jsonl(path: str, prep: Mapping, mine: Callable, tally: Tally, whole: Tally):
    # Escaped, a character takes up to twelve bytes; half of that is more than any text needs.
    limit = 6 * prep["max_document_bytes"]
    with opened(path, prep["max_file_ratio"]) as file:
        while line := file.readline(limit + 1):
            cut = len(line) > limit
            while cut and line and not line.endswith(b"\n"):
                line = file.readline(1 << 16)
            if not (cut or line.strip()) or not mine():
                continue
            if cut:
                tally.unreadable["records too large"] += 1
            elif not file.raw.problem:
                text = as_utf8(line)
                if text is None:
                    tally.unreadable["lines that are not UTF-8"] += 1
                    continue
                try:
                    row = json.loads(text, strict=False)
                except (ValueError, RecursionError):
                    tally.unreadable["lines that are no JSON"] += 1
                    continue
                if document := _of_row(row, prep, tally):
                    yield document
        _count_problem(file, whole)


def _parquet(path: str, prep: Mapping, mine: Callable, tally: Tally, whole: Tally):
    import pyarrow

    wanted = {
        prep["text_field"],
        prep["html_field"],
        *(n for names in _FIELDS.values() for n in names),
    }
    try:
        for group in parquet.row_groups(path, wanted, mine, prep["max_file_ratio"]):
            try:
                for row in group:
                    if document := _of_row(row, prep, tally):
                        yield document
            except parquet.DamagedRows:
                whole.unreadable["row groups damaged"] += 1
    except parquet.Bomb:
        whole.unreadable["files: bomb"] += 1
    except (pyarrow.ArrowException, ValueError, KeyError, NotImplementedError):
        whole.unreadable["files: damaged"] += 1


def _corpus(name: str, prep: Mapping, mine: Callable, tally: Tally, whole: Tally):
    from zoo.data.corpora import load_corpus

    corpus = load_corpus(name)
    language = corpus.languages[0] if len(corpus.languages) == 1 else ""
    for split in corpus.splits.values():
        for text in split():
            if mine():
                text = "\n".join(text) if isinstance(text, tuple) else text
                yield Document(text=text, language=language, licence=corpus.licence)


_READERS = {
    "warc": _warc, "html": _html, "text": _text, "jsonl": _jsonl, "parquet": _parquet,
    "corpus": _corpus,
}  # fmt: skip


# --- parts ----------------------------------------------------------------------------------------


def _count_problem(file, whole: Tally) -> None:
    if file.raw.problem:
        whole.unreadable[f"files: {file.raw.problem}"] += 1


def _of_row(row, prep: Mapping, tally: Tally) -> Document | None:
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
    content = without_surrogates(content)
    if len(content.encode()) > prep["max_document_bytes"]:
        tally.unreadable["records too large"] += 1
        return None
    found = Document(html=content) if page else Document(text=content)
    for field, names in _FIELDS.items():
        values = (row.get(name) for name in names)
        value = next((value for value in values if value and value is not parquet.DAMAGED), "")
        setattr(found, field, without_surrogates(str(value))[:2000])
    return found
