"""Decoder language models: GPT-2 (Radford et al. 2019); llama.py builds Llama from the same parts.

`decoder` builds both: embedding, positions, blocks, norm, and a projection onto the vocabulary.
The converters of published checkpoints depend on the layer names `embedding`, `positions`,
`block_0` ..., `final_norm`.
"""

import keras
from keras import layers, ops

from zoo.layers.attention import attention_masks, layer_forms
from zoo.layers.dropout import Dropout
from zoo.layers.experts.block import ExpertBlock
from zoo.layers.positions import LearnedPositions
from zoo.layers.transformer import TransformerBlock, normalization


@keras.saving.register_keras_serializable("zoo")
class ScaledEmbedding(layers.ReversibleEmbedding):
    """Embedding whose vectors are multiplied by sqrt(C); the reverse is not (Gemma).

    The embedding stays small, as a projection onto the vocabulary needs, and its output has the
    size of a normalized vector (Vaswani et al. 2017, arXiv:1706.03762, section 3.4).
    """

    def call(self, inputs, reverse=False):
        """Embeds tokens (B, T), or projects vectors (B, T, C) onto the vocabulary."""
        x = super().call(inputs, reverse=reverse)
        return x if reverse else x * ops.cast(self.output_dim**0.5, x.dtype)


def build(
    vocabulary_size: int = 50_257,
    sequence_length: int = 1024,
    num_layers: int = 0,
    hidden_dim: int = 0,
    num_heads: int = 0,
    intermediate_dim: int = 0,
    depth: int = 0,
    dropout: float = 0.1,
    rotary_base: float = 0.0,
    attention: str = "plain",
    tie_weights: bool = True,
    name: str = "gpt",
) -> keras.Model:
    """Builds a GPT-2.

    Args:
      vocabulary_size: number of tokens.
      sequence_length: largest number of positions. A model with rotary positions takes longer
        inputs, but `zoo train` and `zoo generate` enforce the limit.
      num_layers: number of blocks; 0 for `depth`.
      hidden_dim: width; 0 for 64 * depth.
      num_heads: number of attention heads; 0 for hidden_dim // 64, at least 1.
      intermediate_dim: width inside the feed-forward layers; 0 for 4 * hidden_dim.
      depth: number from which all sizes that are 0 are derived.
      dropout: dropout rate of embeddings, attention and residuals.
      rotary_base: base of rotary positions; 0 for learned positions.
      attention: form of attention, such as "chunked" or "window:256", see `zoo.layers.attention`; a
        list separated by commas is repeated over the blocks.
      tie_weights: whether embedding and projection share weights.
      name: name of the Keras model.

    Returns:
      A Functional model from {"tokens", "segments"}, both (B, T) int32, to logits
      (B, T, vocabulary_size) float32. A position attends to itself and to earlier positions of
      its segment.
    """
    sizes = derive_sizes(depth, num_layers, hidden_dim, num_heads)
    return decoder(
        vocabulary_size=vocabulary_size,
        sequence_length=sequence_length,
        **sizes,
        intermediate_dim=intermediate_dim or 4 * sizes["hidden_dim"],
        norm="layer",
        epsilon=1e-5,
        activation="gelu_tanh",
        rotary_base=rotary_base,
        attention=attention,
        dropout=dropout,
        tie_weights=tie_weights,
        name=name,
    )


def derive_sizes(depth: int, num_layers: int, hidden_dim: int, num_heads: int) -> dict:
    """Derives the sizes that are 0: `depth` layers, width 64 * depth, one head per 64 of width.

    Raises:
      ValueError: if a size is 0 and `depth` is 0 as well.
    """
    num_layers, hidden_dim = num_layers or depth, hidden_dim or 64 * depth
    num_heads = num_heads or max(1, hidden_dim // 64)
    if num_layers < 1 or hidden_dim < 1:
        raise ValueError(
            "Either depth or both num_layers and hidden_dim must be positive. Received: "
            f"depth={depth}, num_layers={num_layers}, hidden_dim={hidden_dim}."
        )
    return {"num_layers": num_layers, "hidden_dim": hidden_dim, "num_heads": num_heads}


def decoder(
    *,
    vocabulary_size: int,
    sequence_length: int,
    num_layers: int,
    attention: str,
    tie_weights: bool,
    name: str,
    make_block: type[TransformerBlock] = TransformerBlock,
    scale_embeddings: bool = False,
    local_rotary_base: float = 0.0,
    **block,
) -> keras.Model:
    """Builds a GPT-2, a Llama or a mixture of experts.

    `block` holds arguments of `make_block`, which is `TransformerBlock` or `ExpertBlock`; the
    latter also takes the segments and returns its output first.

    Blocks with a window of attention have unscaled rotary positions of `local_rotary_base`; 0 for
    those of all blocks. `scale_embeddings` is whether the embeddings of tokens are multiplied by
    sqrt(hidden_dim) before the first block.

    Kernels are initialized from a normal distribution with standard deviation 0.02, or
    0.02 / sqrt(2 * num_layers) for output projections (Radford et al. 2019, section 2.3).
    """
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    segments = keras.Input((None,), dtype="int32", name="segments")
    embedding = (ScaledEmbedding if scale_embeddings else layers.ReversibleEmbedding)(
        vocabulary_size,
        block["hidden_dim"],
        tie_weights=tie_weights,
        reverse_dtype=keras.config.dtype_policy().compute_dtype,  # see docs/keras3.md
        embeddings_initializer=keras.initializers.RandomNormal(stddev=0.02),
        name="embedding",
    )
    x = embedding(tokens)
    if not block["rotary_base"]:
        x = LearnedPositions(sequence_length, name="positions")(x)
    if block["dropout"]:
        x = Dropout(block["dropout"], name="dropout")(x)
    forms = layer_forms(attention, num_layers)
    masks = attention_masks(forms, segments, causal=True, layer_name="mask")
    for i, (form, mask) in enumerate(zip(forms, masks, strict=True)):
        output_range = 0.02 * (2 * num_layers) ** -0.5
        local = {}
        if local_rotary_base and form.startswith("window:"):
            local = {"rotary_base": local_rotary_base, "rotary_scaling": ""}
        block_layer = make_block(
            **{**block, **local},
            attention=form,
            causal=True,
            output_range=output_range,
            name=f"block_{i}",
        )
        if isinstance(block_layer, ExpertBlock):
            x, _ = block_layer(x, mask, segments)
        else:
            x = block_layer(x, mask)
    x = normalization(block["norm"], block["epsilon"], "final_norm")(x)
    logits = embedding(x, reverse=True)
    logits = layers.Activation("linear", dtype="float32", name="logits")(logits)
    return keras.Model({"tokens": tokens, "segments": segments}, logits, name=name)
