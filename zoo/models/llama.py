"""Llama (Touvron et al. 2023, arXiv:2302.13971; Grattafiori et al. 2024, arXiv:2407.21783).

Rotary positions, RMS normalization, SwiGLU, grouped-query attention, no biases.
"""

import keras

from zoo.models.gpt import decoder, derive_sizes


def build(
    vocabulary_size: int = 32_000,
    sequence_length: int = 2048,
    num_layers: int = 0,
    hidden_dim: int = 0,
    num_heads: int = 0,
    num_key_value_heads: int = 0,
    intermediate_dim: int = 0,
    depth: int = 0,
    dropout: float = 0.0,
    rotary_base: float = 10_000.0,
    attention: str = "plain",
    tie_weights: bool = True,
    epsilon: float = 1e-5,
    name: str = "llama",
) -> keras.Model:
    """Builds a Llama.

    Args:
      num_key_value_heads: number of key and value heads; 0 for num_heads.
      intermediate_dim: width inside the feed-forward layers; 0 for 8/3 * hidden_dim, rounded up
        to a multiple of 32.
      epsilon: epsilon of the normalization layers.

    All other arguments and the model's inputs and outputs are those of `zoo.models.gpt.build`.
    """
    sizes = derive_sizes(depth, num_layers, hidden_dim, num_heads)
    return decoder(
        vocabulary_size=vocabulary_size,
        sequence_length=sequence_length,
        **sizes,
        num_key_value_heads=num_key_value_heads,
        intermediate_dim=intermediate_dim or -(-8 * sizes["hidden_dim"] // 96) * 32,
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
