"""Recurrent-depth decoder: a group of blocks that is applied a chosen number of times.

Geiping et al. 2025, Scaling up test-time compute with latent reasoning, arXiv:2502.05171; before it
Dehghani et al. 2019, Universal Transformers, arXiv:1807.03819. The prelude reads the text, the
looped blocks refine a state of each position, and the coda predicts from the last state:

    state = norm(prelude)
    repeat r times:  state = norm(blocks(adapter([state, norm(prelude)])))

Training draws r for each update and differentiates through the last `backprop_loops` loops alone,
so memory does not grow with r. Use chooses r (`set_loops`), or stops early where the state of a
position has converged. Axes: B batch, T positions, C hidden_dim.
"""

import math

import keras
import numpy as np
from keras import layers, ops

from zoo import keras_internals
from zoo.errors import UsageError
from zoo.layers.attention import attention_masks, layer_forms
from zoo.layers.composite import Composite
from zoo.layers.low_rank import below, dense
from zoo.layers.transformer import TransformerBlock, normalization
from zoo.models.gpt import derive_sizes

DRAWS = ("uniform", "poisson")
_DEVIATION = 0.5  # of the logarithm of the Poisson rate (Geiping et al. 2025, section 3.3)


def build(
    vocabulary_size: int = 256,
    sequence_length: int = 1024,
    num_layers: int = 0,
    hidden_dim: int = 0,
    num_heads: int = 0,
    num_key_value_heads: int = 0,
    intermediate_dim: int = 0,
    depth: int = 0,
    prelude_layers: int = 1,
    coda_layers: int = 1,
    loops: int = 8,
    loop_range: tuple[int, int] = (4, 8),
    loop_draw: str = "uniform",
    backprop_loops: int = 4,
    rotary_base: float = 10_000.0,
    loop_rotary_base: float = 10_000.0,
    attention: str = "plain",
    tie_weights: bool = True,
    epsilon: float = 1e-5,
    name: str = "looped",
) -> keras.Model:
    """Builds a recurrent-depth decoder.

    Args:
      vocabulary_size: number of tokens.
      sequence_length: largest number of positions, which `zoo train` and `zoo generate` enforce.
      num_layers: number of looped blocks; 0 for `depth`.
      hidden_dim: width; 0 for 64 * depth.
      num_heads: number of attention heads; 0 for hidden_dim // 64, at least 1.
      num_key_value_heads: number of key and value heads; 0 for num_heads.
      intermediate_dim: width inside the feed-forward layers; 0 for 8/3 * hidden_dim, rounded up
        to a multiple of 32.
      depth: number from which all sizes that are 0 are derived.
      prelude_layers: number of blocks before the looped ones.
      coda_layers: number of blocks after the looped ones.
      loops: number of loops outside training.
      loop_range: smallest and largest number of loops in training.
      loop_draw: distribution of the number of loops in training, see `LoopedBlocks`.
      backprop_loops: number of last loops with gradients.
      rotary_base: base of rotary positions in prelude and coda.
      loop_rotary_base: base of rotary positions in the looped blocks; 0 for no positions there.
      attention: form of attention of all blocks, such as "chunked", see `zoo.layers.attention`.
      tie_weights: whether embedding and projection share weights.
      epsilon: epsilon of the normalization layers.
      name: name of the Keras model.

    Returns:
      A Functional model from {"tokens", "segments"}, both (B, T) int32, to logits
      (B, T, vocabulary_size) float32. A position attends to itself and to earlier positions of
      its segment.
    """
    sizes = derive_sizes(depth, num_layers, hidden_dim, num_heads)
    count, width = sizes.pop("num_layers"), sizes["hidden_dim"]
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    segments = keras.Input((None,), dtype="int32", name="segments")
    embedding = layers.ReversibleEmbedding(
        vocabulary_size, width, tie_weights=tie_weights,
        reverse_dtype=keras.config.dtype_policy().compute_dtype,  # see docs/keras3.md
        embeddings_initializer=keras.initializers.RandomNormal(stddev=width**-0.5),
        name="embedding",
    )  # fmt: skip
    x = embedding(tokens)
    forms = layer_forms(attention, prelude_layers + 1 + coda_layers)
    masks = attention_masks(forms, segments, causal=True, layer_name="mask")
    block = {
        **sizes, "num_key_value_heads": num_key_value_heads,
        "intermediate_dim": intermediate_dim or -(-8 * width // 96) * 32, "norm": "rms",
        "activation": "swiglu", "use_bias": False, "epsilon": epsilon,
        "initializer_range": width**-0.5,
        "output_range": width**-0.5,
    }  # fmt: skip
    # The embeddings, not what the prelude adds to them, are most of its output at the start.
    outer = {**block, "output_range": 1 / width, "causal": True, "rotary_base": rotary_base}
    for i in range(prelude_layers):
        x = TransformerBlock(**outer, attention=forms[i], name=f"prelude_{i}")(x, masks[i])
    x = LoopedBlocks(
        num_layers=count, **block, attention=forms[prelude_layers], rotary_base=loop_rotary_base,
        loops=loops, loop_range=loop_range, loop_draw=loop_draw, backprop_loops=backprop_loops,
        name="looped",
    )(x, masks[prelude_layers])  # fmt: skip
    for i, (form, mask) in enumerate(list(zip(forms, masks, strict=True))[prelude_layers + 1 :]):
        x = TransformerBlock(**outer, attention=form, name=f"coda_{i}")(x, mask)
    x = normalization("rms", epsilon, "final_norm")(x)
    logits = embedding(x, reverse=True)
    logits = layers.Activation("linear", dtype="float32", name="logits")(logits)
    return keras.Model({"tokens": tokens, "segments": segments}, logits, name=name)


@keras.saving.register_keras_serializable("zoo")
class SharedQueryKey(keras.initializers.Initializer):
    """Normal initial kernel (C, 3 C) whose query and key parts are equal.

    Positions attend to similar positions from the start, which attention by content otherwise has
    to find by chance (Trockman and Kolter 2023, arXiv:2305.09828).

    Args:
      stddev: standard deviation.
      seed: random seed, see `keras.initializers.RandomNormal`.
    """

    def __init__(self, stddev=0.02, seed=None):
        self.stddev = stddev
        self.normal = keras.initializers.RandomNormal(stddev=stddev, seed=seed)

    def __call__(self, shape, dtype=None):
        query, _, value = ops.split(self.normal(shape, dtype), 3, axis=-1)
        return ops.concatenate([query, query, value], axis=-1)

    def get_config(self):
        return {"stddev": self.stddev, "seed": self.normal.get_config()["seed"]}


@keras.saving.register_keras_serializable("zoo")
class SumOfHalves(keras.initializers.Initializer):
    """Initial kernel (2 C, C) that adds both halves of its input."""

    def __call__(self, shape, dtype=None):
        return ops.tile(ops.eye(shape[1], dtype=dtype), (2, 1))


@keras.saving.register_keras_serializable("zoo")
class LoopedBlocks(Composite):
    """Causal transformer blocks that are applied r times to a state, with input injection.

    Args:
      num_layers: number of blocks of a loop.
      hidden_dim: C.
      loops: r outside training.
      loop_range: smallest and largest r in training.
      loop_draw: distribution of r in training: "uniform" in `loop_range`; or "poisson", a Poisson
        distribution whose rate is log-normal with mean `loops`, restricted to `loop_range`.
      backprop_loops: number of last loops with gradients. Earlier loops get none.
      ranks: ranks of low-rank kernels by path ("block_0/attention/output"); see
        `zoo.layers.low_rank`.

    All other arguments are those of `zoo.layers.transformer.TransformerBlock`.

    Attributes:
      loops: r outside training; may be changed, see `set_loops`.
      halt: relative change of a position's state below which its loops end; 0 to run all loops.
      used_loops: number of loops of each position (B, T) in the last forward pass with `halt`.
      limits: smallest and largest r of the next forward pass in training, int32 scalars within
        `loop_range`; None for no other limits.
    """

    def __init__(
        self,
        num_layers,
        hidden_dim,
        num_heads,
        intermediate_dim,
        num_key_value_heads=0,
        loops=8,
        loop_range=(4, 8),
        loop_draw="uniform",
        backprop_loops=4,
        rotary_base=0.0,
        attention="plain",
        norm="rms",
        activation="swiglu",
        use_bias=False,
        epsilon=1e-5,
        initializer_range=0.02,
        output_range=0.0,
        ranks=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.ranks = dict(ranks or {})
        loop_range = tuple(loop_range)
        if loops < 1 or num_layers < 1 or backprop_loops < 1:
            raise ValueError(
                "loops, backprop_loops and num_layers must be positive. Received: "
                f"loops={loops}, backprop_loops={backprop_loops}, num_layers={num_layers}."
            )
        if len(loop_range) != 2 or not 1 <= loop_range[0] <= loop_range[1]:
            raise ValueError(
                "loop_range must be the smallest and the largest number of loops in training, at "
                f"least 1. Received: {loop_range}."
            )
        if loop_draw not in DRAWS:
            raise ValueError(
                f"loop_draw must be one of {', '.join(DRAWS)}. Received: {loop_draw!r}."
            )
        self.loops, self.loop_range, self.backprop_loops = loops, loop_range, backprop_loops
        block = {
            "hidden_dim": hidden_dim, "num_heads": num_heads, "intermediate_dim": intermediate_dim,
            "num_key_value_heads": num_key_value_heads, "rotary_base": rotary_base,
            "attention": attention, "norm": norm, "activation": activation, "use_bias": use_bias,
            "epsilon": epsilon, "initializer_range": initializer_range,
            "output_range": output_range,
        }  # fmt: skip
        self.settings = {
            "num_layers": num_layers, **block, "loop_draw": loop_draw,
            "backprop_loops": backprop_loops, "loop_range": loop_range,
        }  # fmt: skip
        self.input_norm = normalization(norm, epsilon, "input_norm", self.dtype_policy)
        self.adapter = dense(
            hidden_dim, "adapter", self.ranks, use_bias=False, kernel_initializer=SumOfHalves(),
            dtype=self.dtype_policy,
        )  # fmt: skip
        for i in range(num_layers):
            name = f"block_{i}"
            setattr(self, name, TransformerBlock(
                **block, causal=True, ranks=below(self.ranks, name), name=name,
                dtype=self.dtype_policy,
            ))  # fmt: skip
            attention = getattr(self, name).attention
            if isinstance(attention.query_key_value, layers.Dense) and not num_key_value_heads:
                attention.query_key_value.kernel_initializer = SharedQueryKey(initializer_range)
        self.state_norm = normalization(norm, epsilon, "state_norm", self.dtype_policy)
        self.halt, self.used_loops, self.limits = 0.0, None, None
        self.bounds = np.cumsum(loop_probabilities(loop_draw, loops, loop_range))[:-1].tolist()
        self.loop_seeds = keras.random.SeedGenerator()

    @property
    def shared_seeds(self) -> tuple:
        """Seed generators that draw the same numbers on all replicas and micro-batches."""
        return (self.loop_seeds,)

    @property
    def blocks(self) -> list[TransformerBlock]:
        """The blocks of a loop in order."""
        return [getattr(self, f"block_{i}") for i in range(self.settings["num_layers"])]

    def build(self, shape, *_, **__):
        self.input_norm.build(shape)
        self.adapter.build((*shape[:-1], 2 * shape[-1]))
        for block in self.blocks:
            block.build(shape)
        self.state_norm.build(shape)

    def call(self, x, attention_mask=None, training=None):
        """Runs r loops on whole sequences.

        Args:
          x: (B, T, C), output of the prelude.
          attention_mask: mask of self-attention, see `Attention.call`.

        Returns:
          The last state, (B, T, C).
        """
        state = x = self.input_norm(x)
        if training:
            return self._train(state, x, attention_mask)
        if self.halt:
            return self._halt(state, x, attention_mask)
        for _ in range(self.loops):  # not a loop of the graph, which some export formats refuse
            state = self._loop(state, x, attention_mask)
        return state

    def _train(self, state, x, attention_mask):
        """Runs a random number of loops, the last ones with gradients."""
        smallest, largest = self.loop_range
        tracked = min(self.backprop_loops, largest)
        loops = self.draw()
        if self.limits is not None:
            loops = ops.clip(loops, *self.limits)
        if largest > tracked:
            fixed = ops.stop_gradient(x)

            def body(i, state):
                return i + 1, self._loop(state, fixed, attention_mask)

            # What the untracked loops assign, such as ranges of quantization, cannot leave them.
            with keras_internals.without_updates():
                _, state = ops.while_loop(
                    lambda i, _: i < loops - tracked, body, (ops.zeros((), "int32"), state)
                )
            state = ops.stop_gradient(state)
        for left in range(tracked, 0, -1):
            new = self._loop(state, x, attention_mask)
            state = new if left <= smallest else ops.where(loops >= left, new, state)
        return state

    def _halt(self, state, x, attention_mask):
        """Runs loops until each position has converged; sets `used_loops`."""

        def is_active(i, state, active, used):
            return ops.any(active)

        def body(i, state, active, used):
            state, active = self._advance(state, active, x, attention_mask)
            return i + 1, state, active, used + ops.cast(ops.squeeze(active, -1), "float32")

        active = ops.ones_like(x[..., :1], "bool")
        used = ops.ones_like(x[..., 0], "float32")
        _, state, _, used = ops.while_loop(
            is_active, body, (ops.zeros((), "int32"), state, active, used),
            maximum_iterations=self.loops,
        )  # fmt: skip
        self.used_loops = ops.minimum(used, float(self.loops))
        return state

    def _advance(self, state, active, x, attention_mask):
        """Runs a loop for the active positions; returns their state and those still active."""
        new = ops.where(active, self._loop(state, x, attention_mask), state)
        return new, ops.logical_and(active, self._moves(state, new))

    def _moves(self, state, new):
        """Returns whether the states of positions have changed by more than `halt`, (B, T, 1)."""
        change = ops.cast(new - state, "float32")
        size = ops.sum(ops.square(ops.cast(new, "float32")), -1, keepdims=True)
        return ops.sum(ops.square(change), -1, keepdims=True) > self.halt**2 * size

    def draw(self):
        """Returns the number of loops of an update, an int32 scalar."""
        number = _uniform(self.loop_seeds.next())
        bounds = ops.convert_to_tensor(self.bounds, "float32")
        return self.loop_range[0] + ops.sum(ops.cast(number >= bounds, "int32"))

    def _loop(self, state, x, attention_mask):
        h = self.adapter(ops.concatenate([state, x], axis=-1))
        for block in self.blocks:
            h = block(h, attention_mask)
        return self.state_norm(h)

    # --- decoding with a cache, which has an entry per loop and block ----------------------------

    def start_cache(self, batch, length, memory=None):
        """Returns an empty cache for `length` positions: a list of entries per loop.

        Args:
          batch: B.
          length: length of the longest sequence.
          memory: must be None.
        """
        return [
            [block.start_cache(batch, length) for block in self.blocks] for _ in range(self.loops)
        ]

    def decode(self, x, cache, first, memory_bias=None):
        """Runs r loops on new positions; the cache holds previous ones.

        With `halt`, the states of converged positions stay, but all loops run.

        Args:
          x: (B, T, C), the new positions.
          cache: cache from `start_cache` or from the last call.
          first: integer scalar, index of the first new position.
          memory_bias: must be None.

        Returns:
          `((B, T, C), cache)`.
        """
        state = x = self.input_norm(x)
        active = ops.ones_like(x[..., :1], "bool")
        new_cache = []
        for entries in cache:
            h, new_entries = self.adapter(ops.concatenate([state, x], axis=-1)), []
            for block, entry in zip(self.blocks, entries, strict=True):
                h, entry = block.decode(h, entry, first)
                new_entries.append(entry)
            new = ops.where(active, self.state_norm(h), state)
            if self.halt:
                active = ops.logical_and(active, self._moves(state, new))
            state = new
            new_cache.append(new_entries)
        return state, new_cache

    def compute_output_spec(self, x, *_, **__):
        return keras.KerasTensor(x.shape, self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(), **self.settings, "loops": self.loops, "ranks": self.ranks
        }  # fmt: skip


def _uniform(seed):
    """Returns a random number in [0, 1), a hash of a seed (2,); equal with and without XLA.

    The finalizer of MurmurHash3 (Appleby 2011). `keras.random` draws other numbers under XLA.
    """

    def mixed(x):
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            x = ops.bitwise_xor(x, ops.right_shift(x, ops.cast(shift, "uint32")))
            x = x * ops.cast(factor, "uint32")
        return ops.bitwise_xor(x, ops.right_shift(x, ops.cast(16, "uint32")))

    seed = ops.cast(seed, "uint32")
    word = mixed(ops.bitwise_xor(seed[0], mixed(seed[1] + ops.cast(0x9E3779B9, "uint32"))))
    return ops.cast(ops.right_shift(word, ops.cast(8, "uint32")), "float32") / 2.0**24


def looped_layer(model) -> LoopedBlocks | None:
    """Returns the looped blocks of a model, or None."""
    layers_of_model = model.layers if keras_internals.is_graph(model) else ()
    return next((x for x in layers_of_model if isinstance(x, LoopedBlocks)), None)


def set_loops(model, loops: int | None = None, halt: float | None = None) -> None:
    """Sets the number of loops outside training, and when they end early.

    Functions that are compiled already do not follow.

    Args:
      model: model of `build`.
      loops: number of loops; None for no change.
      halt: relative change of a position's state below which its loops end; None for no change.

    Raises:
      UsageError: if the model has no loops, or a value is not positive.
    """
    layer = looped_layer(model)
    if layer is None:
        raise UsageError(
            "The number of loops and halting require a model with looped blocks (looped_*). "
            f"Received: {model.name!r}."
        )
    if loops is not None and loops < 1:
        raise UsageError(f"The number of loops must be positive. Received: {loops}.")
    if halt is not None and not 0 < halt < 1:
        raise UsageError(f"The change that halts must be in (0, 1). Received: {halt}.")
    layer.loops = layer.loops if loops is None else loops
    layer.halt = layer.halt if halt is None else halt


def loop_probabilities(draw: str, mean: int, loop_range: tuple[int, int]) -> np.ndarray:
    """Returns the probability of each number of loops in `loop_range`.

    Args:
      draw: one of `DRAWS`.
      mean: mean of the log-normal rate of "poisson".
      loop_range: smallest and largest number of loops.
    """
    counts = np.arange(loop_range[0], loop_range[1] + 1)
    if draw == "uniform":
        return np.full(len(counts), 1 / len(counts))
    # The rate is exp(N(log(mean) - deviation^2 / 2, deviation)); 201 quantiles approximate it.
    normal = np.linspace(-4, 4, 201)
    weights = np.exp(-(normal**2) / 2)
    rates = np.exp(math.log(mean) - _DEVIATION**2 / 2 + _DEVIATION * normal)
    factorials = np.array([math.lgamma(n + 1) for n in counts])
    logs = counts[:, None] * np.log(rates) - rates - factorials[:, None]
    probabilities = np.exp(logs) @ weights
    return probabilities / probabilities.sum()
