"""Llama (Touvron et al. 2023, arXiv:2302.13971; Grattafiori et al. 2024, arXiv:2407.21783).

Rotary positions, RMS normalization, SwiGLU, grouped-query attention, no biases. Mistral (Jiang et
al. 2023, arXiv:2310.06825), Qwen2 and Qwen3 (Yang et al. 2024, arXiv:2407.10671; 2025,
arXiv:2505.09388) are Llamas with windows, biases or normalized queries and keys. Gemma 3 (Gemma
Team 2025, arXiv:2503.19786) also has scaled embeddings, GEGLU, more normalization and two rotary
bases.
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
    head_dim: int = 0,
    rotary_scaling: str = "",
    query_key_value_bias: bool = False,
    query_key_norm: bool = False,
    query_scale: float = 1.0,
    activation: str = "swiglu",
    post_norm: bool = False,
    scale_embeddings: bool = False,
    local_rotary_base: float = 0.0,
    name: str = "llama",
) -> keras.Model:
    """Builds a Llama.

    Args:
      num_key_value_heads: number of key and value heads; 0 for num_heads.
      intermediate_dim: width inside the feed-forward layers; 0 for 8/3 * hidden_dim, rounded up
        to a multiple of 32.
      epsilon: epsilon of the normalization layers.
      head_dim: size of a head; 0 for hidden_dim / num_heads.
      rotary_scaling: scaling of the rotary frequencies for longer contexts, such as "linear:4" or
        "llama3:8:1:4:8192", see `zoo.layers.positions.rotate`; "" for none.
      query_key_value_bias: whether the projections to queries, keys and values have biases (Qwen2).
      query_key_norm: whether queries and keys are RMS-normalized per head (Qwen3, Gemma 3).
      query_scale: factor of the queries besides 1 / sqrt(head_dim) (Gemma 3).
      activation: activation of the feed-forward layers, "swiglu" or "geglu_tanh" (Gemma 3).
      post_norm: whether the output of each part of a block is normalized, too (Gemma 3).
      scale_embeddings: whether embeddings of tokens are multiplied by sqrt(hidden_dim) (Gemma 3).
      local_rotary_base: rotary base of layers with a window, which have no scaling then (Gemma 3);
        0 for that of all layers.

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
        activation=activation,
        rotary_base=rotary_base,
        attention=attention,
        use_bias=False,
        dropout=dropout,
        epsilon=epsilon,
        head_dim=head_dim,
        rotary_scaling=rotary_scaling,
        query_key_value_bias=query_key_value_bias,
        query_key_norm=query_key_norm,
        query_scale=query_scale,
        post_norm=post_norm,
        scale_embeddings=scale_embeddings,
        local_rotary_base=local_rotary_base,
        tie_weights=tie_weights,
        name=name,
    )
