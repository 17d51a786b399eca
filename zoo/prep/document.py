"""Documents, as the steps pass them on, and counts of the documents that each step dropped."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

SAMPLES = 3  # texts that a data card shows per reason
SAMPLE_CHARACTERS = 300
_RECORD_BITS, _STRIPE_BITS = 32, 6
MAX_STRIPES = 1 << _STRIPE_BITS


def key_of(first_shard: int, record: int, stripes: int) -> int:
    """Returns the key of a document. Keys sort in input order for every number of shards.

    Args:
      first_shard: number of the first shard that reads the document's file.
      record: index of the document in that file, or in all files of that shard.
      stripes: number of shards that share the file, at most MAX_STRIPES.
    """
    return (first_shard << _RECORD_BITS | record) << _STRIPE_BITS | (stripes - 1)


def shard_of(key):
    """Returns the shard of a document. Takes an int or an array of keys."""
    stripes = (key & (MAX_STRIPES - 1)) + 1
    return (key >> (_RECORD_BITS + _STRIPE_BITS)) + record_of(key) % stripes


def record_of(key):
    """Returns the index of a document in its file. Takes an int or an array of keys."""
    return (key >> _STRIPE_BITS) & ((1 << _RECORD_BITS) - 1)


def key_range(shard: int) -> tuple[int, int]:
    """Returns (low, high) that bound all keys of a shard; other shards' keys lie between too."""
    bits = _RECORD_BITS + _STRIPE_BITS
    return max(0, shard - MAX_STRIPES + 1) << bits, (shard + 1) << bits


def largest(counts: Mapping[str, int], limit: int | None = None) -> dict[str, int]:
    """Returns the `limit` largest counts in descending order; equal counts by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:limit])


@dataclass
class Document:
    """A text, or a page before its text is extracted.

    Attributes:
      text: plain text; "" before extraction.
      html: HTML of the page, bytes or str; None if the input was plain text.
      key: unique integer from `key_of`.
      source: path of the input file.
      url, title, date, language, licence: metadata; "" if unknown.
    """

    text: str = ""
    html: bytes | str | None = None
    key: int = 0
    source: str = ""
    url: str = ""
    title: str = ""
    date: str = ""
    language: str = ""
    licence: str = ""

    def to_json(self) -> str:
        """Returns the document without its HTML as one line of JSON."""
        fields = {k: v for k, v in vars(self).items() if k != "html" and v != ""}
        return json.dumps(fields, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> "Document":
        """Returns the document of a line from `to_json`."""
        return cls(**json.loads(line))


@dataclass
class Tally:
    """Counts the documents and UTF-8 bytes that reached each step, and the dropped documents.

    Tallies are added in shard order, because the samples depend on the order.

    Attributes:
      reached: documents per step.
      bytes: bytes of text per step; bytes of HTML before extraction.
      dropped: documents per "step: reason".
      unreadable: number of skipped records or files per reason.
      samples: the first texts per "step: reason", and for "kept".
      languages: kept documents per language code.
      lengths: kept documents per length class; class n holds up to 2**n characters.
      licences: kept documents per license.
      sites: kept documents per host name.
    """

    reached: Counter = field(default_factory=Counter)
    bytes: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)
    unreadable: Counter = field(default_factory=Counter)
    samples: dict = field(default_factory=dict)
    languages: Counter = field(default_factory=Counter)
    lengths: Counter = field(default_factory=Counter)
    licences: Counter = field(default_factory=Counter)
    sites: Counter = field(default_factory=Counter)

    def reach(self, step: str, size: int) -> None:
        """Counts a document of `size` bytes that reaches `step`."""
        self.reached[step] += 1
        self.bytes[step] += size

    def drop(self, step: str, reason: str, document: Document) -> None:
        """Counts a document that `step` drops, and keeps its text as a sample."""
        name = f"{step}: {reason}"
        self.dropped[name] += 1
        self._sample(name, document)

    def keep(self, document: Document) -> None:
        """Counts a document that passed every step."""
        self.languages[document.language or "?"] += 1
        self.lengths[str(max(0, len(document.text) - 1).bit_length())] += 1
        self.licences[document.licence or "not stated"] += 1
        try:
            site = urlsplit(document.url).hostname
        except ValueError:
            site = None
        self.sites[site or "(no address)"] += 1
        self._sample("kept", document)

    def _sample(self, name: str, document: Document) -> None:
        samples = self.samples.setdefault(name, [])
        if len(samples) < SAMPLES:
            text = document.text
            if not text and document.html is not None:
                text = str(document.html[: 4 * SAMPLE_CHARACTERS])
            short = " ".join(text[: 4 * SAMPLE_CHARACTERS].split())[:SAMPLE_CHARACTERS]
            samples.append({"url": (document.url or document.source)[:300], "text": short})

    def add(self, other: "Tally") -> None:
        """Adds the counts of another shard."""
        for name, value in vars(self).items():
            if isinstance(value, Counter):
                value.update(getattr(other, name))
        for name, samples in other.samples.items():
            own_samples = self.samples.setdefault(name, [])
            own_samples += samples[: SAMPLES - len(own_samples)]
        if len(self.sites) > 2000:  # a large crawl has more sites than fit into memory
            self.sites = Counter(largest(self.sites, 1000))

    def to_json(self) -> dict:
        """Returns the counts as JSON values, keys sorted so that equal tallies give equal files."""
        return {
            name: {key: value[key] for key in sorted(value)} for name, value in vars(self).items()
        }

    @classmethod
    def from_json(cls, value: dict) -> "Tally":
        """Returns the tally of a value from `to_json`."""
        tally = cls()
        for name, counts in value.items():
            getattr(tally, name).update(counts)
        return tally
