"""Search spaces: `--search.optimizer.learning_rate=log:1e-4:1e-2`.

    log:LOW:HIGH      a number, uniform in its logarithm
    float:LOW:HIGH    a number, uniform
    int:LOW:HIGH      an integer, both ends included
    choice:A,B,C      one of the values

A value is a text, as on the command line: `--config.KEY=VALUE`. Does not import Optuna.
"""

import dataclasses
import math
from collections.abc import Sequence

from zoo.errors import UsageError

_KINDS = ("log", "float", "int", "choice")
_FORMS = "log:LOW:HIGH, float:LOW:HIGH, int:LOW:HIGH or choice:A,B"


@dataclasses.dataclass(frozen=True)
class Range:
    """Values of one key.

    Attributes:
      key: key of the configuration, such as "optimizer.learning_rate".
      kind: "log", "float", "int" or "choice".
      low, high: ends of a range of numbers.
      choices: texts of a choice.
    """

    key: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()

    def ends(self) -> tuple[str, ...]:
        """Returns values that stand for all others in a check: the ends, or all choices."""
        return self.choices or (self.format(self.low), self.format(self.high))

    def format(self, value) -> str:
        """Returns a sampled value as the text of an override."""
        if self.kind == "choice":
            return str(value)
        return str(round(value)) if self.kind == "int" else repr(float(value))

    def suggest(self, trial):
        """Samples the value of an `optuna.Trial`; returns it as the text of an override."""
        if self.kind == "choice":
            return self.format(trial.suggest_categorical(self.key, self.choices))
        if self.kind == "int":
            return self.format(trial.suggest_int(self.key, round(self.low), round(self.high)))
        is_log = self.kind == "log"
        return self.format(trial.suggest_float(self.key, self.low, self.high, log=is_log))

    def grid(self) -> list:
        """Returns all values, for grid search.

        Raises:
          UsageError: for a range of real numbers.
        """
        if self.kind == "choice":
            return list(self.choices)
        if self.kind == "int":
            return list(range(round(self.low), round(self.high) + 1))
        raise UsageError(
            f"--sampler=grid requires choice or int for each key. Received: {self.kind} for "
            f"{self.key}."
        )


def parse(pairs: Sequence[tuple[str, str]]) -> tuple[Range, ...]:
    """Parses `(key, text)` pairs.

    Raises:
      UsageError: for no key, a key twice, or a text that is no range.
    """
    if not pairs:
        raise UsageError(f"zoo tune sweep requires --search.KEY={_FORMS}.")
    ranges = [_parse(key, text) for key, text in pairs]
    for item in ranges:
        if sum(item.key == other.key for other in ranges) > 1:
            raise UsageError(f"--search.{item.key} must be given once.")
    return tuple(ranges)


def _parse(key: str, text: str) -> Range:
    kind, _, rest = text.partition(":")
    if kind == "choice":
        choices = tuple(part.strip() for part in rest.split(",") if part.strip())
        if len(set(choices)) == len(choices) > 1:
            return Range(key, kind, choices=choices)
    elif kind in _KINDS:
        low, _, high = rest.partition(":")
        try:
            low, high = float(low), float(high)
        except ValueError:
            low = high = math.nan
        is_whole = kind != "int" or (low.is_integer() and high.is_integer())
        if low < high < math.inf and is_whole and (kind != "log" or low > 0):
            return Range(key, kind, low, high)
    raise UsageError(
        f"--search.{key} must be {_FORMS}, with LOW < HIGH (and 0 < LOW for log) or at least two "
        f"different choices. Received: {text!r}."
    )
