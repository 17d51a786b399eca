"""Forms of attention, chosen by name.

    names = layer_forms("window:256,plain", num_layers=4)    # one name per layer
    parse_form(names[0]).attend(query, key, value, segments, causal=True)

| name | computes | time for T positions |
|---|---|---|
| `plain` | all pairs of positions | T T |
| `chunked`, `chunked:M` | the same in chunks of M queries, with little memory | T T |
| `window:W`, `window:W:E` | pairs within W positions; W positions E apart with dilation E | T W |
| `lsh:N`, `lsh:N:M` | pairs of similar vectors, found by N rounds of hashing, chunks of M | N T M |
| `row:C` | pairs in the same row of a grid of C columns, filled row by row | T C |
| `column:C` | pairs in the same column of this grid | T T / C |
| `features:N` | pairs of N groups of features of each position; no pairs of positions | T N N |

`lsh` has one projection for queries and keys, so it supports neither grouped-query heads nor
attention to a memory. `features` does not support grouped-query heads either.

Only `window` supports global tokens: positions that attend to all positions of their document, and
to which all of them attend.

Axes: B batch, T query positions, S key positions, H query heads, G key-value heads, D head size.
"""

from dataclasses import dataclass

import keras
from keras import ops

from zoo.layers.attention_forms.axial import attend_feature_groups, attend_grid
from zoo.layers.attention_forms.chunked import attend_chunked
from zoo.layers.attention_forms.lsh import attend_lsh, hash_buckets
from zoo.layers.attention_forms.plain import MASKED, attend, mask_bias
from zoo.layers.attention_forms.window import attend_window

NAMES = (
    "plain, chunked, chunked:CHUNK, window:WINDOW, window:WINDOW:DILATION, lsh:ROUNDS, "
    "lsh:ROUNDS:CHUNK, row:COLUMNS, column:COLUMNS, features:GROUPS"
)
# Number of LSH buckets if the length is unknown, for chunks of 64 and 4,096 positions.
UNKNOWN_LENGTH_BUCKETS = 128


@dataclass(frozen=True)
class Form:
    """Base of the forms."""

    # Whether `attend` takes the bias of `mask_bias` instead of segments.
    takes_bias = False
    # Whether `attend` takes global tokens, by the arguments `global_...` of `attend_window`.
    takes_global = False
    # Whether a text may exceed the cache of decoding, see `attention_forms.sinks`.
    takes_sinks = False
    # Number of positions from the own one back to the farthest that a causal query sees; None for
    # all, 0 for not even the own one. A cache needs no more.
    reach = None
    # Whether queries are used as keys.
    shares_query_key = False

    def __post_init__(self):
        if min(vars(self).values(), default=1) < 1:
            raise ValueError(
                f"The sizes of a form of attention must be positive. Received: {self}."
            )

    def attend(
        self, query, key, value, attention_mask=None, causal=False, dropout=None, **arguments
    ):
        """Computes attention.

        Args:
          query: (B, T, H, D).
          key: (B, T, G, D).
          value: (B, T, G, D).
          attention_mask: segments (B, T) integers, the document of each position, 0 for padding; if
            `takes_bias`, the bias (B or 1, 1, T, T), which masks later positions if `causal`. None
            if all positions are in one document.
          causal: whether later positions are masked.
          dropout: `zoo.layers.dropout.Dropout` for the probabilities, in training only.
          **arguments: further arguments of the form.

        Returns:
          (B, T, H, D) in the dtype of the query.
        """
        rate, seed = (dropout.rate, dropout.seed_generator.next()) if dropout else (0.0, None)
        return self._attend(
            query, key, value, segments=attention_mask, causal=causal, rate=rate, seed=seed,
            **arguments,
        )  # fmt: skip

    def sees(self, query, key, causal: bool):
        """Returns whether the form connects query and key positions, which may be broadcast."""
        return ops.ones_like(query - key, "bool")

    def bias(self, segments, causal: bool):
        """Returns the bias (B, 1, T, T) with which `Plain` computes the same."""
        positions = ops.arange(ops.shape(segments)[1])
        seen = self.sees(positions[:, None], positions[None, :], causal)
        return ops.minimum(mask_bias(segments, causal=causal), ops.where(seen, 0.0, MASKED))


@dataclass(frozen=True)
class Plain(Form):
    """Attention over all pairs of positions."""

    takes_bias = True
    takes_sinks = True

    def attend(self, query, key, value, attention_mask=None, causal=False, dropout=None):
        bias = attention_mask
        if bias is None and causal:
            bias = mask_bias(ops.ones((1, ops.shape(query)[1]), "int32"), causal=True)
        return attend(query, key, value, bias, dropout and (lambda p: dropout(p, training=True)))


@dataclass(frozen=True)
class Chunked(Form):
    """Exact attention in chunks of queries, see `attend_chunked`."""

    chunk: int = 128
    takes_sinks = True

    def _attend(self, query, key, value, **arguments):
        return attend_chunked(query, key, value, chunk=self.chunk, **arguments)


@dataclass(frozen=True)
class Window(Form):
    """Attention in a local window, see `attend_window`."""

    window: int
    dilation: int = 1
    takes_global = True
    takes_sinks = True

    @property
    def reach(self) -> int:
        return (self.window - 1) * self.dilation + 1

    def _attend(self, query, key, value, **arguments):
        return attend_window(query, key, value, self.window, dilation=self.dilation, **arguments)

    def sees(self, query, key, causal: bool):
        steps = ops.abs(query - key)
        near = steps < self.reach if causal else steps <= self.window * self.dilation
        return ops.logical_and(near, ops.equal(ops.mod(steps, self.dilation), 0))


@dataclass(frozen=True)
class Lsh(Form):
    """Attention by locality-sensitive hashing, see `attend_lsh`.

    The number of buckets is twice the number of chunks (Kitaev et al. 2020, section 4). Decoding
    attends to all earlier positions, as with infinitely many rounds.
    """

    rounds: int
    chunk: int = 64
    shares_query_key = True

    def _attend(self, query, key, value, hash_seed=(0, 0), **arguments):
        """Computes attention with the hash functions of a seed, (2,) integers."""
        factors = self._bucket_factors(ops.shape(query)[1])
        buckets = hash_buckets(query, factors, self.rounds, hash_seed)
        return attend_lsh(query, value, buckets, self.chunk, **arguments)

    def _bucket_factors(self, length) -> tuple[int, ...]:
        """Returns even factors of the number of buckets; two factors hash faster than one."""
        if not isinstance(length, int):
            return (2, UNKNOWN_LENGTH_BUCKETS // 2)
        count = 2 * -(-length // self.chunk)
        if count <= 64:
            return (count,)
        first = 2 * round(count**0.5 / 2)
        return (first, 2 * -(-count // (2 * first)))

    def bias(self, segments, causal: bool):
        raise ValueError("LSH attention has no bias, because its pairs depend on the queries.")


@dataclass(frozen=True)
class Row(Form):
    """Attention in the rows of a grid, see `attend_grid`."""

    columns: int

    @property
    def reach(self) -> int:
        return self.columns

    def _attend(self, query, key, value, **arguments):
        return attend_grid(query, key, value, self.columns, axis=2, **arguments)

    def sees(self, query, key, causal: bool):
        return ops.equal(query // self.columns, key // self.columns)


@dataclass(frozen=True)
class Column(Form):
    """Attention in the columns of a grid, see `attend_grid`."""

    columns: int

    def _attend(self, query, key, value, **arguments):
        return attend_grid(query, key, value, self.columns, axis=1, **arguments)

    def sees(self, query, key, causal: bool):
        return ops.equal(ops.mod(query - key, self.columns), 0)


@dataclass(frozen=True)
class Features(Form):
    """Attention between the groups of features of each position, see `attend_feature_groups`."""

    groups: int
    reach = 0

    def _attend(self, query, key, value, segments, causal, rate, seed):
        """Computes attention; each group has a part of every head."""
        batch, length, heads, size = ops.shape(query)
        if key.shape[2] != heads:
            raise ValueError(
                "The form features does not support grouped-query heads. Received: "
                f"{heads} query heads and {key.shape[2]} key-value heads."
            )
        parts = (ops.reshape(x, (batch, length, heads * size)) for x in (query, key, value))
        out = attend_feature_groups(*parts, self.groups, heads, rate, seed)
        return ops.reshape(out, (batch, length, heads, size))

    def bias(self, segments, causal: bool):
        raise ValueError("Attention between features has no bias, because it has no pairs.")


_FORMS = {
    "plain": Plain, "chunked": Chunked, "window": Window, "lsh": Lsh, "row": Row,
    "column": Column, "features": Features,
}  # fmt: skip


def parse_form(text: str) -> Form:
    """Returns the form of a name such as "window:256".

    Raises:
      ValueError: if there is no such form, or a size is missing or wrong.
    """
    name, *sizes = text.strip().split(":")
    try:
        return _FORMS[name](*map(int, sizes))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"attention must be one of {NAMES}. Received: {text!r}.") from None


def layer_forms(text: str, num_layers: int) -> list[str]:
    """Returns the name of each layer's form; a list such as "window:256,plain" is repeated."""
    names = [name.strip() for name in text.split(",")]
    for name in names:
        parse_form(name)
    return [names[i % len(names)] for i in range(num_layers)]


def attention_masks(names: list[str], segments, causal: bool, layer_name: str) -> list:
    """Returns the attention mask of each layer: one bias for all that take it, or the segments.

    Args:
      names: name of each layer's form.
      segments: (B, T) integers, the document of each position, 0 for padding.
      causal: whether later positions are masked.
      layer_name: name of the layer that computes the bias.
    """
    take_bias = [parse_form(name).takes_bias for name in names]
    bias = MaskBias(causal=causal, name=layer_name)(segments) if any(take_bias) else None
    return [bias if takes_bias else segments for takes_bias in take_bias]


@keras.saving.register_keras_serializable("zoo")
class MaskBias(keras.layers.Layer):
    """Computes `mask_bias` once per model, shared by its blocks."""

    def __init__(self, causal=False, **kwargs):
        super().__init__(**kwargs)
        self.causal = causal

    def call(self, segments_query, segments_key=None):
        return mask_bias(segments_query, segments_key, self.causal)

    def compute_output_spec(self, segments_query, segments_key=None):
        keys = segments_query if segments_key is None else segments_key
        shape = (segments_query.shape[0], 1, segments_query.shape[1], keys.shape[1])
        return keras.KerasTensor(shape, "float32")

    def get_config(self):
        return {**super().get_config(), "causal": self.causal}
