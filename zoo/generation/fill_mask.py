"""Prediction of the masked words of a text with an encoder trained on masked language modeling.

fill_mask(zoo.load(workdir), tokenizer, "The [MASK] sat on the mat.")
"""

import logging

import numpy as np
from keras import ops

from zoo.data.text.special_tokens import END, FIRST_WORD, MASK, SEPARATOR, START
from zoo.errors import UsageError
from zoo.models.inputs import sequence_length

_LOG = logging.getLogger(__name__)

MASK_TEXT = "[MASK]"
# Kinds of tokenizers with the space before a word in its token: the mask replaces the space too.
_KINDS_WITH_SPACE = ("bpe", "sentencepiece")


def fill_mask(
    model, tokenizer, text: str, candidates: int = 5, trained_length: int | None = None
) -> list[list[tuple[str, float]]]:
    """Returns the most probable tokens for each mask.

    Args:
      model: model of `zoo.models.bert` or `zoo.models.longformer`, trained with the tokenizer.
      tokenizer: a `zoo.data.text.tokenizers.Tokenizer`.
      text: text with one or more "[MASK]", predicted in one forward pass.
      candidates: number of tokens to return per mask.
      trained_length: number of positions used in training; a longer text logs a warning.

    Returns:
      List of `(token, probability)` pairs per mask, most probable first.

    Raises:
      UsageError: if the text has no mask or exceeds the positions of the model, or if the
        tokenizer does not match the model.
    """
    vocabulary = model.output["mlm"].shape[-1]
    if tokenizer.vocabulary_size > vocabulary:
        raise UsageError(
            f"The tokenizer does not match the model: it has {tokenizer.vocabulary_size} tokens, "
            f"but the model supports {vocabulary}."
        )
    parts = text.split(MASK_TEXT)
    if len(parts) < 2:
        raise UsageError(f"The text must contain {MASK_TEXT} at least once. Received: {text!r}.")
    tokens, masked_positions = [START], []
    for number, part in enumerate(parts):
        mask_follows = number < len(parts) - 1
        if mask_follows and tokenizer.kind in _KINDS_WITH_SPACE:
            part = part.removesuffix(" ")
        tokens += tokenizer.encode(part).tolist()
        if mask_follows:
            masked_positions.append(len(tokens))
            tokens.append(MASK)
    has_sentence_pairs = "nsp" in model.output
    tokens.append(SEPARATOR if has_sentence_pairs else END)
    limit = sequence_length(model)
    if len(tokens) > limit:
        raise UsageError(
            f"The text has {len(tokens)} tokens, but the model supports {limit} positions."
        )  # fmt: skip
    if trained_length and len(tokens) > trained_length:
        _LOG.warning(
            f"the text has {len(tokens)} tokens, but the model was trained on {trained_length} "
            "positions (data.sequence_length): predictions beyond them are unreliable"
        )
    row = np.int32([tokens])
    inputs = {"tokens": row, "segments": np.ones_like(row), "masked": np.int32([masked_positions])}
    if has_sentence_pairs:
        inputs["types"] = np.zeros_like(row)
    logits = ops.convert_to_numpy(model(inputs, training=False)["mlm"])[0].astype("float64")
    logits = logits[:, FIRST_WORD : tokenizer.vocabulary_size]  # no special tokens
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :candidates]
    return [
        [(tokenizer.decode([FIRST_WORD + i]).strip(), float(distribution[i])) for i in best]
        for best, distribution in zip(order, probabilities, strict=True)
    ]


def replace_masks(text: str, predictions: list[list[tuple[str, float]]]) -> str:
    """Returns a text with each mask replaced by the most probable token."""
    parts = text.split(MASK_TEXT)
    words = [best[0][0] for best in predictions]
    return "".join(a + b for a, b in zip(parts, [*words, ""], strict=True))
