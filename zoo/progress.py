"""Progress of long loops: a tqdm bar on a terminal, elsewhere a line every ten seconds."""

import functools
import logging
import sys
import threading
from collections.abc import Iterable

from zoo import logs

_LOG = logging.getLogger(__name__)
_SECONDS = 10.0
_LINE = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


@functools.cache
def _bar() -> type:
    """Returns the class of bars; tqdm imports the network, which most commands never need."""
    from tqdm import tqdm

    class Bar(tqdm):
        monitor_interval = 0  # no thread of its own

    Bar.set_lock(threading.RLock())  # tqdm's own lock would also be one between processes
    logs.HANDLER.around = Bar.external_write_mode
    return Bar


class _Lines:
    """A file for tqdm, which logs each line that is drawn."""

    def write(self, text: str) -> None:
        if text := text.strip():
            _LOG.info(text)

    def flush(self) -> None:
        pass


def progress(
    iterable: Iterable | None = None, *, title: str, unit: str, total: int | None = None, **options
):
    """Returns an iterator over `iterable`, or a bar to `update`, that shows how far a loop is.

    Args:
      iterable: what the loop goes over; None for a bar that `update(count)` advances.
      title: what the loop does.
      unit: plural noun of what `total` counts.
      total: number of steps; `len(iterable)` by default.
      **options: further ones of tqdm.

    Returns:
      A `tqdm.tqdm`, also a context manager. Loops that end before the first second (on a terminal)
      or the first ten seconds show nothing, as do all with `-q`.
    """
    if sys.stderr and sys.stderr.isatty():
        place = {"file": sys.stderr, "delay": 1.0, "mininterval": 0.5, "dynamic_ncols": True}
    else:
        place = {
            "file": _Lines(), "delay": _SECONDS, "mininterval": _SECONDS, "bar_format": _LINE
        }  # fmt: skip
    return _bar()(
        iterable, desc=title, unit=f" {unit}", total=total, miniters=1,
        disable=not _LOG.isEnabledFor(logging.INFO), **place, **options,
    )  # fmt: skip
