"""Extracts the main text of a page by trafilatura, with title, date, language and license."""

import contextlib
import logging
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping

from zoo.prep.document import Document

_LANGUAGE = re.compile(r"<html[^>]{0,500}?\slang\s*=\s*[\"']?([A-Za-z]{2,3})\b", re.IGNORECASE)
# Later dates are ignored. The library's default is today, which makes the output change by day.
_LAST_DATE = "2100-01-01"
_SHORTEST_TIMER = 0.01  # seconds
# CPU time of the main thread at which the current time limit passes; None outside of `time_limit`.
_deadline: float | None = None

# These libraries log every bad page; the data card counts them instead.
for _name in ("trafilatura", "htmldate"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class TooSlow(BaseException):
    """The time limit of a page passed. A BaseException, so that no library catches it."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TooSlow inside the block after `seconds` of CPU time of this thread.

    CPU time does not depend on the load of the machine. Only the main thread can be interrupted: in
    another thread, which some Beam runners use, there is no time limit, only the size limits.
    """
    global _deadline
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # The handler stays: a signal may arrive after the timer is off, and its default action would
    # end the process.
    signal.signal(signal.SIGPROF, _on_alarm)
    _deadline = time.thread_time() + seconds
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        _deadline = None
        signal.setitimer(signal.ITIMER_PROF, 0)


def _on_alarm(number, frame) -> None:
    if _deadline is None:
        return
    # The timer counts the time of all threads.
    if (left := _deadline - time.thread_time()) > 0:
        signal.setitimer(signal.ITIMER_PROF, max(left, _SHORTEST_TIMER))
        return
    raise TooSlow


def extract(document: Document, settings: Mapping) -> str:
    """Extracts the text of a page in place. Documents without HTML are not changed.

    Args:
      document: gets the text and metadata; its `html` is removed.
      settings: section `prep.extract` of the recipe.

    Returns:
      The reason to drop the document, or "".
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
        tree = parse_html(page)
        if tree is None:
            return "no page"
        result = bare_extraction(
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
    if result is None:
        return "no main text"
    document.text = result.text or ""
    if result.comments:
        document.text = f"{document.text}\n{result.comments}".strip()
    if not document.text.strip():
        return "no main text"
    if settings["metadata"]:
        document.title = document.title or (result.title or "")[:500]
        document.date = document.date or (result.date or "")
        document.licence = document.licence or (result.license or "")[:200]
    declared_language = _LANGUAGE.search(page[:4096])
    document.language = document.language or (
        declared_language.group(1).lower() if declared_language else ""
    )
    return ""


def parse_html(page: str):
    """Returns the lxml tree of a page by trafilatura's parser; None if it is not HTML.

    libxml2 limits the depth to 256 elements, which bounds recursion over the tree.
    """
    from trafilatura.utils import load_html

    return load_html(page)
