"""Standard streams that are closed, full, or a pipe without a reader.

Text that cannot be written to stderr is dropped and the command continues. The same applies to
stdout in a command that writes files, such as training. In other commands a failed write to stdout
is an error.
"""

import contextlib
import errno
import io
import os
import sys


@contextlib.contextmanager
def standard_streams(drop_output: bool):
    """Opens missing standard streams for a command.

    The next opened file would get the number of a closed descriptor, and C libraries would write
    messages into that file. So /dev/null gets the number.

    Args:
      drop_output: whether to drop output that cannot be written to stdout.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: `descriptor`
    before, standard_input = (sys.stdout, sys.stderr), sys.stdin
    sys.stdin = standard_input or io.StringIO()  # a closed stdin reads as empty
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):  # for file names that are not text
            stream.reconfigure(errors="backslashreplace")
    output = before[0] or _ClosedStream()
    sys.stdout = DroppingStream(output) if drop_output else output
    sys.stderr = DroppingStream(before[1] or _ClosedStream())
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                redirect_to_null(stream)  # otherwise Python fails again at exit
        (sys.stdout, sys.stderr), sys.stdin = before, standard_input


def redirect_to_null(stream) -> None:
    """Redirects a stream that cannot be written to /dev/null."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null_device = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null_device, stream.fileno())
        os.close(null_device)


class DroppingStream:
    """A text stream that drops text that cannot be written.

    Args:
      stream: the wrapped stream.
    """

    def __init__(self, stream):
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            redirect_to_null(self._stream)
        return len(text)

    def writelines(self, lines) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            redirect_to_null(self._stream)


class _ClosedStream(io.TextIOBase):
    """Replacement for a stream that was closed when the process started."""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "the standard output is closed")
