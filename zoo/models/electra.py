"""ELECTRA (Clark et al. 2020, arXiv:2003.10555): an encoder that detects replaced tokens.

A small generator predicts masked tokens. Tokens drawn from its predictions replace the masked ones,
and the encoder, called the discriminator, tells for each token whether it was replaced. Both have
the blocks of `zoo.models.encoder` and share the embedding.
Axes: B batch, T positions, M positions to predict, C hidden_dim, V vocabulary.
"""

import keras
from keras import layers, ops

from zoo.keras_internals import input_path
from zoo.models.bert import INITIALIZER_RANGE, dense, masked_token_head
from zoo.models.encoder import encode
from zoo.models.gpt import derive_sizes


def build(
    vocabulary_size: int = 4096,
    sequence_length: int = 128,
    num_layers: int = 0,
    hidden_dim: int = 0,
    num_heads: int = 0,
    intermediate_dim: int = 0,
    depth: int = 0,
    generator_dim: int = 0,
    generator_heads: int = 0,
    dropout: float = 0.0,
    rotary_base: float = 10_000.0,
    neighbors: int = 3,
    attention: str = "plain",
    activation: str = "gelu",
    epsilon: float = 1e-5,
    name: str = "electra",
) -> keras.Model:
    """Builds a generator and a discriminator.

    Args:
      generator_dim: width of the generator, which has `num_layers` blocks as well; 0 for
        hidden_dim // 2. Its feed-forward layers are 4 times as wide.
      generator_heads: number of attention heads of the generator; 0 for num_heads // 2, at least 1.

    All other arguments are those of `zoo.models.encoder.build` and describe the discriminator.

    Returns:
      A Functional model. Inputs: "tokens" and "segments", as of `zoo.models.encoder.build`; and
      "masked", "is_target" (B, M) int32 and "noise" (B, M) float32 in [0, 1): the positions to
      predict, whether each of them counts, and the random numbers that the replacements are drawn
      with. Outputs: "mlm" (B, M, V), the generator's logits; "sampled" (B, M) int32, the tokens
      that the discriminator sees at the positions "masked"; "rtd" (B, T), its logits that a token
      was replaced. Logits are float32. No gradient flows through the samples.
    """
    sizes = derive_sizes(depth, num_layers, hidden_dim, num_heads)
    width = sizes["hidden_dim"]
    generator_sizes = {
        "num_layers": sizes["num_layers"],
        "hidden_dim": generator_dim or width // 2,
        "num_heads": generator_heads or max(1, sizes["num_heads"] // 2),
    }
    block = {
        "dropout": dropout, "rotary_base": rotary_base, "neighbors": neighbors,
        "attention": attention, "activation": activation, "epsilon": epsilon,
    }  # fmt: skip
    inputs = {
        key: keras.Input((None,), dtype=dtype, name=key)
        for key, dtype in (
            ("tokens", "int32"), ("segments", "int32"), ("masked", "int32"),
            ("is_target", "int32"), ("noise", "float32"),
        )
    }  # fmt: skip
    embedding = layers.ReversibleEmbedding(
        vocabulary_size,
        width,
        reverse_dtype=keras.config.dtype_policy().compute_dtype,  # see docs/keras3.md
        embeddings_initializer=keras.initializers.RandomNormal(stddev=INITIALIZER_RANGE),
        name="embedding",
    )
    x = dense(generator_sizes["hidden_dim"], "generator_projection")(embedding(inputs["tokens"]))
    x = encode(
        x, inputs["segments"], **generator_sizes,
        intermediate_dim=4 * generator_sizes["hidden_dim"], prefix="generator_", **block,
    )  # fmt: skip
    mlm = masked_token_head(x, inputs["masked"], embedding, epsilon, prefix="generator_")
    tokens, sampled = ReplaceTokens(name="replace")(
        inputs["tokens"], mlm, inputs["masked"], inputs["is_target"], inputs["noise"]
    )
    x = encode(
        embedding(tokens), inputs["segments"], **sizes,
        intermediate_dim=intermediate_dim or 4 * width, **block,
    )  # fmt: skip
    # A hidden layer, then a logit per position; see section 2 of the paper.
    x = dense(width, "rtd_hidden", activation="gelu")(ReplacedTokenInput(name="rtd_input")(x))
    rtd = layers.Reshape((-1,), dtype="float32", name="rtd")(
        dense(1, "rtd_logits", dtype="float32")(x)
    )
    return keras.Model(inputs, {"mlm": mlm, "sampled": sampled, "rtd": rtd}, name=name)


def discriminator(model: keras.Model) -> keras.Model:
    """Returns the discriminator from {"tokens", "segments"} to {"rtd"}; weights are shared."""
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    steps, x = input_path(model.output["rtd"]), tokens
    is_replacement = [isinstance(layer, ReplaceTokens) for layer, _ in steps]
    for layer, inputs in steps[is_replacement.index(True) + 1 :]:
        x = layer(x, *inputs[1:])
    return keras.Model(
        {"tokens": tokens, "segments": model.input["segments"]}, {"rtd": x}, name=model.name
    )


@keras.saving.register_keras_serializable("zoo")
class ReplaceTokens(layers.Layer):
    """Draws tokens from the generator's predictions and puts them in place of the masked ones.

    The layer computes in float32 with any dtype policy: random numbers in bfloat16 are too coarse.
    """

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "dtype": "float32"})

    def call(self, tokens, logits, masked, is_target, noise):
        """Replaces the tokens at the positions that count.

        Args:
          tokens: (B, T) integers.
          logits: (B, M, V).
          masked: (B, M) integers below T, all different in a row.
          is_target: (B, M) integers; positions with 0 keep their token.
          noise: (B, M) random numbers in [0, 1).

        Returns:
          `(tokens (B, T), sampled (B, M))` int32; `sampled` are the new tokens at `masked`.
        """
        probabilities = ops.softmax(logits, -1)
        # The first token whose cumulative probability exceeds the random number. A comparison has
        # no gradient.
        below = ops.cumsum(probabilities, -1) <= noise[:, :, None]
        sampled = ops.minimum(ops.sum(ops.cast(below, "int32"), -1), logits.shape[-1] - 1)
        masked = ops.cast(masked, "int32")
        batch, length = ops.shape(tokens)
        rows = ops.arange(batch, dtype="int32")[:, None] * length + masked
        flat = ops.reshape(ops.cast(tokens, "int32"), (-1,))
        sampled = ops.where(ops.not_equal(is_target, 0), sampled, ops.take(flat, rows))
        flat = ops.scatter_update(flat, ops.reshape(rows, (-1, 1)), ops.reshape(sampled, (-1,)))
        return ops.reshape(flat, (batch, length)), sampled

    def compute_output_spec(self, tokens, logits, masked, is_target, noise):
        return keras.KerasTensor(tokens.shape, "int32"), keras.KerasTensor(masked.shape, "int32")


@keras.saving.register_keras_serializable("zoo")
class ReplacedTokenInput(layers.Layer):
    """Passes on the discriminator's vectors (B, T, C); marks where its head begins."""

    def call(self, x):
        return x
