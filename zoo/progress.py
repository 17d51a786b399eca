"""Progress of long loops: a tqdm bar on a terminal, otherwise a line every ten seconds."""

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
    """Returns the class of bars; imports tqdm late, since tqdm imports network modules."""
    from tqdm import tqdm

    class Bar(tqdm):
        monitor_interval = 0  # no monitor thread

    Bar.set_lock(threading.RLock())  # tqdm's default lock is also shared between processes
    logs.HANDLER.around = Bar.external_write_mode
    return Bar


class _Lines:
    """File object for tqdm that logs each line."""

    def write(self, text: str) -> None:
        if text := text.strip():
            _LOG.info(text)

    def flush(self) -> None:
        pass


def progress(
    iterable: Iterable | None = None, *, title: str, unit: str, total: int | None = None, **options
):
    """Returns an iterator over `iterable`, or a bar to `update`, that shows the progress of a loop.

    Args:
      iterable: elements of the loop; None for a bar that advances by `update(count)`.
      title: description of the loop.
      unit: unit of `total`, a plural noun.
      total: number of steps; `len(iterable)` by default.
      **options: additional arguments of tqdm.

    Returns:
      A `tqdm.tqdm`, also a context manager. It shows nothing for the first second (on a terminal)
      or the first ten seconds (otherwise), and nothing at all with `-q`.
    """
    if sys.stderr and sys.stderr.isatty():
        output_options = {
            "file": sys.stderr,
            "delay": 1.0,
            "mininterval": 0.5,
            "dynamic_ncols": True,
        }
    else:
        output_options = {
            "file": _Lines(), "delay": _SECONDS, "mininterval": _SECONDS, "bar_format": _LINE
        }  # fmt: skip
    return _bar()(
        iterable, desc=title, unit=f" {unit}", total=total, miniters=1,
        disable=not _LOG.isEnabledFor(logging.INFO), **output_options, **options,
    )  # fmt: skip
