"""Head for extractive question answering, which sees the words that question and context share.

Such features help readers that are trained on few questions (Chen et al. 2017, arXiv:1704.00051,
section 3.2, "exact match").
Axes: B batch, T positions, C hidden_dim, F features.
"""

import keras
from keras import layers, ops

from zoo.data.text.special_tokens import FIRST_WORD
from zoo.models.bert import dense
from zoo.models.heads import PoolTokens, head_inputs, head_logits, text_trunk

# Number of positions around a token in which shared words are counted, odd.
WINDOWS = (5, 17, 65)


def add_answer_head(model: keras.Model, *, dropout: float = 0.0) -> keras.Model:
    """Puts a new head on the trunk of a model: `SharedWords`, a hidden layer and a linear layer.

    Args:
      model: a model that `zoo.models.heads.text_trunk` supports. Its own head is left out.
      dropout: dropout rate before the last layer.

    Returns:
      A Functional model from {"tokens", "segments", "types"}, all (B, T) int32, to the logits of
      the first and the last token of the answer, (B, T, 2) float32. "types" is 0 for the question
      and 1 for the context.

    Raises:
      UsageError: if the model has no trunk.
    """
    trunk = text_trunk(model)
    inputs = head_inputs(trunk, ("segments", "types"))
    tokens, segments, types = (inputs[name] for name in ("tokens", "segments", "types"))
    x = PoolTokens("", name="pool")(trunk.output, segments)
    features = SharedWords(name="shared_words")(tokens, segments, types)
    x = layers.Concatenate(name="with_shared_words")([x, features])
    x = dense(trunk.output.shape[-1], "hidden", activation="gelu")(x)
    return keras.Model(inputs, head_logits(x, 2, dropout), name=model.name)


@keras.saving.register_keras_serializable("zoo")
class SharedWords(layers.Layer):
    """Layer without weights that marks the tokens which question and context share."""

    def call(self, tokens, segments, types):
        """Computes features of each position.

        Args:
          tokens: (B, T) integers.
          segments: (B, T) integers, 0 for padding.
          types: (B, T) integers, 0 in the question and 1 in the context.

        Returns:
          (B, T, F): 1 for tokens of the context that the question contains; this divided by the
          frequency of the token in the context; and log(1 + sum of the latter) over each of
          `WINDOWS` around the position.
        """
        is_word = ops.logical_and(ops.not_equal(segments, 0), tokens >= FIRST_WORD)
        in_context = ops.logical_and(is_word, ops.equal(types, 1))
        in_question = ops.logical_and(is_word, ops.equal(types, 0))
        equal = ops.equal(tokens[:, :, None], tokens[:, None, :])

        def count(chosen):
            pairs = ops.logical_and(equal, chosen[:, None, :])
            return ops.sum(ops.cast(pairs, "float32"), -1)

        shared = ops.logical_and(in_context, count(in_question) > 0)
        shared = ops.cast(shared, "float32")
        rare = shared / ops.maximum(count(in_context), 1.0)
        reach, length = max(WINDOWS) // 2, ops.shape(tokens)[1]
        sums = ops.cumsum(ops.pad(rare, ((0, 0), (reach + 1, reach))), axis=1)

        def near(width):
            first, last = reach - width // 2, reach + 1 + width // 2
            return ops.log1p(sums[:, last:][:, :length] - sums[:, first:][:, :length])

        features = ops.stack([shared, rare, *map(near, WINDOWS)], -1)
        return ops.cast(features, self.compute_dtype)

    def compute_output_spec(self, tokens, *_):
        return keras.KerasTensor((*tokens.shape, 2 + len(WINDOWS)), self.compute_dtype)
