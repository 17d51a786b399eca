"""Messages of the zoo: standard logging, written to stderr as plain lines.

Every module logs to `logging.getLogger(__name__)`. `install` adds a handler to the logger of a
package, so that messages are also shown without the command line. The logger does not propagate
records to the root logger: no message is written twice, and a library that calls
`logging.basicConfig` does not change the lines. To reduce the output in Python:

    logging.getLogger("trainers").setLevel(logging.WARNING)
"""

import contextlib
import logging
import sys

PLAIN = {"prefix": ""}  # `extra` of a record to be written without "zoo: "
_PACKAGES = ("zoo", "trainers")


class _StandardError(logging.Handler):
    """Handler that writes each record to the current `sys.stderr`."""

    around = contextlib.nullcontext  # zoo.progress sets a context that hides bars

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr:
            with self.around():
                sys.stderr.write(self.format(record) + "\n")
                sys.stderr.flush()


HANDLER = _StandardError()
HANDLER.setFormatter(logging.Formatter("%(prefix)s%(message)s", defaults={"prefix": "zoo: "}))


def install(package: str) -> None:
    """Adds the handler to the logger of a package, and sets level INFO if no level is set."""
    logger = logging.getLogger(package)
    logger.addHandler(HANDLER)
    logger.propagate = False
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


def set_level(level: int) -> None:
    """Sets the minimum level of messages to write."""
    for package in _PACKAGES:
        logging.getLogger(package).setLevel(level)
