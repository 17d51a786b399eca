"""From a page to its main text, by trafilatura; with title, date, language and licence."""

import contextlib
import logging
import re
import signal
import threading
from collections.abc import Iterator, Mapping

from zoo.prep.document import Document

_LANGUAGE = re.compile(r"<html[^>]{0,500}?\slang\s*=\s*[\"']?([A-Za-z]{2,3})\b", re.IGNORECASE)


# A date behind this is none. The library takes the day on which it runs: other dates each day.
_LAST_DATE = "2100-01-01"

# They log what is wrong with each page; here it is counted.
for _name in ("trafilatura", "htmldate"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class TooSlow(BaseException):
    """The time for a page is over. No Exception: nothing in a library must swallow it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TooSlow inside the block after `seconds` of processor time, at Python's next step.

    A loaded machine takes no page's time away; a faster one gives it more. Only the main thread can
    be interrupted; in another one, as some Beam runners use, there is no limit, and the limits of
    size alone bound the work.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number, frame):
        raise TooSlow

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def extract(document: Document, settings: Mapping) -> str:
    """Fills in the text of a page; returns "" or the reason why there is none.

    Documents that came as text pass as they are.

    Args:
      document: its `html` is taken away.
      settings: the section `prep.extract`.
    """
    if document.html is None:
        return "" if document.text.strip() else "no text"
    page, document.html = document.html, None
    try:
        with time_limit(settings["timeout"]):
            return _extract(document, page, settings)
    except TooSlow:
        return "too slow"


def _extract(document: Document, page: str, settings: Mapping) -> str:
    from trafilatura import bare_extraction
    from trafilatura.settings import set_date_params

    try:
        tree = parsed(page)
        if tree is None:
            return "no page"
        found = bare_extraction(
            tree,
            url=document.url or None,
            favor_precision=settings["favor"] == "precision",
            favor_recall=settings["favor"] == "recall",
            include_comments=settings["comments"],
            include_tables=settings["tables"],
            with_metadata=settings["metadata"],
            date_extraction_params={**set_date_params(extensive=False), "max_date": _LAST_DATE},
        )
    except (RecursionError, ValueError, TypeError, AttributeError, LookupError, AssertionError):
        return "extractor failed"
    if found is None:
        return "no main text"
    document.text = found.text or ""
    if found.comments:
        document.text = f"{document.text}\n{found.comments}".strip()
    if not document.text.strip():
        return "no main text"
    if settings["metadata"]:
        document.title = document.title or (found.title or "")[:500]
        document.date = document.date or (found.date or "")
        document.licence = document.licence or (found.license or "")[:200]
    said = _LANGUAGE.search(page[:4096])
    document.language = document.language or (said.group(1).lower() if said else "")
    return ""


def parsed(page: str):
    """Returns the tree of a page, by lxml as trafilatura sets it up; None where it is none.

    libxml2 looks no deeper than 256 elements, so what recurses over the tree comes to an end.
    """
    from trafilatura.utils import load_html

    return load_html(page)
