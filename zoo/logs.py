"""Messages of the zoo: standard logging, written to stderr as plain lines.

Every module logs by `logging.getLogger(__name__)`. `install` gives a package's logger a handler, so
that messages also reach whoever uses the package without the command line. The records are not
passed on to the root logger: no message is written twice, and another library that calls
`logging.basicConfig` does not change the lines. To see less in Python:

    logging.getLogger("trainers").setLevel(logging.WARNING)
"""

import contextlib
import logging
import sys

PLAIN = {"prefix": ""}  # the `extra` of a record whose line has no "zoo: "
_PACKAGES = ("zoo", "trainers")


class _StandardError(logging.Handler):
    """Writes lines to whatever `sys.stderr` is when a record comes."""

    around = contextlib.nullcontext  # zoo.progress clears its bars around a line

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr:
            with self.around():
                sys.stderr.write(self.format(record) + "\n")
                sys.stderr.flush()


HANDLER = _StandardError()
HANDLER.setFormatter(logging.Formatter("%(prefix)s%(message)s", defaults={"prefix": "zoo: "}))


def install(package: str) -> None:
    """Gives the logger of a package the handler, and the level INFO if it has none."""
    logger = logging.getLogger(package)
    logger.addHandler(HANDLER)
    logger.propagate = False
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def set_level(level: int) -> None:
    """Sets the lowest level of messages that are written."""
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(level)
