"""Logits of a model for stored rows of tokens."""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from zoo.data.text.special_tokens import PADDING

_BATCH = 32


def text_logits(model, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Runs a model on all rows of a split.

    Args:
      model: model with a head of `zoo.models.heads` or `zoo.models.answer_head`, or `linear_text`.
      arrays: "tokens" and "types", both (N, T) integers.

    Returns:
      The outputs of the model, (N, ...) float32.
    """
    names = [tensor.name for tensor in model.inputs]
    run = tf.function(lambda batch: model(batch, training=False), autograph=False)
    parts = []
    for start in range(0, len(arrays["tokens"]), _BATCH):
        rows = slice(start, start + _BATCH)
        tokens = np.asarray(arrays["tokens"][rows]).astype(np.int32)
        types = np.asarray(arrays["types"][rows]).astype(np.int32)
        missing = _BATCH - len(tokens)  # each shape needs a trace
        batch = {"tokens": tokens, "types": types, "segments": np.int32(tokens != PADDING)}
        batch = {k: tf.constant(np.pad(batch[k], ((0, missing), (0, 0)), "edge")) for k in names}
        parts.append(run(batch).numpy()[: len(tokens)])
    return np.concatenate(parts)
