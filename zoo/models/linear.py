"""Linear classifier of texts and pairs of texts on hashed n-grams of tokens: the baseline.

Logistic regression on the hashing trick (Weinberger et al. 2009, arXiv:0902.2206), with bags of
n-grams as in fastText (Joulin et al. 2016, arXiv:1607.01759) but without their hidden layer.
Axes: B batch, T positions, F features, K classes.
"""

import keras
from keras import layers, ops

from zoo.data.text.special_tokens import FIRST_WORD

# Hashes are h = (h * _FACTOR + token + 1) mod _PRIME. For token ids below 2**20 no product exceeds
# 2**31 - 1, so that int32 arithmetic is exact on every device and in every exported file.
_PRIME = 2**19 - 1
_FACTOR = 4093
# First values of the hashes: n-grams of the first text, of the second, and words of both.
_FIRST, _SECOND, _SHARED = 1, 2, 3
# Weight of the words of both texts. On the validation splits, 0, 0.3 and 1 reached 83.0, 82.0 and
# 80.2 % for SICK (one run of 6 to 8 epochs each), and 64.0, 64.2 and 64.9 % for FarsTail.
SHARED_WEIGHT = 0.3


def build(
    num_classes: int = 2,
    buckets: int = 2**18,
    ngrams: int = 2,
    name: str = "linear_text",
) -> keras.Model:
    """Builds the classifier; all weights start at zero.

    Args:
      num_classes: K; 1 for regression.
      buckets: number of different features, at most 524,287; n-grams with the same hash share one.
      ngrams: largest number of consecutive tokens in an n-gram; all smaller numbers take part.
      name: name of the Keras model.

    Returns:
      A Functional model from {"tokens", "types"}, both (B, T) int32, to logits (B, K) float32.
      Special tokens take no part, and n-grams do not cross texts.

    Raises:
      ValueError: if an argument is out of range.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be positive. Received: {num_classes}.")
    inputs = {key: keras.Input((None,), dtype="int32", name=key) for key in ("tokens", "types")}
    features, weights, overlap = HashedNgrams(buckets, ngrams, name="hash")(
        inputs["tokens"], inputs["types"]
    )
    rows = layers.Embedding(buckets, num_classes, embeddings_initializer="zeros", name="ngrams")(
        features
    )
    total = layers.Dot(axes=1, name="sum")([rows, weights])
    rest = layers.Dense(num_classes, kernel_initializer="zeros", name="overlap")(overlap)
    logits = layers.Add(dtype="float32", name="logits")([total, rest])
    return keras.Model(inputs, logits, name=name)


@keras.saving.register_keras_serializable("zoo")
class HashedNgrams(layers.Layer):
    """Converts texts to numbers of features.

    The features of a text are its n-grams. Those of a pair are the n-grams of each text that
    contain a word which the other text lacks, and the words of both texts with a smaller weight.

    Args:
      buckets: number of different features, at most 524,287.
      ngrams: largest number of tokens in an n-gram.
    """

    def __init__(self, buckets=2**18, ngrams=2, **kwargs):
        super().__init__(**kwargs)
        if not 1 <= buckets <= _PRIME or ngrams < 1:
            raise ValueError(
                f"buckets must be from 1 to {_PRIME:,} and ngrams positive. Received: "
                f"buckets={buckets}, ngrams={ngrams}."
            )
        self.buckets, self.ngrams = buckets, ngrams

    def call(self, tokens, types):
        """Computes the features.

        Args:
          tokens: (B, T) integers.
          types: (B, T) integers, 0 in the first text and 1 in the second.

        Returns:
          `(features, weights, overlap)`: (B, F) int32, F = T * (ngrams + 1); their weights (B, F),
          divided by the square root of the number of n-grams of the row, 0 for none; and the share
          of the words of each text that occur in the other (B, 2), 0 for a single text.
        """
        tokens, types = ops.cast(tokens, "int32"), ops.cast(types, "int32")
        is_word, is_second = tokens >= FIRST_WORD, types > 0
        in_other = self._in_other_text(tokens, is_word, is_second)
        hashes, weights, count = [], [], 0.0
        value, is_ngram = ops.where(is_second, _SECOND, _FIRST), is_word
        is_new = ops.zeros_like(is_word)
        for n in range(self.ngrams):
            value = _mix(value, _shifted(tokens, n))
            is_ngram = is_ngram & _shifted(is_word, n) & ops.equal(_shifted(types, n), types)
            is_new = is_new | ~_shifted(in_other, n)
            hashes.append(value)
            weights.append(ops.cast(is_ngram & is_new, "float32"))
            count += ops.sum(ops.cast(is_ngram, "float32"), axis=1, keepdims=True)
        hashes.append(_mix(_SHARED, tokens))
        weights.append(SHARED_WEIGHT * ops.cast(in_other, "float32"))
        weights = ops.concatenate(weights, 1) / ops.sqrt(ops.maximum(count, 1))
        shares = [_share(in_other, is_word & ~is_second), _share(in_other, is_word & is_second)]
        return (
            ops.mod(ops.concatenate(hashes, 1), self.buckets),
            ops.cast(weights, self.compute_dtype),
            ops.cast(ops.stack(shares, 1), self.compute_dtype),
        )

    def over_tokens(self, scores):
        """Distributes the scores of features over tokens: each of an n-gram gets the same share.

        Args:
          scores: (B, F) NumPy array, in the order of the features.

        Returns:
          (B, T).
        """
        blocks = scores.reshape(
            len(scores), self.ngrams + 1, -1
        )  # the last one is of single tokens
        result = blocks[:, -1].copy()
        for n in range(self.ngrams):
            for shift in range(n + 1):
                shares = blocks[:, n] / (n + 1)
                result[:, shift:] += shares[:, : shares.shape[1] - shift]
        return result

    @staticmethod
    def _in_other_text(tokens, is_word, is_second):
        """Returns whether the token at each position occurs in the other text, (B, T)."""
        is_equal = ops.equal(tokens[:, :, None], tokens[:, None, :])
        is_other = ops.not_equal(is_second[:, :, None], is_second[:, None, :])
        # Equal tokens are both words or both not.
        return ops.any(is_equal & is_other, axis=2) & is_word

    def compute_output_spec(self, tokens, types):
        rows, length = tokens.shape
        width = None if length is None else length * (self.ngrams + 1)
        return (
            keras.KerasTensor((rows, width), "int32"),
            keras.KerasTensor((rows, width), self.compute_dtype),
            keras.KerasTensor((rows, 2), self.compute_dtype),
        )

    def get_config(self):
        return {**super().get_config(), "buckets": self.buckets, "ngrams": self.ngrams}


def _mix(value, tokens):
    """Adds tokens to hashes."""
    return ops.mod(value * _FACTOR + tokens + 1, _PRIME)


def _shifted(x, n: int):
    """Returns x (B, T) with the value of position t + n at t; 0 or False at the end."""
    if n == 0:
        return x
    padded_x = ops.pad(ops.cast(x, "int32"), ((0, 0), (0, n)))
    return ops.cast(padded_x[:, n:], x.dtype)


def _share(is_chosen, is_counted):
    """Returns the share (B,) of the counted positions that are chosen; 0 if none counts."""
    count = ops.sum(ops.cast(is_counted, "float32"), axis=1)
    chosen = ops.sum(ops.cast(is_chosen & is_counted, "float32"), axis=1)
    return chosen / ops.maximum(count, 1)
