"""The transformer block of every text model here, and what stands around it.

One block serves three shapes: the decoder (causal mask), the encoder (segment mask) and the
encoder-decoder (a second attention, to the encoder's output). Axes: B batch, T positions, S
positions of the other side, C hidden_dim, H heads, G key-value heads, D head size.
"""

import keras
from keras import layers, ops

from zoo.layers.attention import attend, attention_scores, rotate
from zoo.layers.composite import Composite
from zoo.layers.dropout import Dropout
from zoo.layers.low_rank import below, dense
from zoo.layers.xla import write_rows

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "swiglu")
NORMS = ("layer", "rms")


# Layers inside layers are given the type of the outer one: in a file it is that of the outer one
# alone that is kept, and without it they would have the one that is set when they are loaded.


def normalization(kind: str, epsilon: float, name: str, dtype=None) -> layers.Layer:
    """Returns layer normalisation (Ba et al. 2016) or RMS normalisation (Zhang, Sennrich 2019)."""
    if kind not in NORMS:
        raise ValueError(f"norm is one of {', '.join(NORMS)}. Received: {kind!r}.")
    if kind == "rms":
        return layers.RMSNormalization(epsilon=epsilon, name=name, dtype=dtype)
    return layers.LayerNormalization(epsilon=epsilon, name=name, dtype=dtype)


def _normal(deviation: float):
    return keras.initializers.RandomNormal(stddev=deviation)


@keras.saving.register_keras_serializable("zoo")
class Attention(Composite):
    """Multi-head attention with its projections, to itself or to a memory.

    Args:
      hidden_dim: C, a multiple of num_heads.
      num_heads: H.
      num_key_value_heads: G, a divisor of H; 0 for H.
      rotary_base: base of the rotary position embedding; 0 for none.
      use_bias: whether the projections have biases.
      dropout: share of the probabilities that is dropped in training.
      initializer_range: standard deviation of the projections' start.
      output_range: that of the output projection; 0 for the same.
      memory: whether keys and values come from a memory in place of the input.
      width: of the G key-value heads so many are there, each with its H / G queries; 0 for all.
      ranks: of the projections that are products, by name; see `zoo.layers.low_rank`.
    """

    def __init__(
        self,
        hidden_dim,
        num_heads,
        num_key_value_heads=0,
        rotary_base=0.0,
        use_bias=True,
        dropout=0.0,
        initializer_range=0.02,
        output_range=0.0,
        memory=False,
        width=0,
        ranks=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.ranks = dict(ranks or {})
        groups = num_key_value_heads or num_heads
        if min(num_heads, groups) < 1 or hidden_dim < 1:
            raise ValueError(
                "hidden_dim and num_heads are positive. Received: "
                f"hidden_dim={hidden_dim}, num_heads={num_heads}, num_key_value_heads={groups}."
            )
        if hidden_dim % num_heads or num_heads % groups:
            raise ValueError(
                "hidden_dim is a multiple of num_heads, and that of num_key_value_heads. Received: "
                f"hidden_dim={hidden_dim}, num_heads={num_heads}, num_key_value_heads={groups}."
            )
        if rotary_base and hidden_dim // num_heads % 2:
            raise ValueError(
                "Rotary positions turn pairs of numbers: hidden_dim / num_heads is even. Received: "
                f"hidden_dim={hidden_dim}, num_heads={num_heads}."
            )
        if not 0 <= width <= groups:
            raise ValueError(f"width lies between 0 and {groups} heads. Received: {width}.")
        self.settings = {
            "hidden_dim": hidden_dim, "num_heads": num_heads,
            "num_key_value_heads": num_key_value_heads, "rotary_base": rotary_base,
            "use_bias": use_bias, "dropout": dropout, "initializer_range": initializer_range,
            "output_range": output_range, "memory": memory, "width": width,
        }  # fmt: skip
        self.size, self.groups = hidden_dim // num_heads, width or groups
        self.heads = self.groups * (num_heads // groups)
        self.rotary_base, self.memory = rotary_base, memory
        wide, narrow = self.heads * self.size, 2 * self.groups * self.size

        def projection(units, name, deviation=initializer_range):
            return dense(
                units, name, self.ranks, use_bias=use_bias, kernel_initializer=_normal(deviation),
                dtype=self.dtype_policy,
            )  # fmt: skip

        if memory:
            self.query = projection(wide, "query")
            self.key_value = projection(narrow, "key_value")
        else:
            self.query_key_value = projection(wide + narrow, "query_key_value")
        self.output_projection = projection(hidden_dim, "output", output_range or initializer_range)
        self.dropout = None
        if dropout:
            self.dropout = Dropout(dropout, name="dropout", dtype=self.dtype_policy)

    def build(self, shape):
        if self.memory:
            self.query.build(shape)
            self.key_value.build(shape)
        else:
            self.query_key_value.build(shape)
        self.output_projection.build((*shape[:-1], self.heads * self.size))

    def call(self, x, bias=None, memory=None, training=None):
        """Args: x (B, T, C); bias as for `attend`; memory (B, S, C). Returns (B, T, C)."""
        query, key, value = self.project(x, 0) if memory is None else self._with(x, memory)
        dropout = (lambda p: self.dropout(p, training=training)) if self.dropout else None
        return self.combine(attend(query, key, value, bias, dropout))

    def project(self, x, first):
        """Returns query (B, T, H, D), key and value (B, T, G, D) of positions `first` and on."""
        batch, length, _ = ops.shape(x)
        heads, groups, size = self.heads, self.groups, self.size
        parts = ops.reshape(self.query_key_value(x), (batch, length, heads + 2 * groups, size))
        query, key, value = ops.split(parts, (heads, heads + groups), axis=2)
        if self.rotary_base:
            positions = first + ops.arange(length)
            query = rotate(query, positions, self.rotary_base)
            key = rotate(key, positions, self.rotary_base)
        return query, key, value

    def _with(self, x, memory):
        return self.project_query(x), *self.project_memory(memory)

    def project_query(self, x):
        """Returns the query (B, T, H, D) of an attention to a memory."""
        batch, length, _ = ops.shape(x)
        return ops.reshape(self.query(x), (batch, length, self.heads, self.size))

    def project_memory(self, memory):
        """Returns key and value (B, S, G, D) of a memory (B, S, C)."""
        batch, length, _ = ops.shape(memory)
        both = ops.reshape(self.key_value(memory), (batch, length, 2 * self.groups, self.size))
        return tuple(ops.split(both, 2, axis=2))

    def combine(self, out):
        """The output projection of (B, T, H, D)."""
        batch, length, heads, size = ops.shape(out)
        return self.output_projection(ops.reshape(out, (batch, length, heads * size)))

    def compute_output_spec(self, x, bias=None, memory=None, training=None):
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), **self.settings, "ranks": self.ranks}


@keras.saving.register_keras_serializable("zoo")
class FeedForward(Composite):
    """Two dense layers with an activation, or SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(
        self,
        hidden_dim,
        intermediate_dim,
        activation="gelu",
        use_bias=True,
        initializer_range=0.02,
        output_range=0.0,
        ranks=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.ranks = dict(ranks or {})
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"activation is one of {', '.join(ACTIVATIONS)}. Received: {activation!r}."
            )
        self.settings = {
            "hidden_dim": hidden_dim, "intermediate_dim": intermediate_dim,
            "activation": activation, "use_bias": use_bias,
            "initializer_range": initializer_range, "output_range": output_range,
        }  # fmt: skip
        self.activation = activation
        gated = activation == "swiglu"
        self.up = dense(
            intermediate_dim * (2 if gated else 1), "gate_up" if gated else "up", self.ranks,
            use_bias=use_bias, kernel_initializer=_normal(initializer_range),
            dtype=self.dtype_policy,
        )  # fmt: skip
        self.down = dense(
            hidden_dim, "down", self.ranks, use_bias=use_bias,
            kernel_initializer=_normal(output_range or initializer_range),
            dtype=self.dtype_policy,
        )  # fmt: skip

    def build(self, shape):
        self.up.build(shape)
        self.down.build((*shape[:-1], self.settings["intermediate_dim"]))

    def call(self, x):
        """Args: x (B, T, C). Returns (B, T, C)."""
        x = self.up(x)
        if self.activation == "swiglu":
            gate, x = ops.split(x, 2, axis=-1)
            x = ops.silu(gate) * x
        elif self.activation == "relu":
            x = ops.relu(x)
        else:
            x = ops.gelu(x, approximate=self.activation == "gelu_tanh")
        return self.down(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), **self.settings, "ranks": self.ranks}


@keras.saving.register_keras_serializable("zoo")
class TransformerBlock(Composite):
    """Attention and feed-forward with residuals.

    Args:
      hidden_dim: C.
      num_heads: H.
      intermediate_dim: width inside the feed-forward part.
      num_key_value_heads: G; 0 for H.
      cross: whether a second attention looks at a memory.
      norm_first: normalise before each part (GPT-2, Llama) or after the residual (Vaswani, BERT).
      norm: "layer" or "rms".
      activation: one of `ACTIVATIONS`.
      rotary_base: see `Attention`.
      use_bias: whether dense layers have biases.
      dropout: share dropped of the probabilities and of each part's output.
      epsilon: of the normalisations.
      initializer_range: standard deviation of the kernels' start.
      output_range: that of the kernels that write into the residual; 0 for the same.
      widths: of parts that have fewer units than the block's arguments say: "attention" and
        "cross_attention" so many of the G key-value heads, "feed_forward" so many inside.
      ranks: of the kernels that are products, by path ("attention/output"); see
        `zoo.layers.low_rank`.
    """

    def __init__(
        self,
        hidden_dim,
        num_heads,
        intermediate_dim,
        num_key_value_heads=0,
        cross=False,
        norm_first=True,
        norm="layer",
        activation="gelu",
        rotary_base=0.0,
        use_bias=True,
        dropout=0.0,
        epsilon=1e-5,
        initializer_range=0.02,
        output_range=0.0,
        widths=None,
        ranks=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.widths, self.ranks = dict(widths or {}), dict(ranks or {})
        self.settings = {
            "hidden_dim": hidden_dim, "num_heads": num_heads, "intermediate_dim": intermediate_dim,
            "num_key_value_heads": num_key_value_heads, "cross": cross, "norm_first": norm_first,
            "norm": norm, "activation": activation, "rotary_base": rotary_base,
            "use_bias": use_bias, "dropout": dropout, "epsilon": epsilon,
            "initializer_range": initializer_range, "output_range": output_range,
        }  # fmt: skip
        self.norm_first = norm_first
        both = {
            "use_bias": use_bias,
            "initializer_range": initializer_range,
            "output_range": output_range,
            "dtype": self.dtype_policy,
        }
        heads = {
            "hidden_dim": hidden_dim, "num_heads": num_heads, "dropout": dropout,
            "num_key_value_heads": num_key_value_heads, **both,
        }  # fmt: skip
        self.attention = Attention(
            rotary_base=rotary_base, name="attention", width=self.widths.get("attention", 0),
            ranks=below(ranks, "attention"), **heads,
        )  # fmt: skip
        self.attention_norm = normalization(norm, epsilon, "attention_norm", self.dtype_policy)
        if cross:
            self.cross_attention = Attention(
                memory=True, name="cross_attention", width=self.widths.get("cross_attention", 0),
                ranks=below(ranks, "cross_attention"), **heads,
            )  # fmt: skip
            self.cross_norm = normalization(norm, epsilon, "cross_norm", self.dtype_policy)
        else:
            self.cross_attention = None
        self.feed_forward = FeedForward(
            hidden_dim, self.widths.get("feed_forward", intermediate_dim), activation,
            name="feed_forward", ranks=below(ranks, "feed_forward"), **both,
        )  # fmt: skip
        self.feed_forward_norm = normalization(
            norm, epsilon, "feed_forward_norm", self.dtype_policy
        )
        self.dropout = None
        if dropout:
            self.dropout = Dropout(dropout, name="dropout", dtype=self.dtype_policy)

    def build(self, shape, *_, **__):
        parts = [self.attention, self.attention_norm, self.feed_forward, self.feed_forward_norm]
        if self.cross_attention is not None:
            parts += [self.cross_attention, self.cross_norm]
        for part in parts:
            part.build(shape)

    def call(self, x, bias=None, memory=None, memory_bias=None, training=None):
        """Runs the block on whole sequences.

        Args:
          x: (B, T, C).
          bias: added to the scores of the attention, see `attend`.
          memory: (B, S, C), for a block with `cross`.
          memory_bias: of the attention to the memory.

        Returns:
          (B, T, C).
        """

        def attention(h):
            return self.attention(h, bias, training=training)

        def cross_attention(h):
            return self.cross_attention(h, memory_bias, memory, training=training)

        x = self._part(x, attention, self.attention_norm, training)
        if self.cross_attention is not None:
            x = self._part(x, cross_attention, self.cross_norm, training)
        return self._part(x, self.feed_forward, self.feed_forward_norm, training)

    def attention_scores(self, x, bias=None):
        """Returns what the softmax of the attention to itself is taken of, (B, H, T, T) float32.

        `call` does not keep it: it is computed anew, with one projection more.

        Args:
          x: (B, T, C): what the block is given.
          bias: as for `call`.
        """
        h = self.attention_norm(x) if self.norm_first else x
        query, key, _ = self.attention.project(h, 0)
        return attention_scores(query, key, bias)

    def _part(self, x, part, norm, training=False):
        out = part(norm(x) if self.norm_first else x)
        if self.dropout is not None:
            out = self.dropout(out, training=training)
        return x + out if self.norm_first else norm(x + out)

    # --- a few positions at a time, with what came before kept ---------------------------------
    # Keys and values are kept as (B * G, S, D). With any further axis XLA copies all of them at
    # every step of a loop; so it writes the new ones in place, and reads them where they lie.

    def start_cache(self, batch, length, memory=None):
        """Returns an empty cache for `length` positions, with the memory's keys and values.

        Args:
          batch: B.
          length: of the longest sequence.
          memory: (B, S, C), for a block with `cross`.

        Returns:
          A dict of tensors of B * G rows, those of one sequence side by side.
        """
        shape = (batch * self.attention.groups, length, self.attention.size)
        cache = {name: ops.zeros(shape, self.compute_dtype) for name in ("key", "value")}
        if self.cross_attention is not None:
            key, value = self.cross_attention.project_memory(memory)
            cache.update(memory_key=_rows(key), memory_value=_rows(value))
        return cache

    def decode(self, x, cache, first, bias, memory_bias=None):
        """Runs the block on positions `first` and on; the cache holds those before.

        Args:
          x: (B, T, C): the new positions.
          cache: of `start_cache`, or as the last call returned it.
          first: integer scalar: the place of the first new position.
          bias: (B or 1, 1, T, length): `MASKED` where a position may not look.
          memory_bias: of the attention to the memory.

        Returns:
          `((B, T, C), cache)`.
        """
        cache = dict(cache)

        def attention(h):
            query, key, value = self.attention.project(h, first)
            for name, new in (("key", key), ("value", value)):
                cache[name] = write_rows(cache[name], _rows(new), first)
            return self.attention.combine(
                _attend_rows(query, cache["key"], cache["value"], self.attention.groups, bias)
            )

        def cross_attention(h):
            query, groups = self.cross_attention.project_query(h), self.cross_attention.groups
            out = _attend_rows(
                query, cache["memory_key"], cache["memory_value"], groups, memory_bias
            )
            return self.cross_attention.combine(out)

        x = self._part(x, attention, self.attention_norm)
        if self.cross_attention is not None:
            x = self._part(x, cross_attention, self.cross_norm)
        return self._part(x, self.feed_forward, self.feed_forward_norm), cache

    def compute_output_spec(self, x, *_, **__):
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(), **self.settings, "widths": self.widths, "ranks": self.ranks
        }  # fmt: skip


def _rows(x):
    """(B, T, G, D) to (B * G, T, D)."""
    batch, length, groups, size = ops.shape(x)
    return ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (batch * groups, length, size))


def _attend_rows(query, key, value, groups, bias):
    """`attend` for a query (B, T, H, D), and key and value (B * G, S, D) as a cache has them."""
    batch, length, heads, size = ops.shape(query)
    repeats, sources = heads // groups, ops.shape(key)[1]
    query = query * ops.cast(size**-0.5, query.dtype)
    query = ops.reshape(query, (batch, length, groups, repeats, size))
    query = ops.reshape(
        ops.transpose(query, (0, 2, 3, 1, 4)), (batch * groups, repeats * length, size)
    )
    scores = ops.cast(ops.matmul(query, ops.transpose(key, (0, 2, 1))), "float32")
    if bias is not None:
        scores = ops.reshape(scores, (batch, groups, repeats, length, sources))
        scores = scores + ops.expand_dims(bias, 1)
    probabilities = ops.cast(ops.softmax(scores), value.dtype)
    probabilities = ops.reshape(probabilities, (batch * groups, repeats * length, sources))
    out = ops.matmul(probabilities, value)
    out = ops.reshape(out, (batch, groups, repeats, length, size))
    return ops.reshape(ops.transpose(out, (0, 3, 1, 2, 4)), (batch, length, heads, size))
