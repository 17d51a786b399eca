"""What the steps hand on: a document, and the counts of what became of the others."""

import json
from collections import Counter
from dataclasses import dataclass, field

# What a data card shows of each reason.
SAMPLES = 3
SAMPLE_CHARACTERS = 300
_RECORD_BITS, _STRIPE_BITS = 32, 6
MAX_STRIPES = 1 << _STRIPE_BITS


def key_of(first_shard: int, record: int, stripes: int) -> int:
    """Returns the key of a document: keys are in the order of the input, however it is cut.

    Args:
      first_shard: of those that share the document's file.
      record: place in that file, or in the files of that shard.
      stripes: number of shards that share the file, at most MAX_STRIPES.
    """
    return (first_shard << _RECORD_BITS | record) << _STRIPE_BITS | (stripes - 1)


def shard_of(key):
    """Returns the shard that a document is in. Takes an int or an array of keys."""
    stripes = (key & (MAX_STRIPES - 1)) + 1
    return (key >> (_RECORD_BITS + _STRIPE_BITS)) + record_of(key) % stripes


def record_of(key):
    """Returns the place of a document in its file. Takes an int or an array of keys."""
    return (key >> _STRIPE_BITS) & ((1 << _RECORD_BITS) - 1)


def keys_from(shard: int) -> tuple[int, int]:
    """Returns the range of keys in which all those of a shard lie, and others too."""
    bits = _RECORD_BITS + _STRIPE_BITS
    return max(0, shard - MAX_STRIPES + 1) << bits, (shard + 1) << bits


@dataclass
class Document:
    """A page or a text on its way.

    Attributes:
      text: what it says; "" while it is a page that has not been extracted.
      html: the page, as bytes or str; None where the input was text.
      key: of `key_of`, unique.
      source: file that it comes from.
      url, title, date, language, licence: as far as they are known, else "".
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
        """One line; the page is left out."""
        fields = {k: v for k, v in vars(self).items() if k != "html" and v != ""}
        return json.dumps(fields, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> "Document":
        """The reverse of `to_json`."""
        return cls(**json.loads(line))


@dataclass
class Tally:
    """Documents and UTF-8 bytes that reached each step, and those that a step dropped.

    The order in which shards are added changes nothing but the samples, so they are added in the
    order of their numbers.

    Attributes:
      reached: step -> documents; `bytes` the same in bytes of text (of the page, before it is
        extracted).
      dropped: "step: reason" -> documents.
      unreadable: what the readers skipped -> how often.
      samples: "step: reason", or "kept" -> the first few texts.
      languages, lengths: of kept documents; lengths by powers of two of their characters.
      licences, sites: of kept documents.
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
        """Counts a document of `size` bytes that comes to `step`."""
        self.reached[step] += 1
        self.bytes[step] += size

    def drop(self, step: str, reason: str, document: Document) -> None:
        """Counts a document that `step` does not let pass."""
        name = f"{step}: {reason}"
        self.dropped[name] += 1
        self._sample(name, document)

    def keep(self, document: Document) -> None:
        """Counts a document that passed every step."""
        from urllib.parse import urlsplit

        self.languages[document.language or "?"] += 1
        self.lengths[str(max(0, len(document.text) - 1).bit_length())] += 1
        self.licences[document.licence or "not stated"] += 1
        try:
            site = urlsplit(document.url).hostname if document.url else None
        except ValueError:
            site = None
        self.sites[site or "(no address)"] += 1
        self._sample("kept", document)

    def _sample(self, name: str, document: Document) -> None:
        known = self.samples.setdefault(name, [])
        if len(known) < SAMPLES:
            text = document.text
            if not text and document.html is not None:
                text = str(document.html[: 4 * SAMPLE_CHARACTERS])
            short = " ".join(text[: 4 * SAMPLE_CHARACTERS].split())[:SAMPLE_CHARACTERS]
            known.append({"url": (document.url or document.source)[:300], "text": short})

    def add(self, other: "Tally") -> None:
        """Adds the counts of another shard."""
        for name, value in vars(self).items():
            if isinstance(value, Counter):
                value.update(getattr(other, name))
        for name, samples in other.samples.items():
            known = self.samples.setdefault(name, [])
            known += samples[: SAMPLES - len(known)]
        # A crawl has more sites than a card or a memory has room for.
        if len(self.sites) > 2000:
            best = sorted(self.sites.items(), key=lambda item: (-item[1], item[0]))[:1000]
            self.sites = Counter(dict(best))

    def to_json(self) -> dict:
        """A value that JSON holds; the keys sorted, so that equal tallies are equal files."""
        return {
            name: {key: value[key] for key in sorted(value)} for name, value in vars(self).items()
        }

    @classmethod
    def from_json(cls, value: dict) -> "Tally":
        """The reverse of `to_json`."""
        made = cls()
        for name, found in value.items():
            getattr(made, name).update(found)
        return made
