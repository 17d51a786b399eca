"""kNN language model (Khandelwal et al. 2020, arXiv:1911.00172).

    p(token) = (1 - share) p_model(token) + share p_neighbors(token)

The neighbors of a position are the k entries with the nearest states. Their next tokens have the
probabilities softmax(-distance / temperature). Nothing is trained: share and temperature are those
with the lowest loss on the validation split.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from zoo.errors import RunError
from zoo.progress import progress
from zoo.retrieval.documents import Documents
from zoo.retrieval.encoders import Decoder
from zoo.retrieval.index import PROBES, Index
from zoo.retrieval.leaks import own_documents
from zoo.retrieval.rows import Rows

NEIGHBORS = 64
SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8)
# Temperatures as multiples of the mean distance of the first neighbors of the validation split.
TEMPERATURES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
# Contexts in a report, and their numbers of tokens.
SAMPLES, SHOWN = 12, 32
_BLOCK_ROWS = 64  # rows whose states are in memory at a time


@dataclasses.dataclass
class Sums:
    """Sums over the targets of a split.

    Attributes:
      targets: number of targets.
      bytes: number of UTF-8 bytes of the targets.
      model: negative log-likelihood of the model alone, in nats.
      mixed: (temperatures, shares) negative log-likelihood of the interpolation.
    """

    targets: int
    bytes: float
    model: float
    mixed: np.ndarray

    def bits_per_byte(self, nats: float) -> float:
        return nats / math.log(2) / self.bytes


def neighbor_probabilities(distances: np.ndarray, temperature: float) -> np.ndarray:
    """Returns softmax(-distances / temperature) along the last axis, 0 where a distance is inf."""
    logits = -distances / temperature
    largest = logits.max(-1, keepdims=True, initial=-1e30)
    weights = np.exp(logits - np.where(largest <= -1e30, 0.0, largest))
    return weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30)


class KnnLanguageModel:
    """A decoder and an index of its states.

    Args:
      decoder: the decoder.
      index: index of the method "states", checked to be of this decoder.
      neighbors: k.
      probes: see `Index.search`.

    Raises:
      UsageError: if the index has fewer than k entries.
    """

    def __init__(self, decoder: Decoder, index: Index, neighbors=NEIGHBORS, probes=PROBES):
        index.check_neighbors(neighbors, probes)
        self.decoder, self.index = decoder, index
        self.neighbors, self.probes = neighbors, probes

    def tune(self, documents: Documents, max_tokens: int = 0) -> tuple[float, float]:
        """Returns the share and the temperature with the lowest loss on documents."""
        blocks = self._blocks(documents, max_tokens, "tuning")
        first = next(blocks)
        finite = first[2][np.isfinite(first[2])]
        scale = float(finite.mean()) if finite.size else 1.0
        temperatures = [max(scale * factor, 1e-6) for factor in TEMPERATURES]
        sums = self._sums([first], temperatures, SHARES)
        sums.mixed = sums.mixed + self._sums(blocks, temperatures, SHARES).mixed
        row, column = np.unravel_index(int(sums.mixed.argmin()), sums.mixed.shape)
        return SHARES[column], temperatures[row]

    def evaluate(
        self, documents: Documents, share: float, temperature: float, max_tokens: int = 0
    ) -> dict[str, float]:
        """Returns the metrics of documents, with those of the model alone beside them."""
        blocks = self._blocks(documents, max_tokens, "evaluating")
        sums = self._sums(blocks, [temperature], [share])
        if not sums.targets:
            raise RunError("The split has no target. Choose another split.")
        mixed = float(sums.mixed[0, 0])
        return {
            "loss": mixed / sums.targets,
            "bits_per_byte": sums.bits_per_byte(mixed),
            "loss_without_index": sums.model / sums.targets,
            "bits_per_byte_without_index": sums.bits_per_byte(sums.model),
            "share": share,
            "temperature": temperature,
            "neighbors": self.neighbors,
            "probes": self.probes,
            "tokens": sums.targets,
        }

    def samples(self, documents: Documents, temperature: float) -> list[dict[str, str]]:
        """Returns contexts of the first rows of documents, each with its most similar passage.

        Each has "source" (the context), "reference" (the token after it), "passage" (of the index,
        ends with the token of the neighbor) and "share", the neighbors' probability of the
        reference.
        """
        settings, tokenizer = self.index.manifest["settings"], self.index.tokenizer
        tokens, numbers, positions = Rows(documents, **settings).take(0, _BLOCK_ROWS)
        batch = self.decoder.targets(tokens)
        chosen = np.linspace(0, len(batch["targets"]) - 1, SAMPLES).astype(int)
        row, column = batch["places"][np.unique(chosen)].T
        own = own_documents(documents, self.index.documents, tokenizer)
        states, targets = (batch[name][np.unique(chosen)] for name in ("states", "targets"))
        distances, entries = self._search(states, numbers[row, column], own)
        weights = neighbor_probabilities(distances, temperature)
        shares = (weights * (self.index.values[entries] == targets[:, None])).sum(-1)
        samples = []
        for i in np.flatnonzero(entries[:, 0] >= 0).tolist():
            position = int(positions[row[i], column[i]])
            context = documents.piece(int(numbers[row[i], column[i]]), position - SHOWN, position)
            document, last = (int(x) for x in self.index.places(entries[i, 0]))
            samples.append(
                {
                    "source": tokenizer.decode(context),
                    "reference": tokenizer.decode(targets[i : i + 1], skip_special=False),
                    "passage": self.index.passage(document, last - SHOWN, last + 1)["text"],
                    "share": f"{shares[i]:.0%}",
                }
            )
        return samples

    def _sums(self, blocks, temperatures, shares) -> Sums:
        total = Sums(0, 0.0, 0.0, np.zeros((len(temperatures), len(shares))))
        for model_log, sizes, distances, is_target in blocks:
            total.targets += len(model_log)
            total.bytes += float(sizes.sum(dtype=np.float64))
            total.model -= float(model_log.sum(dtype=np.float64))
            model_p = np.exp(model_log.astype(np.float64))
            # Without a neighbor, the model's probabilities remain as they are.
            has_neighbors = np.isfinite(distances).any(-1)
            for row, temperature in enumerate(temperatures):
                weights = neighbor_probabilities(distances, temperature)
                found = (weights * is_target).sum(-1, dtype=np.float64)
                for column, share in enumerate(shares):
                    part = share * has_neighbors
                    mixed = (1 - part) * model_p + part * found
                    total.mixed[row, column] -= np.log(np.maximum(mixed, 1e-300)).sum()
        return total

    def _blocks(self, documents: Documents, max_tokens: int, title: str) -> Iterator[tuple]:
        """Yields the log-probability, bytes, distances and hits of the neighbors of targets."""
        settings = self.index.manifest["settings"]
        rows = Rows(documents, **settings)
        own = own_documents(documents, self.index.documents, self.index.tokenizer)
        starts, total = range(0, len(rows), _BLOCK_ROWS), 0
        for start in progress(starts, title=title, unit="blocks"):
            tokens, numbers, _ = rows.take(start, start + _BLOCK_ROWS)
            batch = self.decoder.targets(tokens)
            states, targets = batch["states"], batch["targets"]
            if not len(targets):
                continue
            distances, entries = self._search(states, numbers[tuple(batch["places"].T)], own)
            is_target = (self.index.values[entries] == targets[:, None]) & (entries >= 0)
            yield self._log_probabilities(states, targets), batch["bytes"], distances, is_target
            total += len(targets)
            if max_tokens and total >= max_tokens:
                return

    def _search(self, states: np.ndarray, documents: np.ndarray, own: list[np.ndarray]):
        """Searches the neighbors of states, without the own documents of each state's document."""
        distances = np.empty((len(states), self.neighbors), np.float32)
        entries = np.empty((len(states), self.neighbors), np.int64)
        groups: dict[tuple, list] = {}
        for document in np.unique(documents).tolist():
            groups.setdefault(tuple(own[document].tolist()), []).append(document)
        for excluded, members in groups.items():
            is_member = np.isin(documents, members)
            distances[is_member], entries[is_member] = self.index.search(
                states[is_member], self.neighbors, excluded=excluded, probes=self.probes
            )
        return distances, entries

    def _log_probabilities(self, states: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Returns the model's log-probability (M,) of each target."""
        pieces = []
        for first in range(0, len(states), 1024):
            rows = states[first : first + 1024]
            padded = np.pad(rows, ((0, 1024 - len(rows)), (0, 0)))  # each shape needs a trace
            logits = self.decoder.logits(padded).numpy()[: len(rows)]
            largest = logits.max(-1, keepdims=True)
            total = np.log(np.exp(logits - largest).sum(-1)) + largest[:, 0]
            pieces.append(logits[np.arange(len(rows)), targets[first : first + 1024]] - total)
        return np.concatenate(pieces)
