"""Translation with an encoder-decoder model.

translator = Translator(zoo.load(workdir), tokenizer)
translator(["A man walks his dog."])                      # a list of str

The translation of a sentence does not depend on the other sentences, up to rounding.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from zoo.data.text.special_tokens import END, FIRST_WORD, PADDING, START
from zoo.errors import UsageError
from zoo.generation.beam_search import beam_search
from zoo.generation.decoding import Seq2SeqDecoding
from zoo.generation.generate_options import MAX_TOKENS
from zoo.models.adapter import Adapter

# Sources are padded to a multiple of this length to limit the number of compilations.
BUCKET = 32
FORBIDDEN = -1e9  # added to the logits of forbidden tokens


class Translator:
    """Translator with a model and its tokenizer; calls share the compiled functions.

    Args:
      model: model of `zoo.models.seq2seq`, trained with the tokenizer.
      tokenizer: a `zoo.data.text.tokenizers.Tokenizer`.
      jit_compile: whether XLA compiles the search.

    Raises:
      UsageError: if the model has no encoder, or the tokenizer does not match the model.
    """

    def __init__(self, model, tokenizer, *, jit_compile: bool = False):
        parts = Adapter(model)
        if parts.family != "encoder_decoder":
            raise UsageError(
                f"Translation requires an encoder-decoder model. Received: {model.name!r}."
            )
        if tokenizer.vocabulary_size > model.output_shape[-1]:
            raise UsageError(
                f"The tokenizer does not match the model: it has {tokenizer.vocabulary_size} "
                f"tokens, but the model supports {model.output_shape[-1]}."
            )
        self.tokenizer, self.jit_compile = tokenizer, jit_compile
        self.decoding = Seq2SeqDecoding(parts)
        forbidden = np.zeros(self.decoding.vocabulary_size, np.float32)
        forbidden[:FIRST_WORD] = forbidden[tokenizer.vocabulary_size :] = FORBIDDEN
        forbidden[END] = 0
        self._forbidden = tf.constant(forbidden)
        self._starts = {}

    def __call__(
        self,
        sources: Sequence[str],
        *,
        beams: int = 4,
        length_penalty: float = 0.6,
        max_tokens: int = 0,
        batch_size: int = 64,
    ) -> list[str]:
        """Translates sentences.

        Args:
          sources: sentences, one per element.
          beams: number of beams (Vaswani et al. 2017, section 6.1); 1 is greedy decoding.
          length_penalty: exponent of the length penalty; see `zoo.generation.beam_search`.
          max_tokens: maximum length of a translation in tokens; 0 for twice the length of the
            source, padded to a multiple of `BUCKET`.
          batch_size: number of sentences per batch.

        Returns:
          The best translation of each sentence, in the order of `sources`.

        Raises:
          UsageError: if a value is out of range.
        """
        check(beams, max_tokens, batch_size)
        encoded_sources = [np.append(ids, END) for ids in self.tokenizer.encode_documents(sources)]
        widths = [-(-len(ids) // BUCKET) * BUCKET for ids in encoded_sources]
        order = sorted(range(len(encoded_sources)), key=lambda i: (widths[i], i))
        translations = [""] * len(encoded_sources)
        order = [i for i in order if len(encoded_sources[i]) > 1]  # empty sources stay ""
        for width, group in itertools.groupby(order, widths.__getitem__):
            group = list(group)
            # Each shape needs a trace. To have few shapes, batches that are not full repeat a row.
            rows = min(batch_size, 1 << (len(group) - 1).bit_length())
            for start in range(0, len(group), rows):
                batch = group[start : start + rows]
                source = np.full((rows, width), PADDING, np.int32)
                for row, i in enumerate(batch + batch[:1] * (rows - len(batch))):
                    source[row, : len(encoded_sources[i])] = encoded_sources[i]
                best = self._search(source, max_tokens or 2 * width, beams, length_penalty)
                for i, ids in zip(batch, best, strict=False):
                    end_positions = np.flatnonzero(ids == END)
                    ids = ids[: end_positions[0]] if end_positions.size else ids
                    translations[i] = self.tokenizer.decode(ids).strip()
        return translations

    def _search(self, source, max_tokens, beams, length_penalty):
        """Returns the best tokens (B, max_tokens) for sources (B, S)."""
        length = max(16, 1 << (max_tokens - 1).bit_length())
        key = (*source.shape, length)
        if key not in self._starts:
            self._starts[key] = tf.function(
                lambda source: self.decoding.start(source.shape[0], length, source=source),
                autograph=False,
            )
        cache = self._starts[key](tf.constant(source))
        tokens, _ = beam_search(
            self.decoding, cache, [START] * len(source), max_tokens, beams, END, length_penalty,
            forbidden=self._forbidden, jit_compile=self.jit_compile,
        )  # fmt: skip
        return tokens[:, 0].numpy()


def check(beams: int, max_tokens: int, batch_size: int) -> None:
    """Raises `UsageError` if a value is out of range."""
    for name, value, minimum in (
        ("beams", beams, 1),
        ("max_tokens", max_tokens, 0),
        ("batch_size", batch_size, 1),
    ):
        if value < minimum:
            raise UsageError(f"{name} must be at least {minimum}. Received: {value}.")
    if max_tokens > MAX_TOKENS:
        raise UsageError(f"max_tokens must be at most {MAX_TOKENS:,}. Received: {max_tokens}.")
