"""The router of a mixture of experts: which experts process a token, and with which weights.

Axes: N tokens, C hidden_dim, E experts, K experts per token.
"""

import keras
from keras import layers, ops

SCORES = ("softmax", "sigmoid")


@keras.saving.register_keras_serializable("zoo")
class Router(layers.Layer):
    """Top-k routing in float32, whatever the precision of the model.

    The scores are a softmax over the experts (Shazeer et al. 2017, arXiv:1701.06538) or independent
    sigmoids (DeepSeek-AI 2024, DeepSeek-V3, arXiv:2412.19437). The K experts with the largest
    `score + load_bias` are chosen; the gates are their scores, divided by the sum over the K. A
    single expert (K = 1) keeps its score as the gate (Fedus et al. 2021, arXiv:2101.03961): divided
    by itself it would be 1, and the router would get no gradient.

    `load_bias` (E,) changes the choice alone and gets no gradient: a task may move it to balance
    the load (Wang et al. 2024, arXiv:2408.15664), see `zoo.tasks.moe`.

    Args:
      num_experts: E.
      experts_per_token: K, from 1 to E.
      score: one of `SCORES`.
      initializer_range: standard deviation of the initial kernel.
    """

    # `load_bias` changes after an update, never in a forward pass; see `has_batch_statistics`.
    state_changes_in_forward = False

    def __init__(
        self, num_experts, experts_per_token, score="softmax", initializer_range=0.02, **kwargs
    ):
        super().__init__(**{**kwargs, "dtype": "float32"})
        check_experts(num_experts, experts_per_token)
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}. Received: {score!r}.")
        self.num_experts, self.experts_per_token, self.score = num_experts, experts_per_token, score
        self.initializer_range = initializer_range

    def build(self, shape):
        self.kernel = self.add_weight(
            shape=(shape[-1], self.num_experts), name="kernel",
            initializer=keras.initializers.RandomNormal(stddev=self.initializer_range),
        )  # fmt: skip
        self.load_bias = self.add_weight(
            shape=(self.num_experts,), name="load_bias", initializer="zeros", trainable=False,
            aggregation="only_first_replica",
        )  # fmt: skip

    def call(self, x):
        """Chooses the experts of each token.

        Args:
          x: (N, C).

        Returns:
          `(experts, gates, probabilities)`: experts (N, K) int32, gates (N, K) float32, and the
          scores of all experts, divided by their sum, (N, E) float32.
        """
        logits = ops.matmul(ops.cast(x, "float32"), self.kernel)
        if self.score == "softmax":
            scores = probabilities = ops.softmax(logits, axis=-1)
        else:
            scores = ops.sigmoid(logits)
            probabilities = scores / ops.maximum(ops.sum(scores, -1, keepdims=True), 1e-20)
        _, experts = ops.top_k(ops.stop_gradient(scores) + self.load_bias, self.experts_per_token)
        experts = ops.cast(experts, "int32")
        chosen = ops.one_hot(experts, self.num_experts, dtype="float32")
        gates = ops.sum(chosen * scores[:, None, :], -1)
        if self.experts_per_token > 1:
            gates = gates / ops.maximum(ops.sum(gates, -1, keepdims=True), 1e-20)
        return experts, gates, probabilities

    def compute_output_spec(self, x):
        chosen = (*x.shape[:-1], self.experts_per_token)
        return (
            keras.KerasTensor(chosen, "int32"),
            keras.KerasTensor(chosen, "float32"),
            keras.KerasTensor((*x.shape[:-1], self.num_experts), "float32"),
        )

    def get_config(self):
        return {
            **super().get_config(), "num_experts": self.num_experts,
            "experts_per_token": self.experts_per_token, "score": self.score,
            "initializer_range": self.initializer_range,
        }  # fmt: skip


def check_experts(num_experts: int, experts_per_token: int) -> None:
    """Raises `ValueError` unless 1 <= experts_per_token <= num_experts."""
    if not 1 <= experts_per_token <= num_experts:
        raise ValueError(
            "experts_per_token must be from 1 to num_experts, which must be at least 1. Received: "
            f"experts_per_token={experts_per_token}, num_experts={num_experts}."
        )
