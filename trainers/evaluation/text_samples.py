"""Texts of a classifier's split for the report: mistakes and correct predictions, by token."""

import codecs
from collections.abc import Mapping, Sequence

import numpy as np

from trainers.evaluation.attribution import attributions
from trainers.evaluation.grad_cam import choose
from zoo.data.text.special_tokens import FIRST_WORD, PADDING, SPECIAL, UNKNOWN


def text_samples(
    model, tokenizer, arrays: Mapping, class_names: Sequence[str], probabilities, worst
) -> list[dict]:
    """Returns the worst mistakes, then the most confident correct prediction of each class.

    Args:
      model: classifier that computes the attributions, or None for texts without attributions.
      tokenizer: tokenizer of the texts.
      arrays: arrays of the split: "tokens" and "types" (N, T), and "label" (N,).
      class_names: names of the K classes; missing names are numbers.
      probabilities: (N, K).
      worst: indices of mistakes, the worst first.

    Returns:
      JSON objects: "example" is the index, "label" and "prediction" are names of classes,
      "label_probability" and "probability" their probabilities, and "texts" the one or two texts of
      the example: lists of [piece of the text, its attribution].
    """
    labels, predicted = np.asarray(arrays["label"]), probabilities.argmax(-1)
    index = np.concatenate([worst, choose(labels, probabilities, worst[:0])]).astype(np.int64)
    if not len(index):
        return []
    tokens, types = (np.asarray(arrays[key])[index].astype(np.int32) for key in ("tokens", "types"))
    inputs = {"tokens": tokens, "types": types, "segments": np.int32(tokens != PADDING)}
    scores = None if model is None else attributions(model, inputs, predicted[index])
    if scores is None:
        scores = np.zeros(tokens.shape, np.float32)
    names = [*class_names, *map(str, range(len(class_names), probabilities.shape[-1]))]
    rows = []
    for row, example in enumerate(index.tolist()):
        is_second = types[row] == 1
        parts = [~is_second, is_second] if is_second.any() else [~is_second]
        label, prediction = labels[example], predicted[example]
        rows.append(
            {
                "example": example,
                "label": names[label],
                "prediction": names[prediction],
                "label_probability": float(probabilities[example, label]),
                "probability": float(probabilities[example, prediction]),
                "texts": [pieces(tokenizer, tokens[row, p], scores[row, p]) for p in parts],
            }
        )
    return rows


def pieces(tokenizer, ids: np.ndarray, scores: np.ndarray) -> list[list]:
    """Decodes tokens one by one.

    Args:
      tokenizer: a `zoo.data.text.tokenizers.Tokenizer`.
      ids: (n,) tokens of a text; of the special tokens, only <unk> is kept.
      scores: (n,) floats.

    Returns:
      [piece of the text, score] of each token. Tokens that together encode a single character are
      one piece with the sum of their scores. Without <unk>, the pieces add up to
      `tokenizer.decode(ids)`.
    """
    decoder, result = codecs.getincrementaldecoder("utf-8")("replace"), []
    before, pending = "", 0.0
    kept = [i for i, token in enumerate(ids) if token >= FIRST_WORD or token == UNKNOWN]
    for i in kept:
        text = decoder.decode(tokenizer.decode_bytes(ids[i : i + 1]), final=i == kept[-1])
        if ids[i] == UNKNOWN:
            text += SPECIAL[UNKNOWN]
        text = tokenizer.tidy(text, before)
        pending += float(scores[i])
        if text:
            result.append([text, pending])
            before, pending = text[-1], 0.0
    if result:
        result[-1][1] += pending
    return result
