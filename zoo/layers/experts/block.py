"""The transformer block with a mixture of experts, and models that also return its routing."""

import keras

from zoo.layers.experts.mixture import ROUTING, MixtureOfExperts
from zoo.layers.transformer import TransformerBlock

_EXPERTS = (
    "num_experts", "experts_per_token", "num_shared_experts", "score", "capacity_factor",
)  # fmt: skip


@keras.saving.register_keras_serializable("zoo")
class ExpertBlock(TransformerBlock):
    """A causal `TransformerBlock` whose feed-forward part is a `MixtureOfExperts`.

    Args:
      num_experts: see `MixtureOfExperts`.
      experts_per_token: see `MixtureOfExperts`.
      num_shared_experts: see `MixtureOfExperts`.
      score: see `MixtureOfExperts`.
      capacity_factor: see `MixtureOfExperts`.

    The other arguments are those of `TransformerBlock`; `intermediate_dim` is the width inside each
    expert.
    """

    def __init__(
        self, *args, num_experts, experts_per_token, num_shared_experts=0, score="softmax",
        capacity_factor=0.0, **kwargs,
    ):  # fmt: skip
        values = num_experts, experts_per_token, num_shared_experts, score, capacity_factor
        self._expert_settings = dict(zip(_EXPERTS, values, strict=True))
        super().__init__(*args, **kwargs)
        if self.widths.get("feed_forward"):
            raise ValueError("The experts of a block support no widths.")
        self.settings |= self._expert_settings

    def make_feed_forward(self, hidden_dim, intermediate_dim, activation, **arguments):
        """Returns the mixture of experts."""
        if arguments.pop("use_bias"):
            raise ValueError("A block of experts has no biases: set use_bias=False.")
        return MixtureOfExperts(
            hidden_dim, intermediate_dim, activation=activation, name="feed_forward",
            **self._expert_settings, **arguments,
        )  # fmt: skip

    def call(self, x, attention_mask=None, segments=None, training=None):
        """Runs the block on whole sequences.

        Args:
          x: (B, T, C).
          attention_mask: mask of self-attention, see `Attention.call`.
          segments: (B, T) int32, 0 for padding, which is not routed.

        Returns:
          `((B, T, C), routing)`, see `MixtureOfExperts.call`.
        """
        routing = {}

        def attention(h):
            return self.attention(h, attention_mask, training=training)

        def experts(h):
            out, sums = self.feed_forward(h, segments, training=training)
            routing.update(sums)
            return out

        x = self._part(x, attention, self.attention_norm, training)
        return self._part(x, experts, self.feed_forward_norm, training), routing

    def transform(self, h):
        """Runs the experts on new positions (B, T, C) in decoding."""
        return self.feed_forward(h)[0]

    def compute_output_spec(self, x, *_, **__):
        return self.feed_forward.compute_output_spec(x)


def expert_blocks(model: keras.Model) -> list[ExpertBlock]:
    """Returns the blocks of experts of a Functional model, in order."""
    return [layer for layer in model.layers if isinstance(layer, ExpertBlock)]


def with_routing(model: keras.Model) -> keras.Model:
    """Returns a model with the same inputs and layers that also returns the routing.

    Its outputs are {"outputs": the outputs of `model`, "routing": one dict per block}.
    """
    # Keras lists the outputs of a layer, dicts in the order of their keys.
    routing = [dict(zip(ROUTING, block.output[1:], strict=True)) for block in expert_blocks(model)]
    return keras.Model(model.input, {"outputs": model.output, "routing": routing})
