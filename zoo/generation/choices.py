"""Chooses among given continuations by their likelihood under a decoder.

For tests of knowledge with several answers (Brown et al. 2020, GPT-3, arXiv:2005.14165, section
2.4). Long answers are less likely than short ones, so the log-likelihood may be divided by the
length.
"""

from collections.abc import Sequence

import numpy as np

from zoo.errors import UsageError, check_name
from zoo.lazy import ops
from zoo.models.adapter import Adapter
from zoo.models.inputs import sequence_length

NORMALIZATIONS = ("bytes", "tokens", "none")


def score_choices(
    model,
    tokenizer,
    prompt: str,
    choices: Sequence[str],
    normalization: str = "bytes",
    max_length: int | None = None,
) -> np.ndarray:
    """Computes the log-likelihood of each choice after a prompt.

    Args:
      model: decoder, such as gpt_* and llama_*.
      tokenizer: its `zoo.data.text.tokenizers.Tokenizer`.
      prompt: text before each choice; may be empty.
      choices: texts that continue the prompt, with their own space at the beginning.
      normalization: what divides the sum over the tokens of a choice: its number of "bytes" or of
        "tokens", or "none".
      max_length: maximum number of positions, for models without a limit (rotary positions).

    Returns:
      (len(choices),) float64, in nats; the highest value is the most likely choice.

    Raises:
      UsageError: if the model is no decoder, there are fewer than two choices, a choice has no
        tokens, or the prompt with a choice exceeds the positions of the model.
    """
    check_name("normalization", normalization, NORMALIZATIONS)
    if Adapter(model).family != "decoder":
        raise UsageError(f"Choices require a decoder of text. Received: {model.name!r}.")
    if len(choices) < 2:
        raise UsageError(f"There must be at least two choices. Received: {len(choices)}.")
    special = tokenizer.special
    head = [special.end if special.start is None else special.start, *tokenizer.encode(prompt)]
    tails = [list(tokenizer.encode(choice)) for choice in choices]
    if not all(tails):
        raise UsageError(f"Each choice must have a token. Received: {list(choices)!r}.")
    length = len(head) + max(map(len, tails))
    limit = min((n for n in (sequence_length(model), max_length) if n), default=None)
    if limit and length - 1 > limit:
        raise UsageError(
            f"The prompt with its longest choice must have at most {limit + 1} tokens. Received: "
            f"{length}."
        )
    rows = np.zeros((len(tails), length), np.int32)
    segments = np.zeros_like(rows)
    for row, segment, tail in zip(rows, segments, tails, strict=True):
        row[: len(head) + len(tail)] = head + tail
        segment[: len(head) + len(tail)] = 1
    batch = {"tokens": rows[:, :-1], "segments": segments[:, :-1]}
    logits = model({tensor.name: batch[tensor.name] for tensor in model.inputs})
    log_probabilities = ops.convert_to_numpy(ops.log_softmax(ops.cast(logits, "float32"), -1))
    sums = []
    for row, tail, values in zip(rows, tails, log_probabilities, strict=True):
        places = np.arange(len(head) - 1, len(head) + len(tail) - 1)
        sums.append(values[places, row[places + 1]].sum(dtype=np.float64))
    lengths = {
        "bytes": [len(choice.encode()) for choice in choices],
        "tokens": [len(tail) for tail in tails],
        "none": [1] * len(tails),
    }[normalization]
    return np.array(sums) / np.array(lengths)
