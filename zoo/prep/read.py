"""From files to documents: WARC and WET, pages, texts, JSONL and Parquet.

Whatever a file holds, reading it ends: what cannot be used is skipped and counted, by its reason,
in `Tally.unreadable`. Nothing larger than `prep.max_document_bytes` is ever held.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping

from zoo.prep.document import Document, Tally
from zoo.prep.unpack import opened

PAGES = ("text/html", "application/xhtml+xml")
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
_DECLARED = re.compile(
    rb"""<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*["']?\s*([\w-]+)""", re.IGNORECASE
)
_DAMAGED = object()
_SURROGATES = re.compile("[\ud800-\udfff]")
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
        try:
            for document in _READERS[file["kind"]](file["path"], prep, mine, tally, whole):
                document.source = file["path"]
                document.licence = document.licence or prep["licence"]
                yield document
        except OSError as error:
            whole.unreadable[f"files: {error.strerror or 'damaged'}"] += 1


# --- readers: (path, settings, whether the next record is ours, tally, tally of the file) ---------


def _warc(path: str, prep: Mapping, mine: Callable, tally: Tally, whole: Tally):
    from fastwarc.warc import ArchiveIterator, WarcRecordType

    limit = prep["max_document_bytes"]
    kinds = WarcRecordType.response | WarcRecordType.conversion
    with opened(path, prep["max_file_ratio"]) as file:
        try:
            records = ArchiveIterator(
                _Forward(file), record_types=kinds, parse_http=False, stream_detect=False
            )
            for record in _without_panic(records):
                if not mine():
                    continue
                size = record.content_length
                if size > limit:
                    tally.unreadable["records too large"] += 1
                    continue
                body = record.reader.read(size)
                if len(body) < size:
                    tally.unreadable["records cut off"] += 1
                    continue
                try:
                    document = next(_without_panic(_of_record(record, body, limit, tally)), None)
                except (OSError, ValueError, RuntimeError):
                    tally.unreadable["records damaged"] += 1
                    continue
                if document:
                    yield document
        except (OSError, ValueError, RuntimeError):
            if not file.raw.problem:
                whole.unreadable["files: damaged"] += 1
        _count_problem(file, whole)


class _Forward:
    """A file as fastwarc wants it: it asks for `seek`, and goes forward only."""

    def __init__(self, file):
        self.read, self._file = file.read, file

    def tell(self) -> int:
        return 0

    def seek(self, offset: int, whence: int = 0) -> int:
        if offset == 0 and whence == 1:
            return 0
        raise OSError("a WARC file is read forward")


def _without_panic(items: Iterator) -> Iterator:
    """Yields items; a panic of Rust code, which is no Exception, becomes a RuntimeError."""
    items = iter(items)
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            raise RuntimeError(str(error)) from None
        yield item


def _of_record(record, body: bytes, limit: int, tally: Tally) -> Iterator[Document]:
    from fastwarc.warc import WarcRecordType

    url = record.headers.get("WARC-Target-URI") or ""
    url = _clean(url.strip("<>"))[:2000]
    if record.record_type == WarcRecordType.conversion:
        yield Document(text=decode(body), url=url)
        return
    if not url.lower().startswith(("http:", "https:")):
        tally.unreadable["records of no page"] += 1
        return
    record.set_bytes_content(body)
    record.parse_http(auto_decode="all")
    headers = record.http_headers
    kind = (record.http_content_type or "").lower()
    if not headers or headers.status_code != 200:
        tally.unreadable["responses other than 200"] += 1
        return
    if kind not in PAGES and kind != "text/plain":
        tally.unreadable["responses of other types"] += 1
        return
    content = record.reader.read(limit + 1)
    if len(content) > limit:
        tally.unreadable["records too large"] += 1
        return
    text = decode(content, record.http_charset or "")
    yield Document(text=text, url=url) if kind == "text/plain" else Document(html=text, url=url)


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
        yield Document(text=decode(content))


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
                    row = json.loads(decode(line), strict=False)
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
        with pyarrow.parquet.ParquetFile(path) as file:
            about = file.metadata
            for group in map(about.row_group, range(about.num_row_groups)):
                columns = map(group.column, range(group.num_columns))
                packed = sum(column.total_compressed_size for column in columns)
                if group.total_byte_size > max(64 << 20, prep["max_file_ratio"] * max(1, packed)):
                    whole.unreadable["files: bomb"] += 1
                    return
            columns = [name for name in file.schema_arrow.names if name in wanted]
            for batch in file.iter_batches(batch_size=256, columns=columns):
                for place in range(batch.num_rows):
                    if mine():
                        row = {name: _value(batch.column(name)[place]) for name in columns}
                        if document := _of_row(row, prep, tally):
                            yield document
    except (pyarrow.ArrowException, ValueError, KeyError, NotImplementedError):
        whole.unreadable["files: damaged"] += 1


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
    text = decode(text) if isinstance(text, bytes) else text
    page = isinstance(html, str) and bool(html)
    content = html if page else text
    if not isinstance(content, str) or not content.strip():
        tally.unreadable["records without text"] += 1
        return None
    content = _clean(content)
    if len(content.encode()) > prep["max_document_bytes"]:
        tally.unreadable["records too large"] += 1
        return None
    found = Document(html=content) if page else Document(text=content)
    for field, names in _FIELDS.items():
        values = (row.get(name) for name in names)
        value = next((value for value in values if value and value is not _DAMAGED), "")
        setattr(found, field, _clean(str(value))[:2000])
    return found


def _clean(text: str) -> str:
    """JSON can spell half a surrogate pair, which no UTF-8 can hold."""
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)


def decode(content: bytes, declared: str = "") -> str:
    """Returns the text of bytes: by their mark, as UTF-8, as declared, or as they look."""
    for mark, encoding in _BOMS:
        if content.startswith(mark):
            return _clean(content[len(mark) :].decode(_without_mark(encoding, mark), "replace"))
    inside = _DECLARED.search(content[:4096])
    said = [declared, inside and inside.group(1).decode("ascii", "replace")]
    for encoding in filter(_is_seven_bits, said):  # ASCII to all others
        text = _decoded(content, encoding)
        if text is not None:
            return text
    try:
        return content.decode()
    except UnicodeDecodeError:
        pass
    text = content.decode(errors="replace")
    bad = text.count("\N{REPLACEMENT CHARACTER}")
    # Bytes of no other encoding look like UTF-8: Chinese and Japanese ones where a third does.
    if sum(map(str.isascii, text)) + 2 * bad < len(text):
        return text  # with a stray byte, or a character that was cut
    for encoding in said:
        text = _decoded(content, encoding)
        if text is not None:
            return text
    from trafilatura.utils import detect_encoding

    for encoding in detect_encoding(content):
        text = _decoded(content, encoding)
        if text is not None:
            return text
    return content.decode(errors="replace")


def _is_seven_bits(encoding: str | None) -> bool:
    return bool(re.match("iso-?2022|hz", encoding or "", re.IGNORECASE))


def _without_mark(encoding: str, mark: bytes) -> str:
    little = mark in (codecs.BOM_UTF16_LE, codecs.BOM_UTF32_LE)
    return encoding if encoding == "utf-8" else encoding + ("-le" if little else "-be")


# The five bytes that Windows-1252 leaves open are control characters to browsers.
codecs.register_error("c1", lambda e: (e.object[e.start : e.end].decode("latin-1"), e.end))


def _decoded(content: bytes, encoding: str | None) -> str | None:
    if not encoding:
        return None
    try:
        known = codecs.lookup(encoding)
        if known.name == "utf-8":
            return None
        # Browsers read Latin-1 as Windows-1252, and pages mean it.
        name = "cp1252" if known.name in ("iso8859-1", "ascii") else known.name
        return _clean(content.decode(name, "c1" if name == "cp1252" else "strict"))
    except (LookupError, ValueError, UnicodeError):
        return None
