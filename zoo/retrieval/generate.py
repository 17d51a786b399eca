"""Text generation by a kNN language model, for `zoo generate --index`.

Each token is searched for, so the forward pass runs without a cache, up to the current position.
"""

import dataclasses
from collections import defaultdict

import numpy as np
import tensorflow as tf

from zoo.data.text.special_tokens import START
from zoo.generation.generate import Generator
from zoo.retrieval.knn_lm import KnnLanguageModel, neighbor_probabilities

# Passages shown per text, and their numbers of tokens before and after the token that was used.
PASSAGES, BEFORE, AFTER = 3, 48, 16


class NeighborGenerator(Generator):
    """Continues prompts with the probabilities of a `KnnLanguageModel`.

    Args:
      language_model: the decoder and the index.
      share: share of the neighbors' probabilities.
      temperature: temperature of the neighbors.
      *arguments: arguments of `Generator`, as are the keyword arguments.
    """

    def __init__(self, language_model: KnnLanguageModel, share, temperature, *arguments, **options):
        super().__init__(*arguments, **options)
        self.language_model, self.share, self.neighbor_temperature = (
            language_model,
            share,
            temperature,
        )
        self._logits = self._mixed_logits
        self._state = tf.function(self._state_at, autograph=False)
        self._text = None
        self._used: list[dict[int, dict]] = []

    def _check_options(self, options):
        return dataclasses.replace(super()._check_options(options), use_cache=False)

    def _start_run(self, prompts, options):
        options = dataclasses.replace(options, use_cache=False)
        self._text = super()._start_run(prompts, options)
        self._text.position = int(min(self._text.lengths)) - 1  # prompts need no search
        self._used = [defaultdict(dict) for _ in prompts]
        return self._text

    def _state_at(self, tokens, position):
        # A document begins at each <start>, as in training.
        segments = 1 + tf.cumsum(tf.cast(tokens == START, tf.int32), axis=1)
        states = self.language_model.decoder.states({"tokens": tokens, "segments": segments})
        return tf.gather(states, position, axis=1)

    def _mixed_logits(self, tokens, position):
        """Returns logarithms of the interpolated probabilities (B, V) after a position."""
        model, state = self.language_model, self._state(tokens, position)
        probabilities = tf.nn.softmax(model.decoder.logits(state)).numpy()
        run, next_position = self._text, int(position) + 1
        for row in np.flatnonzero((next_position >= run.lengths) & ~run.done.numpy()).tolist():
            distances, entries = model.index.search(
                state.numpy()[row : row + 1], model.neighbors, probes=model.probes
            )
            entries = entries[0][np.isfinite(distances[0])]
            if not len(entries) or not self.share:
                continue
            weights = neighbor_probabilities(
                distances[0][: len(entries)], self.neighbor_temperature
            )
            probabilities[row] *= 1 - self.share
            np.add.at(probabilities[row], model.index.values[entries], self.share * weights)
            self._count(row, entries, weights)
        return tf.constant(np.log(np.maximum(probabilities, 1e-30)))

    def _count(self, row: int, entries: np.ndarray, weights: np.ndarray) -> None:
        """Adds the weights of entries to those of their documents."""
        documents, positions = self.language_model.index.places(entries)
        for document, position, weight in zip(documents, positions, weights, strict=True):
            use = self._used[row][int(document)]
            use["weight"] = use.get("weight", 0.0) + float(weight)
            if weight > use.get("best", 0.0):
                use["best"], use["position"] = float(weight), int(position)

    def passages(self) -> list[list[dict]]:
        """Returns for each prompt of the last call the passages with the largest shares.

        Each is a result of `Index.passage` with its "share" of all neighbors' probabilities.
        """
        shown = []
        for used in self._used:
            total = sum(use["weight"] for use in used.values()) or 1.0
            best = sorted(used.items(), key=lambda item: (-item[1]["weight"], item[0]))[:PASSAGES]
            shown.append(
                [
                    {
                        "share": round(use["weight"] / total, 4),
                        **self.language_model.index.passage(
                            document, use["position"] - BEFORE, use["position"] + AFTER
                        ),
                    }
                    for document, use in best
                    if "position" in use
                ]
            )
        return shown
