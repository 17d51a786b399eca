"""The two ways in which a command can fail on its user, and checks of what users write.

Every message is one line: the rule, what was received, the way out. What others wrote (the message
of a library, a value of the user) takes at most `LONGEST` characters of it.
"""

import re

LONGEST = 300
_LONGEST_MESSAGE = 2000
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_WORD = re.compile(rf"\S{{{LONGEST + 1},}}")
# A quoted value: no letter stands before its first quote or after its last one.
_QUOTED = re.compile(
    rf"""(?<!\w)(?:'(?:[^'\\]|\\.){{{LONGEST},}}'|"(?:[^"\\]|\\.){{{LONGEST},}}")(?!\w)"""
)


class _OneLine(Exception):
    """Keeps a message to one line without control characters, and cuts long values in it."""

    def __init__(self, message="", *more):
        super().__init__(_one_line(message) if isinstance(message, str) else message, *more)


class UsageError(_OneLine, ValueError):
    """The request itself is wrong: an unknown name, key or value. Exit status 2."""


class RunError(_OneLine, RuntimeError):
    """A good request met a bad world: a full disk, a damaged file, a loss of NaN. Exit status 1."""


def short(text) -> str:
    """Returns a library's message, or a value, as one line of at most `LONGEST` characters."""
    return _cut(" ".join(_CONTROL.sub(" ", str(text)[: 10 * LONGEST]).split()), LONGEST)


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _one_line(message: str) -> str:
    if len(message) > 20 * _LONGEST_MESSAGE:  # what follows takes time
        message = f"{message[: 10 * _LONGEST_MESSAGE]} … {message[-10 * _LONGEST_MESSAGE :]}"
    message = _CONTROL.sub(" ", message)
    for pattern in (_QUOTED, _WORD):
        message = pattern.sub(lambda match: _cut(match[0], LONGEST), message)
    if len(message) > _LONGEST_MESSAGE:  # the rule stands first, the way out last
        message = f"{message[: _LONGEST_MESSAGE - 600]} … {message[-597:]}"
    return message


def near_names(name: str, known, count: int = 3) -> str:
    """Returns `" Did you mean 'a', 'b'?"`, or `""` where nothing in `known` is near `name`."""
    import difflib

    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=count, cutoff=0.5)
    return f" Did you mean {', '.join(repr(n) for n in near)}?" if near else ""


def compiled(key: str, pattern: str) -> re.Pattern:
    """Compiles a regular expression that the user gave for `key`; `UsageError` if it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"{key} is a regular expression. Received: {pattern!r} ({short(error)})."
        ) from None
