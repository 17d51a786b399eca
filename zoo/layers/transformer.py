"""The transformer block of all text models, with its attention and feed-forward layers.

The block is a decoder (causal mask), an encoder (segment mask), or a decoder with cross-attention
to an encoder's output, the memory. An encoder may have global tokens (Beltagy et al. 2020,
Longformer, arXiv:2004.05150). Axes: B batch, T positions, S positions of the memory, C hidden_dim,
H heads, G key-value heads, D head size.
"""

import keras
from keras import layers, ops

from zoo.layers.attention import parse_form
from zoo.layers.attention_forms.cache import as_rows, attend_cached, attend_rows, start_cache
from zoo.layers.attention_forms.plain import attend, attention_scores, mask_bias
from zoo.layers.attention_forms.sinks import attend_with_sinks
from zoo.layers.composite import Composite
from zoo.layers.dropout import Dropout
from zoo.layers.low_rank import below, dense
from zoo.layers.positions import parse_scaling, rotate

GATED = ("swiglu", "geglu_tanh")  # their first half of the units is the gate of the second
ACTIVATIONS = ("gelu", "gelu_tanh", "relu", *GATED)
NORMS = ("layer", "rms")


# Sublayers get the dtype policy of the outer layer explicitly: a file has only the outer policy,
# and otherwise they would get the global policy at loading.


def normalization(kind: str, epsilon: float, name: str, dtype=None) -> layers.Layer:
    """Returns layer normalization (Ba et al. 2016) or RMS normalization (Zhang, Sennrich 2019)."""
    if kind not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}. Received: {kind!r}.")
    if kind == "rms":
        return layers.RMSNormalization(epsilon=epsilon, name=name, dtype=dtype)
    return layers.LayerNormalization(epsilon=epsilon, name=name, dtype=dtype)


def _normal(deviation: float):
    return keras.initializers.RandomNormal(stddev=deviation)


def _dropout(rate: float, dtype) -> Dropout | None:
    return Dropout(rate, name="dropout", dtype=dtype) if rate else None


@keras.saving.register_keras_serializable("zoo")
class Attention(Composite):
    """Multi-head self-attention, or cross-attention to a memory, with projections.

    Args:
      hidden_dim: C, a multiple of num_heads unless head_dim is set.
      num_heads: H.
      num_key_value_heads: G, a divisor of H; 0 for H.
      rotary_base: base of the rotary position embedding; 0 for none.
      use_bias: whether the projections have biases.
      dropout: dropout rate of the probabilities.
      initializer_range: standard deviation of the initial kernels.
      output_range: standard deviation of the initial output kernel; 0 for initializer_range.
      memory: whether keys and values come from a memory instead of the input.
      form: name of the form of self-attention, see `zoo.layers.attention`.
      causal: whether later positions are masked. The bias of the form "plain" masks them itself.
      max_global: largest number of global tokens per sequence, which have projections of their own;
        0 for none. Only the form "window" supports them, without `causal`.
      width: number of remaining key-value heads after pruning, with H / G queries each; 0 for G.
      head_dim: D; 0 for C / H.
      rotary_scaling: scaling of the rotary frequencies, see `zoo.layers.positions.rotate`; "" for
        none.
      query_key_value_bias: whether the projections to queries, keys and values have biases even if
        the output projection has none.
      query_key_norm: whether queries and keys are RMS-normalized per head before the rotation
        (Henry et al. 2020, arXiv:2010.04245, with RMS normalization as in Qwen3).
      epsilon: epsilon of this normalization.
      query_scale: factor of the queries, and so of the scores, besides 1 / sqrt(D).
      ranks: ranks of low-rank projections by name; see `zoo.layers.low_rank`.
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
        form="plain",
        causal=False,
        max_global=0,
        width=0,
        head_dim=0,
        rotary_scaling="",
        query_key_value_bias=False,
        query_key_norm=False,
        epsilon=1e-6,
        query_scale=1.0,
        ranks=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.ranks = dict(ranks or {})
        groups = num_key_value_heads or num_heads
        if min(num_heads, groups) < 1 or hidden_dim < 1:
            raise ValueError(
                "hidden_dim and num_heads must be positive. Received: "
                f"hidden_dim={hidden_dim}, num_heads={num_heads}, num_key_value_heads={groups}."
            )
        if (hidden_dim % num_heads and not head_dim) or num_heads % groups:
            raise ValueError(
                "hidden_dim must be a multiple of num_heads, and num_heads of num_key_value_heads. "
                f"Received: hidden_dim={hidden_dim}, num_heads={num_heads}, "
                f"num_key_value_heads={groups}."
            )
        if head_dim < 0:
            raise ValueError(f"head_dim must not be negative. Received: {head_dim}.")
        self.size = head_dim or hidden_dim // num_heads
        if rotary_base and self.size % 2:
            raise ValueError(
                "Rotary position embedding requires an even hidden_dim / num_heads or head_dim. "
                f"Received: hidden_dim={hidden_dim}, num_heads={num_heads}, head_dim={head_dim}."
            )
        if parse_scaling(rotary_scaling) and not rotary_base:
            raise ValueError(
                "rotary_scaling requires rotary positions. Received: "
                f"rotary_base={rotary_base}, rotary_scaling={rotary_scaling!r}."
            )
        if not 0 <= width <= groups:
            raise ValueError(f"width must be from 0 to {groups} heads. Received: {width}.")
        self.form, self.causal, self.max_global = parse_form(form), causal, max_global
        if max_global < 0:
            raise ValueError(f"max_global must not be negative. Received: {max_global}.")
        if max_global and (causal or memory or not self.form.takes_global):
            raise ValueError(
                "Global tokens (max_global) require self-attention of the form window that is not "
                f"causal. Received: form={form!r}, causal={causal}, memory={memory}."
            )
        self.settings = {
            "hidden_dim": hidden_dim, "num_heads": num_heads,
            "num_key_value_heads": num_key_value_heads, "rotary_base": rotary_base,
            "use_bias": use_bias, "dropout": dropout, "initializer_range": initializer_range,
            "output_range": output_range, "memory": memory, "form": form, "causal": causal,
            "max_global": max_global, "width": width, "head_dim": head_dim,
            "rotary_scaling": rotary_scaling, "query_key_value_bias": query_key_value_bias,
            "query_key_norm": query_key_norm, "epsilon": epsilon, "query_scale": query_scale,
        }  # fmt: skip
        if self.form.shares_query_key and (memory or groups != num_heads or query_key_norm):
            raise ValueError(
                f"The form {form!r} uses queries as keys, so it supports neither a memory nor "
                f"num_key_value_heads nor query_key_norm. Received: memory={memory}, "
                f"num_key_value_heads={num_key_value_heads}, query_key_norm={query_key_norm}."
            )
        self.groups = width or groups
        self.heads = self.groups * (num_heads // groups)
        self.rotary_base, self.rotary_scaling = rotary_base, rotary_scaling
        self.memory, self.query_scale = memory, query_scale
        wide, narrow = self.heads * self.size, 2 * self.groups * self.size

        def projection(units, name, deviation=initializer_range, has_bias=use_bias):
            return dense(
                units, name, self.ranks, use_bias=has_bias, kernel_initializer=_normal(deviation),
                dtype=self.dtype_policy,
            )  # fmt: skip

        def input_projection(units, name):
            return projection(units, name, has_bias=use_bias or query_key_value_bias)

        if self.form.shares_query_key:
            narrow = self.groups * self.size  # values alone
            # Draws the hash functions of each update.
            self.hash_seeds = keras.random.SeedGenerator()
        else:
            self.hash_seeds = None
        if memory:
            self.query = input_projection(wide, "query")
            self.key_value = input_projection(narrow, "key_value")
        else:
            self.query_key_value = input_projection(wide + narrow, "query_key_value")
        self.global_query_key_value = None
        if max_global:
            self.global_query_key_value = input_projection(wide + narrow, "global_query_key_value")
        self.output_projection = projection(hidden_dim, "output", output_range or initializer_range)
        self.query_norm = self.key_norm = None
        if query_key_norm:
            self.query_norm, self.key_norm = (
                normalization("rms", epsilon, name, self.dtype_policy)
                for name in ("query_norm", "key_norm")
            )
        self.dropout = _dropout(dropout, self.dtype_policy)

    def build(self, shape):
        if self.memory:
            self.query.build(shape)
            self.key_value.build(shape)
        else:
            self.query_key_value.build(shape)
        if self.global_query_key_value is not None:
            self.global_query_key_value.build(shape)
        self.output_projection.build((*shape[:-1], self.heads * self.size))
        if self.query_norm is not None:
            self.query_norm.build((*shape[:-1], self.heads, self.size))
            self.key_norm.build((*shape[:-1], self.groups, self.size))

    def call(self, x, attention_mask=None, memory=None, global_mask=None, training=None):
        """Computes attention of x (B, T, C), to a memory (B, S, C) if given.

        Args:
          x: (B, T, C).
          attention_mask: bias (B, 1, T, S) of the scores if the form is "plain" or there is a
            memory; segments (B, T) for the other forms.
          memory: (B, S, C).
          global_mask: (B, T) booleans, whether a position is a global token; required if and only
            if the layer has global tokens.

        Returns:
          (B, T, C).

        Raises:
          ValueError: if global_mask is missing or not supported.
        """
        self._check_global(global_mask)
        dropout = self.dropout if training else None
        if memory is None:
            more = {}
            if self.max_global:
                names = ("global_query", "global_key", "global_value")
                more = dict(zip(names, self.project(x, 0, is_global=True), strict=True))
                more |= {"global_mask": global_mask, "max_global": self.max_global}
            if training and self.hash_seeds:  # evaluation uses the same hash functions each time
                more["hash_seed"] = self.hash_seeds.next()
            parts = self.project(x, 0)
            return self.combine(
                self.form.attend(*parts, attention_mask, self.causal, dropout, **more)
            )
        query, (key, value) = self.project_query(x), self.project_memory(memory)
        drop = dropout and (lambda p: dropout(p, training=True))
        return self.combine(attend(query, key, value, attention_mask, drop))

    def scores(self, x, attention_mask=None, global_mask=None):
        """Computes the scores of self-attention before the softmax, (B, H, T, T) float32.

        Args:
          x: (B, T, C).
          attention_mask: see `call`.
          global_mask: see `call`. Rows of global tokens have the scores of the global projections.
        """
        self._check_global(global_mask)
        query, key, _ = self.project(x, 0)
        bias = attention_mask
        if not self.form.takes_bias:
            one_document = ops.ones(ops.shape(x)[:2], "int32")
            segments = one_document if attention_mask is None else attention_mask
            bias = self.form.bias(segments, self.causal)
        if not self.max_global:
            return attention_scores(query, key, bias)
        is_global, whole = ops.cast(global_mask, "bool"), mask_bias(attention_mask)
        bias = ops.where(is_global[:, None, None, :], whole, bias)
        global_query, global_key, _ = self.project(x, 0, is_global=True)
        return ops.where(
            is_global[:, None, :, None],
            attention_scores(global_query, global_key, whole),
            attention_scores(query, key, bias),
        )

    def _check_global(self, global_mask):
        if (global_mask is None) == (self.max_global > 0):
            raise ValueError(
                "global_mask must be given if and only if the layer has global tokens. Received: "
                f"max_global={self.max_global}, global_mask={global_mask}."
            )

    def project(self, x, first, is_global=False):
        """Returns query (B, T, H, D), key and value (B, T, G, D) of positions from `first` on.

        Args:
          x: (B, T, C).
          first: index of the first position; None for no rotation.
          is_global: whether to use the projections of global tokens.
        """
        batch, length, _ = ops.shape(x)
        heads, groups, size = self.heads, self.groups, self.size
        projection = self.global_query_key_value if is_global else self.query_key_value
        if self.form.shares_query_key:
            parts = ops.reshape(projection(x), (batch, length, 2 * heads, size))
            query, value = ops.split(parts, 2, axis=2)
            key = query
        else:
            parts = ops.reshape(projection(x), (batch, length, heads + 2 * groups, size))
            query, key, value = ops.split(parts, (heads, heads + groups), axis=2)
        query, key = self._normalize_query(query), self._normalize_key(key)
        if self.rotary_base and first is not None:
            positions = first + ops.arange(length)
            query, key = self.rotate(query, positions), self.rotate(key, positions)
        return query, key, value

    def rotate(self, x, positions):
        """Rotates queries or keys (B, T, H, D) at positions (T,) or (B, T)."""
        return rotate(x, positions, self.rotary_base, self.rotary_scaling)

    def _normalize_query(self, query):
        query = query if self.query_norm is None else self.query_norm(query)
        return query if self.query_scale == 1.0 else query * ops.cast(self.query_scale, query.dtype)

    def _normalize_key(self, key):
        return key if self.key_norm is None else self.key_norm(key)

    def project_query(self, x):
        """Returns the query (B, T, H, D) of cross-attention."""
        batch, length, _ = ops.shape(x)
        query = ops.reshape(self.query(x), (batch, length, self.heads, self.size))
        return self._normalize_query(query)

    def project_memory(self, memory):
        """Returns key and value (B, S, G, D) of a memory (B, S, C)."""
        batch, length, _ = ops.shape(memory)
        key_value = ops.reshape(self.key_value(memory), (batch, length, 2 * self.groups, self.size))
        key, value = ops.split(key_value, 2, axis=2)
        return self._normalize_key(key), value

    def combine(self, out):
        """Applies the output projection to (B, T, H, D); returns (B, T, C)."""
        batch, length, heads, size = ops.shape(out)
        return self.output_projection(ops.reshape(out, (batch, length, heads * size)))

    def compute_output_spec(self, x, *_, **__):
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), **self.settings, "ranks": self.ranks}


def check_activation(activation: str) -> None:
    """Raises `ValueError` unless `activation` is one of `ACTIVATIONS`."""
    if activation not in ACTIVATIONS:
        raise ValueError(
            f"activation must be one of {', '.join(ACTIVATIONS)}. Received: {activation!r}."
        )


def activate(x, activation: str):
    """Applies an activation to (..., F), or to gate and value (..., 2 F) for those of `GATED`."""
    if activation in GATED:
        gate, x = ops.split(x, 2, axis=-1)
        gate = ops.silu(gate) if activation == "swiglu" else ops.gelu(gate, approximate=True)
        return gate * x
    if activation == "relu":
        return ops.relu(x)
    return ops.gelu(x, approximate=activation == "gelu_tanh")


@keras.saving.register_keras_serializable("zoo")
class FeedForward(Composite):
    """Two dense layers with an activation, or SwiGLU or GEGLU (Shazeer 2020, arXiv:2002.05202)."""

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
        check_activation(activation)
        self.settings = {
            "hidden_dim": hidden_dim, "intermediate_dim": intermediate_dim,
            "activation": activation, "use_bias": use_bias,
            "initializer_range": initializer_range, "output_range": output_range,
        }  # fmt: skip
        self.activation = activation
        gated = activation in GATED
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
        """Transforms x (B, T, C) to (B, T, C)."""
        return self.down(activate(self.up(x), self.activation))

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), **self.settings, "ranks": self.ranks}


@keras.saving.register_keras_serializable("zoo")
class TransformerBlock(Composite):
    """Attention and feed-forward with residual connections.

    Args:
      hidden_dim: C.
      num_heads: H.
      intermediate_dim: width of the feed-forward part.
      num_key_value_heads: G; 0 for H.
      cross: whether the block has cross-attention to a memory.
      norm_first: normalize before each part (GPT-2, Llama) or after the residual (Vaswani, BERT).
      norm: "layer" or "rms".
      activation: one of `ACTIVATIONS`.
      rotary_base: see `Attention`.
      head_dim: see `Attention`.
      rotary_scaling: see `Attention`.
      query_key_value_bias: see `Attention`.
      query_key_norm: see `Attention`.
      query_scale: see `Attention`.
      post_norm: whether the output of each part is normalized before it is added to the residual,
        besides the normalization of `norm_first` (Gemma 2, arXiv:2408.00118).
      attention: form of self-attention, such as "window:256"; see `zoo.layers.attention`.
      causal: whether self-attention masks later positions; see `Attention`.
      max_global: largest number of global tokens per sequence; see `Attention`.
      use_bias: whether dense layers have biases.
      dropout: dropout rate of the probabilities and of each part's output.
      epsilon: epsilon of the normalization layers.
      initializer_range: standard deviation of the initial kernels.
      output_range: standard deviation of initial kernels that write to the residual; 0 for
        initializer_range.
      widths: remaining units of pruned parts: key-value heads of "attention" and
        "cross_attention", intermediate units of "feed_forward".
      ranks: ranks of low-rank kernels by path ("attention/output"); see `zoo.layers.low_rank`.
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
        attention="plain",
        causal=False,
        max_global=0,
        use_bias=True,
        dropout=0.0,
        epsilon=1e-5,
        initializer_range=0.02,
        output_range=0.0,
        head_dim=0,
        rotary_scaling="",
        query_key_value_bias=False,
        query_key_norm=False,
        query_scale=1.0,
        post_norm=False,
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
            "attention": attention, "causal": causal, "max_global": max_global,
            "use_bias": use_bias, "dropout": dropout, "epsilon": epsilon,
            "initializer_range": initializer_range, "output_range": output_range,
            "head_dim": head_dim, "rotary_scaling": rotary_scaling,
            "query_key_value_bias": query_key_value_bias, "query_key_norm": query_key_norm,
            "query_scale": query_scale, "post_norm": post_norm,
        }  # fmt: skip
        if post_norm and (cross or not norm_first):
            raise ValueError(
                "post_norm requires norm_first and no cross-attention. Received: "
                f"norm_first={norm_first}, cross={cross}."
            )
        self.norm_first = norm_first
        common_arguments = {
            "use_bias": use_bias,
            "initializer_range": initializer_range,
            "output_range": output_range,
            "dtype": self.dtype_policy,
        }
        heads = {
            "hidden_dim": hidden_dim, "num_heads": num_heads, "dropout": dropout,
            "num_key_value_heads": num_key_value_heads, "head_dim": head_dim,
            "query_key_value_bias": query_key_value_bias, "query_key_norm": query_key_norm,
            "epsilon": epsilon, **common_arguments,
        }  # fmt: skip
        self.attention = Attention(
            rotary_base=rotary_base, rotary_scaling=rotary_scaling, form=attention, causal=causal,
            max_global=max_global, query_scale=query_scale, name="attention",
            width=self.widths.get("attention", 0), ranks=below(ranks, "attention"), **heads,
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
        self.feed_forward = self.make_feed_forward(
            hidden_dim, self.widths.get("feed_forward", intermediate_dim), activation,
            ranks=below(ranks, "feed_forward"), **common_arguments,
        )  # fmt: skip
        self.feed_forward_norm = normalization(
            norm, epsilon, "feed_forward_norm", self.dtype_policy
        )
        self.attention_post_norm = self.feed_forward_post_norm = None
        if post_norm:
            self.attention_post_norm, self.feed_forward_post_norm = (
                normalization(norm, epsilon, name, self.dtype_policy)
                for name in ("attention_post_norm", "feed_forward_post_norm")
            )
        self.dropout = _dropout(dropout, self.dtype_policy)

    def make_feed_forward(self, hidden_dim, intermediate_dim, activation, **arguments):
        """Returns the feed-forward part; subclasses may have another one."""
        return FeedForward(
            hidden_dim, intermediate_dim, activation, name="feed_forward", **arguments
        )  # fmt: skip

    def build(self, shape, *_, **__):
        parts = [self.attention, self.attention_norm, self.feed_forward, self.feed_forward_norm]
        if self.cross_attention is not None:
            parts += [self.cross_attention, self.cross_norm]
        if self.attention_post_norm is not None:
            parts += [self.attention_post_norm, self.feed_forward_post_norm]
        for part in parts:
            part.build(shape)

    def call(
        self,
        x,
        attention_mask=None,
        memory=None,
        memory_bias=None,
        global_mask=None,
        training=None,
    ):
        """Runs the block on whole sequences.

        Args:
          x: (B, T, C).
          attention_mask: mask of self-attention, see `Attention.call`.
          memory: (B, S, C), for a block with `cross`.
          memory_bias: added to the scores of cross-attention.
          global_mask: (B, T) booleans, whether a position is a global token, for a block with
            `max_global`.

        Returns:
          (B, T, C).
        """

        def attention(h):
            return self.attention(h, attention_mask, global_mask=global_mask, training=training)

        def cross_attention(h):
            return self.cross_attention(h, memory_bias, memory, training=training)

        x = self._part(x, attention, self.attention_norm, training)
        if self.cross_attention is not None:
            x = self._part(x, cross_attention, self.cross_norm, training)
        return self._part(x, self.feed_forward, self.feed_forward_norm, training)

    def attention_scores(self, x, attention_mask=None, global_mask=None):
        """Computes the scores of self-attention before the softmax, (B, H, T, T) float32.

        Args:
          x: (B, T, C), input of the block.
          attention_mask: see `call`.
          global_mask: see `call`.
        """
        h = self.attention_norm(x) if self.norm_first else x
        return self.attention.scores(h, attention_mask, global_mask)

    def _part(self, x, part, norm, training=False):
        out = part(norm(x) if self.norm_first else x)
        if self.attention_post_norm is not None:
            is_attention = norm is self.attention_norm
            out = (self.attention_post_norm if is_attention else self.feed_forward_post_norm)(out)
        if self.dropout is not None:
            out = self.dropout(out, training=training)
        return x + out if self.norm_first else norm(x + out)

    # --- decoding with a cache -----------------------------------------------------------------

    def start_cache(self, batch, length, memory=None):
        """Returns an empty cache for `length` positions, with the keys and values of the memory.

        Args:
          batch: B.
          length: length of the longest sequence.
          memory: (B, S, C), for a block with `cross`.

        Returns:
          A dict of tensors with B * G rows; the rows of a sequence are adjacent.
        """
        attention = self.attention
        cache = start_cache(
            attention.form, batch, attention.groups, length, attention.size, self.compute_dtype
        )
        if self.cross_attention is not None:
            key, value = self.cross_attention.project_memory(memory)
            cache.update(memory_key=as_rows(key), memory_value=as_rows(value))
        return cache

    def decode(self, x, cache, first, memory_bias=None, sinks=None):
        """Runs the block, which must be causal, on new positions; the cache holds previous ones.

        Args:
          x: (B, T, C), the new positions.
          cache: cache from `start_cache` or from the last call.
          first: integer scalar, index of the first new position.
          memory_bias: added to the scores of cross-attention.
          sinks: number of attention sinks if the text may exceed the cache, see
            `zoo.layers.attention_forms.sinks`; None if it may not.

        Returns:
          `((B, T, C), cache)`.
        """

        def attention(h):
            nonlocal cache
            layer = self.attention
            parts = layer.project(h, first if sinks is None else None)
            if sinks is None:
                out, cache = attend_cached(layer.form, *parts, cache, first)
            else:
                out, cache = attend_with_sinks(
                    layer.form, *parts, cache, first, sinks, layer.rotate
                )
            return layer.combine(out)

        def cross_attention(h):
            query, groups = self.cross_attention.project_query(h), self.cross_attention.groups
            out = attend_rows(
                query, cache["memory_key"], cache["memory_value"], groups, memory_bias
            )
            return self.cross_attention.combine(out)

        x = self._part(x, attention, self.attention_norm)
        if self.cross_attention is not None:
            x = self._part(x, cross_attention, self.cross_norm)
        return self._part(x, self.transform, self.feed_forward_norm), cache

    def transform(self, h):
        """Runs the feed-forward part on new positions (B, T, C) in decoding."""
        return self.feed_forward(h)

    def compute_output_spec(self, x, *_, **__):
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(), **self.settings, "widths": self.widths, "ranks": self.ranks
        }  # fmt: skip
