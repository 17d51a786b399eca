"""Options of text generation. Importing this module does not import TensorFlow."""

import dataclasses

from zoo.data.text.special_tokens import SpecialIds
from zoo.errors import UsageError

MIN_TEMPERATURE = 1e-6  # lower temperatures count as 0, since logits divided by them overflow
MAX_TOKENS = 2**20  # maximum number of generated tokens
FROM_TOKENIZER = -2  # value of `end_id`: the tokens that end a text of the tokenizer
MAX_TEMPERATURE = 1e9  # higher temperatures could select forbidden tokens


@dataclasses.dataclass
class Options:
    """Options of text generation; see `zoo.generation.generate.Generator.tokens`.

    Raises:
      UsageError: if a value is out of range.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    beams: int = 1
    seed: int = 0
    end_id: int | tuple[int, ...] | None = FROM_TOKENIZER
    use_cache: bool = True

    def __post_init__(self):
        rules = [
            ("max_tokens", 1 <= self.max_tokens <= MAX_TOKENS, f"from 1 to {MAX_TOKENS:,}"),
            (
                "temperature",
                0 <= self.temperature <= MAX_TEMPERATURE,
                f"from 0 to {MAX_TEMPERATURE:,.0f}",
            ),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "more than 0 and at most 1"),
            ("beams", self.beams >= 1, "1 (off) or more"),
            ("seed", self.seed >= 0, "0 or more"),
        ]
        for name, valid, rule in rules:
            if not valid:
                raise UsageError(f"{name} must be {rule}. Received: {getattr(self, name)}.")
        if self.beams > 1 and not self.use_cache:
            raise UsageError(
                f"Beam search requires a cache. Received: use_cache=False with beams={self.beams}."
            )

    def end_ids(self, tokenizer) -> tuple[int, ...]:
        """Returns the ids of the tokens that end a text; (-1,) for none."""
        if self.end_id == FROM_TOKENIZER:
            special = SpecialIds() if tokenizer is None else tokenizer.special
            return special.stops or (-1,)
        if self.end_id is None:
            return (-1,)
        return self.end_id if isinstance(self.end_id, tuple) else (self.end_id,)

    def kind(self, allowed: int):
        """Returns the name of the function of `zoo.generation.sampling` to use, or k for `top_k`.

        Args:
          allowed: number of tokens that may be chosen. With k >= allowed, `top_k` has no effect and
            is not used, since its sort would change which token a random number selects.
        """
        if self.temperature < MIN_TEMPERATURE:
            return "greedy"
        if 0 < self.top_k < allowed:
            return int(self.top_k)
        return "sample" if self.top_p == 1 else "top_p"
