"""How tokens are chosen, checked before TensorFlow is loaded."""

import dataclasses

from zoo.errors import UsageError
from zoo.special_tokens import END

COLDEST = 1e-6  # temperatures below it are 0: differences of logits divided by them are no numbers
LONGEST = 2**20  # tokens of a continuation
HOTTEST = 1e9  # with more, what must not be chosen would be


@dataclasses.dataclass
class Options:
    """How tokens are chosen; see `zoo.generation.generate.Generator.tokens`.

    Raises:
      UsageError: where a value is out of its bounds.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    seed: int = 0
    end_id: int | None = END
    use_cache: bool = True

    def __post_init__(self):
        rules = [
            ("max_tokens", 1 <= self.max_tokens <= LONGEST, f"1 to {LONGEST:,}"),
            ("temperature", 0 <= self.temperature <= HOTTEST, f"0 to {HOTTEST:,.0f}"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("beams", self.beams >= 1, "1 (off) or more"),
            ("seed", self.seed >= 0, "0 or more"),
        ]
        for name, right, rule in rules:
            if not right:
                raise UsageError(f"{name} is {rule}. Received: {getattr(self, name)}.")
        if self.beams > 1 and not self.use_cache:
            raise UsageError("A beam search keeps a cache: use_cache=False goes without beams.")
        self.end_id = -1 if self.end_id is None else self.end_id

    def kind(self, allowed: int):
        """Returns which function of `zoo.generation.sampling` draws; for `top_k` its number.

        Args:
          allowed: number of tokens that may be chosen. `top_k` sorts them, which changes the token
            that a random number stands for: with as many or more it is the same as none.
        """
        if self.temperature < COLDEST:
            return "greedy"
        if 0 < self.top_k < allowed:
            return int(self.top_k)
        return "sample" if self.top_p == 1 else "top_p"
