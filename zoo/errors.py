"""The two ways in which a command can fail on its user, and checks of what users write.

Every message is one line: the rule, what was received, the way out.
"""

import re


class UsageError(ValueError):
    """The request itself is wrong: an unknown name, key or value. Exit status 2."""


class RunError(RuntimeError):
    """A good request met a bad world: a full disk, a damaged file, a loss of NaN. Exit status 1."""


def near_names(name: str, known, count: int = 3) -> str:
    """Returns `" Did you mean 'a', 'b'?"`, or `""` where nothing in `known` is near `name`."""
    import difflib

    near = difflib.get_close_matches(name, [str(k) for k in known], n=count, cutoff=0.5)
    return f" Did you mean {', '.join(repr(n) for n in near)}?" if near else ""


def compiled(key: str, pattern: str) -> re.Pattern:
    """Compiles a regular expression that the user gave for `key`; `UsageError` if it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"{key} is a regular expression. Received: {pattern!r} ({error})."
        ) from None
