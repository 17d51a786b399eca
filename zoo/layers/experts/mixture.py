"""The feed-forward part of a transformer block as a mixture of experts.

Axes: B batch, T positions, C hidden_dim, E experts, K experts per token, G blocks of M slots.
"""

import keras
from keras import layers, ops

from zoo.layers.composite import Composite
from zoo.layers.experts.dispatch import by_capacity, capacity_of, dropless, run
from zoo.layers.experts.router import Router
from zoo.layers.low_rank import below
from zoo.layers.transformer import GATED, FeedForward, activate, check_activation
from zoo.rows import use_row_weights

ROUTING = ("dropped", "entropy", "load", "probability")  # sums that `MixtureOfExperts` returns


@keras.saving.register_keras_serializable("zoo")
class ExpertDense(layers.EinsumDense):
    """One dense layer without bias per expert, in one kernel (E, C, units).

    Args:
      num_experts: E.
      units: width of the output.
    """

    def __init__(self, num_experts, units, **kwargs):
        super().__init__("gmc,gcu->gmu", (None, units), **kwargs)
        self.num_experts, self.units = num_experts, units

    def build(self, width):
        super().build((self.num_experts, None, width))

    def call(self, x, experts=None):
        """Transforms blocks.

        Args:
          x: (G, M, C).
          experts: (G,) int32, the expert of each block; None for one block per expert, in order.

        Returns:
          (G, M, units).
        """
        kernel = self.kernel if experts is None else ops.take(self.kernel, experts, axis=0)
        return ops.matmul(x, kernel)

    def compute_output_spec(self, x, experts=None):
        return keras.KerasTensor((*x.shape[:-1], self.units), self.compute_dtype)

    def get_config(self):
        config = super().get_config()
        for name in ("equation", "output_shape", "bias_axes", "activation"):
            config.pop(name, None)
        return {**config, "num_experts": self.num_experts, "units": self.units}

    def get_build_config(self):
        return {"width": self.kernel.shape[1]}

    def build_from_config(self, config):
        self.build(config["width"])


@keras.saving.register_keras_serializable("zoo")
class MixtureOfExperts(Composite):
    """K of E feed-forward experts per token, and shared experts that process all tokens.

    DeepSeekMoE (Dai et al. 2024, arXiv:2401.06066) has the shared experts, Mixtral (Jiang et al.
    2024, arXiv:2401.04088) is the same without them. In inference no pair is dropped.

    Args:
      hidden_dim: C.
      intermediate_dim: width inside each expert.
      num_experts: E.
      experts_per_token: K.
      num_shared_experts: the shared experts are one feed-forward part of this multiple of
        `intermediate_dim`; 0 for none.
      score: scores of the router, see `Router`.
      capacity_factor: in training, an expert processes at most this multiple of its even share of
        each row, ceil(factor * T * K / E), and the other pairs are dropped; 0 for no limit.
      activation: see `FeedForward`.
      initializer_range: standard deviation of the initial kernels.
      output_range: standard deviation of the initial output kernels; 0 for initializer_range.
      ranks: ranks of the kernels of the shared experts, see `zoo.layers.low_rank`.
    """

    def __init__(
        self,
        hidden_dim,
        intermediate_dim,
        num_experts,
        experts_per_token,
        num_shared_experts=0,
        score="softmax",
        capacity_factor=0.0,
        activation="swiglu",
        initializer_range=0.02,
        output_range=0.0,
        ranks=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_activation(activation)
        if intermediate_dim < 1 or num_shared_experts < 0 or capacity_factor < 0:
            raise ValueError(
                "intermediate_dim must be positive, num_shared_experts and capacity_factor must "
                f"not be negative. Received: intermediate_dim={intermediate_dim}, "
                f"num_shared_experts={num_shared_experts}, capacity_factor={capacity_factor}."
            )
        self.settings = {
            "hidden_dim": hidden_dim, "intermediate_dim": intermediate_dim,
            "num_experts": num_experts, "experts_per_token": experts_per_token,
            "num_shared_experts": num_shared_experts, "score": score,
            "capacity_factor": capacity_factor, "activation": activation,
            "initializer_range": initializer_range, "output_range": output_range,
        }  # fmt: skip
        self.ranks = dict(ranks or {})
        self.activation, self.capacity_factor = activation, capacity_factor
        self.num_experts, self.experts_per_token = num_experts, experts_per_token
        self.router = Router(
            num_experts, experts_per_token, score, initializer_range, name="router"
        )  # fmt: skip

        def expert(units, name, deviation):
            return ExpertDense(
                num_experts, units, name=name, dtype=self.dtype_policy,
                kernel_initializer=keras.initializers.RandomNormal(stddev=deviation),
            )  # fmt: skip

        inside = intermediate_dim * (2 if activation in GATED else 1)
        self.up = expert(inside, "up", initializer_range)
        self.down = expert(hidden_dim, "down", output_range or initializer_range)
        self.shared = None
        if num_shared_experts:
            self.shared = FeedForward(
                hidden_dim, num_shared_experts * intermediate_dim, activation, use_bias=False,
                initializer_range=initializer_range, output_range=output_range, name="shared",
                ranks=below(ranks, "shared"), dtype=self.dtype_policy,
            )  # fmt: skip

    def build(self, shape, *_):
        self.router.build((None, shape[-1]))
        self.up.build(shape[-1])
        self.down.build(self.settings["intermediate_dim"])
        if self.shared is not None:
            self.shared.build(shape)

    @property
    def inactive_parameters(self) -> int:
        """Number of parameters that a token does not use: those of the experts not chosen."""
        kernels = self.up.count_params() + self.down.count_params()
        return kernels // self.num_experts * (self.num_experts - self.experts_per_token)

    def call(self, x, segments=None, training=None):
        """Processes each token by its experts.

        Args:
          x: (B, T, C).
          segments: (B, T) int32, 0 for padding, which is not routed; None for no padding.

        Returns:
          `(out, routing)`: out (B, T, C), and sums over the tokens of each row, float32:
          "load" (B, E) pairs per expert, with the dropped ones, "probability" (B, E) normalized
          scores, "entropy" (B,) entropy of these scores as a share of its maximum, log E,
          "dropped" (B,) dropped pairs.
        """
        batch, length, width = ops.shape(x)
        tokens = ops.reshape(x, (-1, width))
        experts, gates, probabilities = self.router(tokens)
        if segments is None:
            is_real = ops.ones((batch * length,), "int32")
        else:
            is_real = ops.reshape(ops.cast(segments > 0, "int32"), (-1,))
        if training and self.capacity_factor:
            capacity = capacity_of(
                self.capacity_factor, length, self.experts_per_token, self.num_experts
            )
            plan = by_capacity(experts, is_real, self.num_experts, batch, capacity)
        else:
            plan = dropless(experts, is_real, self.num_experts)
        with use_row_weights(None):  # blocks of slots are not rows of the batch
            out = run(plan, tokens, gates, self.run_experts)
        out = ops.reshape(out, (batch, length, width))
        if self.shared is not None:
            out = out + self.shared(x)
        return out, self._routing(plan, experts, probabilities, is_real, batch, length)

    def run_experts(self, x, experts):
        """Runs experts on blocks (G, M, C); see `ExpertDense.call`."""
        return self.down(activate(self.up(x, experts), self.activation), experts)

    def _routing(self, plan, experts, probabilities, is_real, batch, length):
        count = self.num_experts
        is_real = ops.cast(is_real, "float32")

        def per_row(values, *axes):
            return ops.sum(ops.reshape(values, (batch, length, *axes)), 1)

        chosen = ops.sum(ops.one_hot(experts, count, dtype="float32"), 1) * is_real[:, None]
        entropy = -ops.sum(probabilities * ops.log(ops.maximum(probabilities, 1e-20)), -1)
        dropped = ops.cast(plan.slots >= ops.shape(plan.pairs)[0], "float32")
        return {
            "load": per_row(chosen, count),
            "probability": per_row(probabilities * is_real[:, None], count),
            "entropy": per_row(entropy * is_real / ops.log(float(max(count, 2)))),
            "dropped": per_row(ops.sum(dropped, -1) * is_real),
        }

    def compute_output_spec(self, x, *_, **__):
        def sums(*shape):
            return keras.KerasTensor((x.shape[0], *shape), "float32")

        return keras.KerasTensor(x.shape, self.compute_dtype), {
            "load": sums(self.num_experts), "probability": sums(self.num_experts),
            "entropy": sums(), "dropped": sums(),
        }  # fmt: skip

    def get_config(self):
        return {**super().get_config(), **self.settings, "ranks": self.ranks}
