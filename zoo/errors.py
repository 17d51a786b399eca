"""The two errors that users see, UsageError and RunError, and helpers for their messages.

Every message is one line: the rule, the received value, and what to do. A quoted value or the
message of a library takes at most `MAX_QUOTE` characters.
"""

import re
import warnings

MAX_QUOTE = 300
_MAX_MESSAGE = 2000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_WORD = re.compile(rf"\S{{{MAX_QUOTE + 1},}}")
# A quoted value: no letter stands before its first quote or after its last one.
_QUOTED = re.compile(
    rf"""(?<!\w)(?:'(?:[^'\\]|\\.){{{MAX_QUOTE},}}'|"(?:[^"\\]|\\.){{{MAX_QUOTE},}}")(?!\w)"""
)


class _OneLine(Exception):
    """Base of errors with a message of one line, without control characters or long values."""

    def __init__(self, message="", *more):
        super().__init__(_one_line(message) if isinstance(message, str) else message, *more)


class UsageError(_OneLine, ValueError):
    """A wrong request, such as an unknown name, key or value. Exit status 2."""


class RunError(_OneLine, RuntimeError):
    """A valid request that failed: a full disk, a damaged file, a loss of NaN. Exit status 1."""


def short(text) -> str:
    """Returns a value or a library's message as one line of at most `MAX_QUOTE` characters."""
    return _truncate(" ".join(_CONTROL.sub(" ", str(text)[: 10 * MAX_QUOTE]).split()), MAX_QUOTE)


def _truncate(text: str, max_length: int) -> str:
    return text if len(text) <= max_length else f"{text[: max_length - 1]}…"


def _one_line(message: str) -> str:
    if len(message) > 20 * _MAX_MESSAGE:  # the regular expressions are slow
        message = f"{message[: 10 * _MAX_MESSAGE]} … {message[-10 * _MAX_MESSAGE :]}"
    message = _CONTROL.sub(" ", message)
    for pattern in (_QUOTED, _WORD):
        message = pattern.sub(lambda match: _truncate(match[0], MAX_QUOTE), message)
    if len(message) > _MAX_MESSAGE:  # keeps the rule at the start and the advice at the end
        message = f"{message[: _MAX_MESSAGE - 600]} … {message[-597:]}"
    return message


def near_names(name: str, known) -> str:
    """Returns `" Did you mean 'a', 'b'?"`, or `""` if no name in `known` is similar to `name`."""
    import difflib

    near = difflib.get_close_matches(str(name), [str(k) for k in known], cutoff=0.5)
    return f" Did you mean {', '.join(repr(n) for n in near)}?" if near else ""


def require(is_valid: bool, key: str, rule: str, value) -> None:
    """Raises `UsageError` "KEY must be RULE. Received: VALUE." unless `is_valid`."""
    if not is_valid:
        raise UsageError(f"{key} must be {rule}. Received: {short(value)}.")


def check_name(kind: str, name, known) -> None:
    """Raises `UsageError` if `known` does not hold the name of a `kind`, such as "strategy"."""
    if name not in known:
        raise UsageError(
            f"No {kind} is named {name!r}.{near_names(name, known)} Known: {', '.join(known)}."
        )


def check_minimums(section: str, values, minimums=None) -> None:
    """Checks that the numbers of a section are not too small.

    Args:
      section: name for the error message, such as "trainer".
      values: key -> value; numbers and tuples of numbers are checked.
      minimums: key -> smallest value, for keys whose smallest value is not 0.

    Raises:
      UsageError: naming the first key whose value is too small.
    """
    for key, value in values.items():
        smallest = (minimums or {}).get(key, 0)
        for number in value if isinstance(value, tuple | list) else (value,):
            is_valid = not isinstance(number, int | float) or number >= smallest
            require(is_valid, f"{section}.{key}", f"at least {smallest}", value)


def compile_pattern(key: str, pattern: str) -> re.Pattern:
    """Compiles the regular expression of a config key; raises `UsageError` if it is invalid."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sets in sets, which a later Python may know
            return re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"{key} must be a regular expression. Received: {pattern!r} ({short(error)})."
        ) from None
