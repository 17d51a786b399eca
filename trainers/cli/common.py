"""Code that all commands share: flag parsing, one-line errors and exit statuses.

Exit status: 0 done, 1 failed, 2 wrong use (one line, no traceback), 130 interrupted,
141 the reader of the output is gone, 143 stopped by SIGTERM or a preemption notice, and saved.
"""

import contextlib
import errno
import functools
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence

from absl import flags

from trainers.cli.streams import standard_streams
from zoo import logs
from zoo.errors import RunError, UsageError, short

LOG = logging.getLogger("trainers.cli")  # a command's own module may be __main__

flags.disclaim_key_flags()  # --help lists a flag under the command that defines it

USAGE, FAILED, INTERRUPTED, BROKEN_PIPE, TERMINATED = 2, 1, 130, 141, 143

RETRIEVAL = "faiss", "bm25s", "datasketch"  # packages of the extra `retrieval`

_OUT_OF_MEMORY = (
    "out of memory. Try in this order: a smaller trainer.micro_batch_size (gradient accumulation; "
    "same result without batch normalization), trainer.precision=mixed_bfloat16, "
    "trainer.remat=<regular expression of block names>"
)


class Help(Exception):
    """Signal that --help was given; the message is the help text."""


class Flags(flags.FlagValues):
    """The flags of a command: its own flags, --import, and -q and -v for the log level."""

    def __init__(self):
        super().__init__()
        self.strings("import", [], "Module that registers your models, tasks or datasets.")
        self.boolean("quiet", False, "Log only warnings and errors.", short_name="q")
        self.boolean("verbose", False, "Log more messages.", short_name="v")

    def _define(self, function: Callable, name: str, default, *values, **options):
        return function(name, default, *values, flag_values=self, **options)

    # Each method takes name, default and help, as in absl, and returns a flag with a `value`.
    string = functools.partialmethod(_define, flags.DEFINE_string)
    strings = functools.partialmethod(_define, flags.DEFINE_multi_string)
    integer = functools.partialmethod(_define, flags.DEFINE_integer)
    floating = functools.partialmethod(_define, flags.DEFINE_float)
    boolean = functools.partialmethod(_define, flags.DEFINE_bool)
    choice = functools.partialmethod(_define, flags.DEFINE_enum)

    def parse(
        self,
        argv: Sequence[str],
        usage: str,
        *,
        at_least: int = 0,
        at_most: int | None = None,
        overrides: bool = False,
    ):
        """Parses `argv[1:]`, sets the log level, and imports the user's modules.

        Args:
          argv: program name, then the arguments.
          usage: text that --help prints above the flags.
          at_least: minimum number of words.
          at_most: maximum number of words; None for any number.
          overrides: whether `--config.KEY=VALUE` is allowed.

        Returns:
          `(words, overrides)`: a list of words and a list of `(key, text)` pairs.

        Raises:
          UsageError: for an unknown flag, a value that does not parse, or a wrong number of words.
          Help: if --help was given.
        """
        arguments, pairs = [argv[0]], []
        for word in argv[1:]:
            if word in ("-h", "--help"):
                raise Help(f"{usage.strip()}\n{self.get_help()}")
            if overrides and word.startswith("--config.") and "=" in word:
                key, _, text = word.removeprefix("--config.").partition("=")
                pairs.append((key, text))
            elif overrides and word.startswith("--config."):
                raise UsageError(f"An override requires a value: {word}=VALUE.")
            else:
                arguments.append(word)
        self.unparse_flags()
        try:
            words = self(arguments)[1:]
        except flags.Error as error:
            unknown = overrides and isinstance(error, flags.UnrecognizedFlagError)
            hint = " To change a setting of the recipe, use --config.KEY=VALUE." if unknown else ""
            raise UsageError(short(error) + hint) from None
        if len(words) < at_least or (at_most is not None and len(words) > at_most):
            raise UsageError(f"Usage: {usage.strip().splitlines()[0]} Received: {words}.")
        quiet, verbose = self["quiet"].value, self["verbose"].value
        if quiet and verbose:
            raise UsageError("-q and -v are mutually exclusive. Received: -q and -v.")
        logs.set_level(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
        if modules := self["import"].value:
            from trainers.config.user_code import import_user_modules

            import_user_modules(modules)
        return words, pairs


def require_extra(command: str, extra: str, packages: Sequence[str]) -> None:
    """Raises `UsageError` if packages of an extra of the zoo are not installed."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        raise UsageError(
            f"{command} requires the extra `{extra}`: pip install 'keras-zoo[{extra}]'. "
            f"Not installed: {', '.join(missing)}."
        )


def loop_flags(flags_: Flags) -> tuple:
    """Defines and returns the flags --loops and --halt of a command."""
    return (
        flags_.integer("loops", 0, "Number of loops of a looped model; default: the recipe's."),
        flags_.floating("halt", 0.0, "Relative change of a state that ends its loops."),
    )


def loop_options(loops, halt) -> dict:
    """Returns the arguments of `zoo.models.looped.set_loops` that both flags give.

    Raises:
      UsageError: if a flag is out of its bounds.
    """
    if loops.present and loops.value < 1:
        raise UsageError(f"--loops must be positive. Received: {loops.value}.")
    if halt.present and not 0 < halt.value < 1:
        raise UsageError(f"--halt must be in (0, 1). Received: {halt.value}.")
    return {flag.name: flag.value for flag in (loops, halt) if flag.present}


def run(command: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs `command(argv)` and turns errors into one line and an exit status."""
    argv = list(sys.argv if argv is None else argv)
    with standard_streams(drop_output=getattr(command, "writes_files", False)):
        try:
            return _run(command, argv)
        finally:
            logs.set_level(logging.INFO)


def writes_files(command):
    """Marks a command that writes files: it continues if its output cannot be written."""
    command.writes_files = True
    return command


def _run(command: Callable[[Sequence[str]], int | None], argv: list[str]) -> int:
    try:
        try:
            with _on_this_machine(argv) as words:
                status = command(words) or 0
        except Help as answer:
            print(answer)
            status = 0
        sys.stdout.flush()
        return status
    except UsageError as error:
        return _fail(error, USAGE)
    except RunError as error:
        return _fail(error, FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:  # `zoo list | head`
        return BROKEN_PIPE
    except OSError as error:
        if error.errno == errno.EBADF and not error.filename:
            return _fail(error.strerror, FAILED)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(f"the disk is full: {error.filename or error}", FAILED)
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            return _fail(f"permission denied: {error.filename or error}", FAILED)
        if error.errno and error.filename:
            return _fail(f"{error.strerror}: {error.filename}", FAILED)
        raise
    except Exception as error:
        # TensorFlow's own class cannot be named here without importing TensorFlow.
        if type(error).__name__ == "ResourceExhaustedError" or isinstance(error, MemoryError):
            return _fail(_OUT_OF_MEMORY, FAILED)
        raise


def _on_this_machine(argv: list[str]):
    """Returns `zoo.storage.remote.localized(argv)`; imports it only if a path may be remote."""
    if not any("://" in word for word in argv):
        return contextlib.nullcontext(argv)
    from zoo.storage.remote import localized

    return localized(argv)


def _fail(error, status: int) -> int:
    LOG.error(f"error: {' '.join(str(error).split())}")
    return status
