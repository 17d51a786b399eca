"""Special tokens: the same names and ids in every tokenizer of the zoo; ordinary tokens follow.

Tokenizers of published models have special tokens of their own, see `SpecialIds`.
"""

import dataclasses

SPECIAL = ("<pad>", "<unk>", "<start>", "<end>", "<sep>", "<mask>")
PADDING, UNKNOWN, START, END, SEPARATOR, MASK = range(len(SPECIAL))
FIRST_WORD = len(SPECIAL)


@dataclasses.dataclass(frozen=True)
class SpecialIds:
    """Ids of the special tokens of a tokenizer; None for a token that it lacks.

    Attributes:
      start: id of the token before a document.
      end: id of the token after a document.
      stops: ids of the tokens that end a generated text.
      control: ids of all tokens that no text contains.
    """

    pad: int = PADDING
    unknown: int | None = UNKNOWN
    start: int | None = START
    end: int | None = END
    separator: int | None = SEPARATOR
    mask: int | None = MASK
    stops: tuple[int, ...] = (END,)
    control: frozenset[int] = frozenset(range(FIRST_WORD))
