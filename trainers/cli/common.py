"""What every command shares: flag parsing, one-line errors and exit statuses.

Exit status: 0 done, 1 failed, 2 wrong use (one line, no traceback), 130 interrupted,
141 the reader of the output is gone, 143 stopped by SIGTERM or a preemption notice, and saved.
"""

import contextlib
import errno
import sys
from collections.abc import Callable, Sequence

from absl import flags

from trainers.cli.streams import standard_streams
from zoo.errors import RunError, UsageError, short

USAGE, FAILED, INTERRUPTED, BROKEN_PIPE, TERMINATED = 2, 1, 130, 141, 143

_OUT_OF_MEMORY = (
    "out of memory. What helps, in this order: a smaller trainer.micro_batch_size (same result "
    "without batch normalization, more steps inside an update), trainer.precision=mixed_bfloat16, "
    "trainer.remat=<regular expression of block names>"
)


class Help(Exception):
    """--help was asked for; the message is the answer."""


def modules_flag(flag_values: flags.FlagValues):
    """Defines --import, by which users bring their own models, tasks and data sets."""
    return flags.DEFINE_multi_string(
        "import", [], "A module of yours that registers models, tasks or data sets.",
        flag_values=flag_values,
    )  # fmt: skip


def json_flag(flag_values: flags.FlagValues, what: str = "Print JSON."):
    """Defines --json."""
    return flags.DEFINE_bool("json", False, what, flag_values=flag_values)


def checkpoint_flag(flag_values: flags.FlagValues):
    """Defines --checkpoint: the weights of a work directory that are used."""
    return flags.DEFINE_enum(
        "checkpoint", "final", ["final", "best"], "Which weights.", flag_values=flag_values
    )


def parse(
    flag_values: flags.FlagValues,
    argv: Sequence[str],
    usage: str,
    *,
    at_least: int = 0,
    at_most: int | None = None,
    overrides: bool = False,
    modules=None,
):
    """Parses `argv[1:]` and imports the user's modules.

    Args:
      flag_values: the command's own absl flags.
      argv: program name first.
      usage: what --help prints above the flags.
      at_least: how many words the command needs.
      at_most: how many it takes; None for any number.
      overrides: whether `--config.KEY=VALUE` is allowed.
      modules: the flag of `modules_flag`.

    Returns:
      `(words, overrides)`: a list of words and a list of `(key, text)` pairs.

    Raises:
      UsageError: for an unknown flag, a value that does not parse, or a wrong number of words.
      Help: where it was asked for.
    """
    plain, found = [argv[0]], []
    for word in argv[1:]:
        if word in ("-h", "--help"):
            raise Help(f"{usage.strip()}\n{flag_values.get_help()}")
        if overrides and word.startswith("--config.") and "=" in word:
            key, _, text = word.removeprefix("--config.").partition("=")
            found.append((key, text))
        elif overrides and word.startswith("--config."):
            raise UsageError(f"An override needs a value: {word}=VALUE.")
        else:
            plain.append(word)
    flag_values.unparse_flags()
    try:
        words = flag_values(plain)[1:]
    except flags.Error as error:
        unknown = overrides and isinstance(error, flags.UnrecognizedFlagError)
        hint = " Settings of a recipe are --config.KEY=VALUE." if unknown else ""
        raise UsageError(short(error) + hint) from None
    if len(words) < at_least or (at_most is not None and len(words) > at_most):
        raise UsageError(f"Usage: {usage.strip().splitlines()[0]} Received: {words}.")
    if modules is not None and modules.value:
        from trainers.config.user_code import import_user_modules

        import_user_modules(modules.value)
    return words, found


def run(command: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs `command(argv)` and turns what it raises into one line and an exit status."""
    argv = list(sys.argv if argv is None else argv)
    with standard_streams(drop_output=getattr(command, "leaves_files", False)):
        return _run(command, argv)


def leaves_files(command):
    """Marks a command whose work is in files: it goes on where its output cannot be written."""
    command.leaves_files = True
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
            return _fail(f"no permission: {error.filename or error}", FAILED)
        if error.errno and error.filename:
            return _fail(f"{error.strerror}: {error.filename}", FAILED)
        raise
    except Exception as error:
        # TensorFlow's own class cannot be named here without importing TensorFlow.
        if type(error).__name__ == "ResourceExhaustedError" or isinstance(error, MemoryError):
            return _fail(_OUT_OF_MEMORY, FAILED)
        raise


def _on_this_machine(argv: list[str]):
    """See `zoo.storage.remote.localized`; loads it where there may be something remote alone."""
    if not any("://" in word for word in argv):
        return contextlib.nullcontext(argv)
    from zoo.storage.remote import localized

    return localized(argv)


def _fail(error, status: int) -> int:
    print(f"zoo: error: {' '.join(str(error).split())}", file=sys.stderr)
    return status
