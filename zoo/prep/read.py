"""From files to documents: WARC and WET, pages, texts, JSONL and Parquet.

Whatever a file holds, reading it ends: what cannot be used is skipped and counted, by its reason,
in `Tally.unreadable`. Nothing larger than `prep.max_document_bytes` is ever held.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping

from zoo.data.disk import open_file
from zoo.prep import response, warc
from zoo.prep.charset import decode, without_surrogates
from zoo.prep.document import Document, Tally
from zoo.prep.members import Members
from zoo.prep.unpack import FREE_BYTES, opened

PAGES = ("text/html", "application/xhtml+xml")
_DAMAGED = object()
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

    Args:
      shard: with "files", "stripe" and "stripes".
      prep: the recipe's section.
      tally: its `unreadable` is added to.
    """
    stripe, stripes = shard["stripe"], shard["stripes"]
    for file in shard["files"]:
        number = -1

        def mine():
            # Called once for every record, whatever becomes of it: stripes share them all.
            nonlocal number
            number += 1
            return number % stripes == stripe

        # What a whole file suffers is counted by one of its stripes.
        whole = tally if stripe == 0 else Tally()
        before = whole.unreadable.total()
        try:
            for document in _READERS[file["kind"]](file["path"], prep, mine, tally, whole):
                document.source = file["path"]
                document.licence = document.licence or prep["licence"]
                yield document
        except OSError as error:
            whole.unreadable[f"files: {error.strerror or 'damaged'}"] += 1
        if number < 0 and whole.unreadable.total() == before:
            whole.unreadable["files: no records"] += 1


# --- readers: (path, settings, whether the next record is ours, tally, tally of the file) ---------


# Records that never hold a page, and are left out without a word.
_ABOUT = ("warcinfo", "request", "metadata")


def _warc(path: str, prep: Mapping, mine: Callable, tally: Tally, whole: Tally):
    limit = prep["max_document_bytes"]
    with Members(path, prep["max_file_ratio"], b"WARC/") as members:
        for record in warc.records(members, limit):
            if record.type in _ABOUT or not mine():
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
        return Document(text=decode(record.body, page=False), url=url)
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
            if not mine():
                continue
            if cut:
                tally.unreadable["records too large"] += 1
            elif line.strip() and not file.raw.problem:
                try:
                    row = json.loads(decode(line, page=False), strict=False)
                except (ValueError, RecursionError):
                    tally.unreadable["lines that are no JSON"] += 1
                    continue
                if document := _of_row(row, prep, tally):
                    yield document
        _count_problem(file, whole)


def _parquet(path: str, prep: Mapping, mine: Callable, tally: Tally, whole: Tally):
    import pyarrow
    import pyarrow.parquet

    wanted = {
        prep["text_field"],
        prep["html_field"],
        *(n for names in _FIELDS.values() for n in names),
    }
    try:
        with open_file(path) as stream, pyarrow.parquet.ParquetFile(stream) as file:
            about, size = file.metadata, 0
            most = max(FREE_BYTES, prep["max_file_ratio"] * os.path.getsize(path))
            for group in map(about.row_group, range(about.num_row_groups)):
                columns = map(group.column, range(group.num_columns))
                packed = sum(column.total_compressed_size for column in columns)
                if group.total_byte_size > max(64 << 20, prep["max_file_ratio"] * max(1, packed)):
                    whole.unreadable["files: bomb"] += 1
                    return
            columns = [name for name in file.schema_arrow.names if name in wanted]
            for number in range(about.num_row_groups):
                # Rows may share one value, so each may have the size of the whole row group.
                rows = FREE_BYTES // max(1, about.row_group(number).total_byte_size)
                for batch in file.iter_batches(max(1, min(256, rows)), [number], columns):
                    # Of all rows, so that it does not depend on which of them are `mine`.
                    size += sum(map(_bytes_of, batch.columns))
                    if size > most:
                        whole.unreadable["files: bomb"] += 1
                        return
                    for place in range(batch.num_rows):
                        if mine():
                            row = {name: _value(batch.column(name)[place]) for name in columns}
                            if document := _of_row(row, prep, tally):
                                yield document
    except (pyarrow.ArrowException, ValueError, KeyError, NotImplementedError):
        whole.unreadable["files: damaged"] += 1


def _bytes_of(column) -> int:
    """Returns the bytes of a column's values, a shared value as often as it occurs."""
    import pyarrow
    import pyarrow.compute

    if not pyarrow.types.is_dictionary(column.type):
        return column.nbytes
    try:
        lengths = pyarrow.compute.binary_length(column.dictionary)
    except pyarrow.ArrowNotImplementedError:  # neither text nor bytes
        return column.nbytes
    return pyarrow.compute.sum(lengths.take(column.indices)).as_py() or 0


def _value(field):
    """Returns a field in Python; _DAMAGED for broken UTF-8, or a date that Python cannot hold."""
    try:
        return field.as_py()
    except (ValueError, OverflowError):
        return _DAMAGED


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
    if _DAMAGED in (text, html):
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
        value = next((value for value in values if value and value is not _DAMAGED), "")
        setattr(found, field, without_surrogates(str(value))[:2000])
    return found
