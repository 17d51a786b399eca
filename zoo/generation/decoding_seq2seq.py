"""Decoding of `zoo.models.seq2seq`, by the protocol of `zoo.generation.decoding`.

steps = Seq2SeqDecoding(model)
cache = steps.start(batch=2, length=64, source=source)    # (2, S): runs the encoder
logits, cache = steps.step(starts, cache, 0)              # (2, 1) tokens: <start>
"""

import keras
from keras import ops

from zoo.generation.decoding import project
from zoo.layers.attention import MASKED, mask_bias


class Seq2SeqDecoding:
    """Decoding of one sentence a row; see `zoo.generation.decoding.TransformerDecoding`.

    Attributes:
      sequence_length: None: any number of positions will do.
      vocabulary_size: number of tokens.
      overwrites: whether `step` may be run again on the same positions.
    """

    overwrites = True
    sequence_length = None

    def __init__(self, model: keras.Model):
        layers = {layer.name: layer for layer in model.layers}
        self.embedding, self.positions = layers["embedding"], layers["positions"]
        self.source_segments, self.final_norm = layers["source_segments"], layers["final_norm"]
        self.blocks = [
            layers[f"decoder_{i}"] for i in range(len(layers)) if f"decoder_{i}" in layers
        ]
        source = next(tensor for tensor in model.inputs if tensor.name == "source")
        self.encoder = keras.Model(source, layers["encoder_norm"].output)
        self.vocabulary_size = model.output_shape[-1]

    def start(self, batch: int, length: int, source=None):
        """Runs the encoder, once.

        Args:
          batch: B.
          length: the largest number of target positions.
          source: (B, S) int32, 0 for padding; of several sentences in a row the first counts.

        Returns:
          A cache without target positions.
        """
        memory = self.encoder(source, training=False)
        first = ops.ones((batch, 1), "int32")
        return {
            "blocks": [block.start_cache(batch, length, memory) for block in self.blocks],
            "memory_bias": mask_bias(first, self.source_segments(source)),
        }

    def step(self, tokens, cache, first):
        """Computes target positions `first` and on; see `TransformerDecoding.step`."""
        x = self.positions(self.embedding(tokens), first=first)
        places = first + ops.arange(ops.shape(tokens)[1], dtype="int32")
        sources = ops.arange(cache["blocks"][0]["key"].shape[1], dtype="int32")
        bias = ops.where(sources[None, :] <= places[:, None], 0.0, MASKED)[None, None]
        kept = []
        for block, before in zip(self.blocks, cache["blocks"], strict=True):
            x, after = block.decode(x, before, first, bias, cache["memory_bias"])
            kept.append(after)
        logits = project(self.embedding, self.final_norm(x))
        return logits, {"blocks": kept, "memory_bias": cache["memory_bias"]}
