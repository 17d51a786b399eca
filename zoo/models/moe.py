"""Mixture-of-experts decoder: a Llama whose feed-forward parts are routed experts.

Top-k routing with a shared expert, as DeepSeekMoE (Dai et al. 2024, arXiv:2401.06066); with
num_shared_experts=0 as Mixtral (Jiang et al. 2024, arXiv:2401.04088). The task `moe` balances the
load of the experts and logs it.
"""

import keras

from zoo.layers.experts.block import ExpertBlock
from zoo.models.gpt import decoder, derive_sizes


def build(
    vocabulary_size: int = 32_000,
    sequence_length: int = 2048,
    num_layers: int = 0,
    hidden_dim: int = 0,
    num_heads: int = 0,
    num_key_value_heads: int = 0,
    num_experts: int = 8,
    experts_per_token: int = 2,
    num_shared_experts: int = 1,
    expert_dim: int = 0,
    score: str = "sigmoid",
    capacity_factor: float = 0.0,
    depth: int = 0,
    dropout: float = 0.0,
    rotary_base: float = 10_000.0,
    attention: str = "plain",
    tie_weights: bool = True,
    epsilon: float = 1e-5,
    name: str = "moe",
) -> keras.Model:
    """Builds a mixture-of-experts decoder.

    The model computes as much per token as `zoo.models.llama.build` with
    `intermediate_dim=(experts_per_token + num_shared_experts) * expert_dim`, plus the router.

    Args:
      num_experts: number of routed experts in each block.
      experts_per_token: number of routed experts that process a token.
      num_shared_experts: number of further experts that process every token; 0 for none.
      expert_dim: width inside each expert; 0 for 8/3 * hidden_dim, divided by the number of experts
        that process a token and rounded up to a multiple of 32.
      score: scores of the router, "softmax" or "sigmoid".
      capacity_factor: in training, an expert processes at most this multiple of its even share of
        each row, and the other tokens skip it; 0 for no limit. Inference never drops a token.

    All other arguments and the model's inputs and outputs are those of `zoo.models.llama.build`.
    """
    sizes = derive_sizes(depth, num_layers, hidden_dim, num_heads)
    per_token = experts_per_token + num_shared_experts
    return decoder(
        vocabulary_size=vocabulary_size,
        sequence_length=sequence_length,
        **sizes,
        make_block=ExpertBlock,
        num_key_value_heads=num_key_value_heads,
        intermediate_dim=expert_dim or -(-8 * sizes["hidden_dim"] // (96 * max(1, per_token))) * 32,
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        num_shared_experts=num_shared_experts,
        score=score,
        capacity_factor=capacity_factor,
        norm="rms",
        activation="swiglu",
        rotary_base=rotary_base,
        attention=attention,
        use_bias=False,
        dropout=dropout,
        epsilon=epsilon,
        tie_weights=tie_weights,
        name=name,
    )
