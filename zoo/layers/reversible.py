"""A stack of reversible pairs of attention and feed-forward layers, as in Reformer.

Gomez et al. 2017, The Reversible Residual Network, arXiv:1707.04585, section 3; Kitaev et al. 2020,
Reformer, arXiv:2001.04451, section 3. Both halves of the residual stream start as the input. Each
pair (f, g) of attention and feed-forward part computes

    first = first + f(second)
    second = second + g(first)

The inputs of a pair follow from its outputs, so that a trainer need not store activations. Without
a trainer the stack is an ordinary layer. Axes: B batch, T positions, C hidden_dim.
"""

import keras
from keras import ops

from zoo.layers.attention import layer_forms
from zoo.layers.attention_forms.cache import attend_cached, start_cache
from zoo.layers.attention_forms.plain import mask_bias
from zoo.layers.composite import Composite
from zoo.layers.dropout import Dropout
from zoo.layers.low_rank import below
from zoo.layers.transformer import Attention, FeedForward, normalization


class _Part(Composite):
    """Normalization, a layer and dropout: one function of a reversible pair.

    Args:
      inside: the layer.
      norm: "layer" or "rms".
      epsilon: epsilon of the normalization.
      dropout: dropout rate of the output.
    """

    def __init__(self, inside, norm, epsilon, dropout, **kwargs):
        super().__init__(**kwargs)
        self.norm = normalization(norm, epsilon, "norm", self.dtype_policy)
        setattr(self, inside.name, inside)
        self.ranks = inside.ranks  # marks the layer as one with low-rank sublayers
        self.dropout = (
            Dropout(dropout, name="dropout", dtype=self.dtype_policy) if dropout else None
        )

    def drop(self, x, training):
        return x if self.dropout is None else self.dropout(x, training=training)

    def compute_output_spec(self, x, *_, **__):
        return keras.KerasTensor(x.shape, self.compute_dtype)


class AttentionPart(_Part):
    """The function f of a reversible pair: normalization and causal self-attention."""

    def build(self, shape, *_, **__):
        self.norm.build(shape)
        self.attention.build(shape)

    def call(self, x, segments=None, training=None):
        """Transforms x (B, T, C) to (B, T, C); `segments` (B, T) as in `ReversibleStack`."""
        mask = segments
        if self.attention.form.takes_bias and segments is not None:
            mask = mask_bias(segments, causal=True)
        return self.drop(self.attention(self.norm(x), mask, training=training), training)

    def decode(self, x, cache, first):
        """Transforms new positions; returns `((B, T, C), cache)`."""
        parts = self.attention.project(self.norm(x), first)
        out, cache = attend_cached(self.attention.form, *parts, cache, first)
        return self.attention.combine(out), cache


class FeedForwardPart(_Part):
    """The function g of a reversible pair: normalization and feed-forward layers."""

    def build(self, shape):
        self.norm.build(shape)
        self.feed_forward.build(shape)

    def call(self, x, training=None):
        """Transforms x (B, T, C) to (B, T, C)."""
        return self.drop(self.feed_forward(self.norm(x)), training)


@keras.saving.register_keras_serializable("zoo")
class ReversibleStack(Composite):
    """N reversible pairs of causal self-attention and feed-forward layers.

    Both halves are at least float32 in mixed precision, because a trainer computes inputs from
    outputs by subtraction. The parts compute in the compute dtype.

    Args:
      num_layers: N.
      hidden_dim: C.
      num_heads: number of attention heads.
      intermediate_dim: width inside the feed-forward layers.
      attention: forms of attention, separated by commas and repeated over the pairs; see
        `zoo.layers.attention`.
      norm: "layer" or "rms".
      activation: one of `zoo.layers.transformer.ACTIVATIONS`.
      rotary_base: see `zoo.layers.transformer.Attention`.
      attention_bias: whether the projections of attention have biases.
      use_bias: whether the feed-forward layers have biases.
      dropout: dropout rate of the probabilities and of each part's output.
      epsilon: epsilon of the normalization layers.
      initializer_range: standard deviation of the initial kernels.
      output_range: standard deviation of initial kernels that write to a half; 0 for
        initializer_range.
      ranks: ranks of low-rank kernels by path ("attention_0/attention/output"); see
        `zoo.layers.low_rank`.
    """

    def __init__(
        self,
        num_layers,
        hidden_dim,
        num_heads,
        intermediate_dim,
        attention="plain",
        norm="layer",
        activation="relu",
        rotary_base=0.0,
        attention_bias=False,
        use_bias=True,
        dropout=0.0,
        epsilon=1e-5,
        initializer_range=0.02,
        output_range=0.0,
        ranks=None,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        if num_layers < 1:
            raise ValueError(f"num_layers must be positive. Received: {num_layers}.")
        self.ranks = dict(ranks or {})
        self.settings = {
            "num_layers": num_layers, "hidden_dim": hidden_dim, "num_heads": num_heads,
            "intermediate_dim": intermediate_dim, "attention": attention, "norm": norm,
            "activation": activation, "rotary_base": rotary_base, "attention_bias": attention_bias,
            "use_bias": use_bias, "dropout": dropout, "epsilon": epsilon,
            "initializer_range": initializer_range, "output_range": output_range,
        }  # fmt: skip
        ranges = {"initializer_range": initializer_range, "output_range": output_range}
        for i, form in enumerate(layer_forms(attention, num_layers)):
            f, g = f"attention_{i}", f"feed_forward_{i}"
            attention_layer = Attention(
                hidden_dim, num_heads, rotary_base=rotary_base, use_bias=attention_bias,
                dropout=dropout, form=form, causal=True, ranks=below(ranks, f"{f}/attention"),
                name="attention", dtype=self.dtype_policy, **ranges,
            )  # fmt: skip
            feed_forward = FeedForward(
                hidden_dim, intermediate_dim, activation, use_bias=use_bias,
                ranks=below(ranks, f"{g}/feed_forward"), name="feed_forward",
                dtype=self.dtype_policy, **ranges,
            )  # fmt: skip
            common = (norm, epsilon, dropout)
            setattr(
                self, f, AttentionPart(attention_layer, *common, name=f, dtype=self.dtype_policy)
            )
            setattr(
                self, g, FeedForwardPart(feed_forward, *common, name=g, dtype=self.dtype_policy)
            )

    @property
    def pairs(self) -> list[tuple]:
        """The pairs (f, g) in the order of the forward pass."""
        count = self.settings["num_layers"]
        return [(getattr(self, f"attention_{i}"), getattr(self, f"feed_forward_{i}"))
                for i in range(count)]  # fmt: skip

    @property
    def half_dtype(self) -> str:
        """Dtype of both halves and of the output."""
        return keras.backend.result_type(self.compute_dtype, "float32")

    def build(self, shape, *_, **__):
        for f, g in self.pairs:
            f.build(shape)
            g.build(shape)

    def call(self, x, attention_mask=None, training=None):
        """Runs the stack on whole sequences.

        Args:
          x: (B, T, C), at the start of both halves.
          attention_mask: segments (B, T) integers, the document of each position, 0 for padding; or
            None if all positions are in one document.

        Returns:
          (B, T, 2 C): both halves, joined.
        """
        x = ops.cast(x, self.half_dtype)
        return ops.concatenate(self.run_pairs(x, x, attention_mask), axis=-1)

    def run_pairs(self, first, second, attention_mask=None):
        """Computes both halves (B, T, C) after all pairs; a trainer may replace this method."""
        for f, g in self.pairs:
            first = first + ops.cast(f(second, attention_mask), first.dtype)
            second = second + ops.cast(g(first), second.dtype)
        return first, second

    def start_cache(self, batch, length, memory=None):
        """Returns an empty cache for `length` positions: one entry per pair.

        Args:
          batch: B.
          length: length of the longest sequence.
          memory: must be None.
        """
        attentions = [f.attention for f, _ in self.pairs]
        return [
            start_cache(x.form, batch, x.groups, length, x.size, self.compute_dtype)
            for x in attentions
        ]

    def decode(self, x, cache, first, memory_bias=None):
        """Runs the stack on new positions; the cache holds previous ones.

        Args:
          x: (B, T, C), the new positions.
          cache: cache from `start_cache` or from the last call.
          first: integer scalar, index of the first new position.
          memory_bias: must be None.

        Returns:
          `((B, T, 2 C), cache)`.
        """
        halves, new_cache = [ops.cast(x, self.half_dtype)] * 2, []
        for (f, g), entry in zip(self.pairs, cache, strict=True):
            out, entry = f.decode(halves[1], entry, first)
            halves[0] = halves[0] + ops.cast(out, self.half_dtype)
            halves[1] = halves[1] + ops.cast(g(halves[0]), self.half_dtype)
            new_cache.append(entry)
        return ops.concatenate(halves, axis=-1), new_cache

    def compute_output_spec(self, x, *_, **__):
        return keras.KerasTensor((*x.shape[:-1], 2 * x.shape[-1]), self.half_dtype)

    def get_config(self):
        return {**super().get_config(), **self.settings, "ranks": self.ranks}
