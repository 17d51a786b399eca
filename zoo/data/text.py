"""From a recipe's `data` section to tokenised records, made once and kept in the cache."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from zoo.data import packing, tokenizers
from zoo.data.corpora import load_corpus
from zoo.data.datasets import Dataset, cache_dir
from zoo.data.disk import read_json, read_object, write_json
from zoo.data.records import RecordWriter, open_records
from zoo.data.windows import Windows
from zoo.errors import RunError, UsageError

FORMAT = 2
PACKINGS = ("stream", "best_fit")
PREPARED = "prepared:"


def language_modeling(data: Mapping, task: Mapping) -> Dataset:
    """Returns tokens in order, for `zoo.tasks.clm`.

    Stored examples: "tokens" (sequence_length + 1,), and for best-fit packing "segments" of the
    same shape: the document of each token, 0 for padding. A document is <start> text <end>.

    Args:
      data: the recipe's section: source, manual_dir, tokenizer, vocabulary_size, normalization,
        sequence_length, packing.
      task: unused.
    """
    if data["source"].startswith(PREPARED):
        return from_prepared(data)
    check(data, PACKINGS)
    return token_rows(data, data["sequence_length"])


def token_rows(data: Mapping, length: int) -> Dataset:
    """Returns rows of `length + 1` tokens; see `language_modeling`."""
    corpus = corpus_of(data)
    tokenizer = tokenizer_of(corpus, data)
    packed = data["packing"] == "best_fit"
    what = {"packing": data["packing"], "length": length + 1 if packed else 0}
    kind = token_type(tokenizer)
    if packed:
        layout = {"tokens": ((length + 1,), kind), "segments": ((length + 1,), np.uint16)}
    else:
        layout = {"tokens": ((), kind)}

    def rows(split):
        ends = {"start_id": tokenizer.start_id, "end_id": tokenizer.end_id}
        documents = tokenizer.encode_documents(corpus.splits[split]())
        if packed:
            for tokens, segments in packing.best_fit(documents, length + 1, **ends):
                yield {"tokens": tokens, "segments": segments}
        else:
            for tokens in packing.stream(documents, **ends):
                yield {"tokens": tokens}

    splits, digest = prepared(corpus, tokenizer, what, layout, rows)
    if not packed:
        splits = {k: {"tokens": Windows(v["tokens"], length)} for k, v in splits.items()}
    return Dataset(corpus.name, splits, (), digest, tokenizer, facts(corpus, tokenizer, splits))


def from_prepared(data: Mapping) -> Dataset:
    """Returns the records that `zoo prepare` left, as `language_modeling` does.

    Args:
      data: the recipe's section; its tokenizer must be the one that made the records.

    Raises:
      UsageError: no such folder, or a recipe that does not fit it.
    """
    folder = Path(data["source"].removeprefix(PREPARED)).expanduser()
    if not (folder / "prepared.json").is_file():
        raise UsageError(
            f"{PREPARED}D is a folder that `zoo prepare --out=D` has finished. Received: {folder}."
        )
    _check_length(data)
    about = read_object(
        folder / "prepared.json", packing=str, sequence_length=int, records=dict, licences=dict
    )
    tokenizer = tokenizers.load(folder / "tokenizer.json")
    for key in ("packing", "sequence_length"):
        # Windows over a stream may have any length; rows have the one they were packed for.
        if data[key] != about[key] and (key == "packing" or about["packing"] == "best_fit"):
            raise UsageError(
                f"{folder} was prepared with data.{key}={about[key]}. Received: {data[key]}; set "
                f"data.{key}={about[key]}, or prepare it with this recipe."
            )
    if file := _tokenizer_file(data):
        same = tokenizers.load(file).fingerprint == tokenizer.fingerprint
    else:
        same = data["tokenizer"] in ("", tokenizer.kind)
    if not same:
        raise UsageError(
            f"{folder} was prepared with a tokenizer {tokenizer.kind!r} of its own: "
            f"data.tokenizer={tokenizer.kind} takes it. Received: {data['tokenizer']!r}."
        )
    splits, digests = {}, []
    for split in about["records"]:
        if split not in ("train", "validation"):
            raise RunError(f"{folder / 'prepared.json'} is damaged: a split is named {split!r}.")
        records = open_records(folder / "records" / split)
        if "tokens" not in records.arrays:
            raise RunError(f"{folder / 'records' / split} is damaged: it holds no tokens.")
        splits[split] = dict(records.arrays)
        digests.append(records.fingerprint)
    if about["packing"] == "stream":
        splits = {
            k: {"tokens": Windows(v["tokens"], data["sequence_length"])} for k, v in splits.items()
        }
    sizes = {name: len(next(iter(arrays.values()))) for name, arrays in splits.items()}
    card = read_object(folder / "data_card.json", tokenizer_report=dict)
    known = {
        "Tokenizer": {"measured on": "validation", **card["tokenizer_report"]},
        "Data": {"source": data["source"], "licence": ", ".join(about["licences"]), **sizes},
    }
    return Dataset(data["source"], splits, (), _digest(*digests), tokenizer, known)


def corpus_of(data: Mapping):
    """Returns the corpus of a task on text in one language.

    Raises:
      UsageError: where it has pairs of sentences.
    """
    languages = tuple(data["languages"])
    corpus = load_corpus(data["source"], data["manual_dir"] or None, languages=languages)
    if isinstance(next(next(iter(corpus.splits.values()))(), None), tuple):
        raise UsageError(
            f"The task needs text. Received: data.source={corpus.name!r}, which has pairs of "
            "sentences, for task.name=seq2seq."
        )
    return corpus


def _check_length(data: Mapping) -> None:
    if data["sequence_length"] < 2:
        raise UsageError(
            f"data.sequence_length is at least 2. Received: {data['sequence_length']}."
        )


def check(data: Mapping, packings: Iterable[str] = ()) -> None:
    """Checks what a text task needs of the section `data`; raises `UsageError`."""
    if data["tokenizer"] not in tokenizers.KINDS and not _tokenizer_file(data):
        raise UsageError(
            f"data.tokenizer is one of {', '.join(tokenizers.KINDS)}, or the work directory or "
            f"tokenizer.json of a trained model. Received: {data['tokenizer']!r}."
        )
    _check_length(data)
    if packings and data["packing"] not in packings:
        raise UsageError(
            f"data.packing is one of {', '.join(packings)}. Received: {data['packing']!r}."
        )


def tokenizer_of(corpus, data: Mapping, texts: Callable[[], Iterable[str]] | None = None):
    """Returns the tokenizer that is trained on a corpus' training split; kept in the cache.

    Args:
      corpus: a `zoo.data.corpora.Corpus`.
      data: the recipe's section: tokenizer, vocabulary_size, normalization. Where the tokenizer is
        a file, it is that one.
      texts: gives the text to train on; by default the documents of the training split.
    """
    if file := _tokenizer_file(data):
        return tokenizers.load(file)
    key = _digest(
        corpus.fingerprint, data["tokenizer"], data["vocabulary_size"], data["normalization"]
    )
    path = cache_dir() / "tokenizers" / f"{_file_name(corpus.name)}-{key[:16]}.json"
    if path.exists():
        return tokenizers.load(path)
    if "train" not in corpus.splits:
        raise UsageError(
            f"{corpus.name!r} has no split 'train' to learn a vocabulary from. It has: "
            f"{', '.join(corpus.splits)}."
        )
    texts = texts or corpus.splits["train"]
    tokenizer = tokenizers.train(
        data["tokenizer"], texts(), data["vocabulary_size"], data["normalization"]
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(path)
    return tokenizer


def _tokenizer_file(data: Mapping) -> Path | None:
    """Returns the file of a tokenizer that `data.tokenizer` names."""
    if data["tokenizer"] in ("", *tokenizers.KINDS):
        return None
    path = Path(data["tokenizer"]).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    return path if path.is_file() else None


def prepared(
    corpus, tokenizer, what: Mapping, layout: Mapping, rows: Callable[[str], Iterator[Mapping]]
) -> tuple[dict, str]:
    """Returns the records of each split, from the cache or made now.

    Args:
      corpus: whose splits are prepared.
      tokenizer: with which.
      what: all else that decides what the records hold, JSON values.
      layout: array name -> (row shape, type).
      rows: `rows(split)` yields dicts of equally long arrays.

    Returns:
      `(split -> array name -> array, digest)`.
    """
    key = _digest(corpus.fingerprint, tokenizer.fingerprint, dict(what))
    splits, digests = {}, []
    for split in corpus.splits:
        folder = cache_dir() / "records" / f"{_file_name(corpus.name)}-{key[:16]}" / split
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with RecordWriter(folder, layout, metadata=dict(what)) as writer:
                for arrays in rows(split):
                    writer.append(**arrays)
                if not writer.rows:
                    raise RunError(
                        f"The {split} split of {corpus.name!r} has nothing to learn from: no "
                        f"tokens for a {tokenizer.kind!r} tokenizer."
                    )
        records = open_records(folder)
        splits[split] = dict(records.arrays)
        digests.append(records.fingerprint)
    return splits, _digest(key, *digests)


def facts(corpus, tokenizer, splits: Mapping, texts: Callable | None = None) -> dict:
    """Returns what the report tells of a text data set: its tokenizer and its splits.

    The tokenizer is measured on the validation split, where there is one: kept in the cache.

    Args:
      corpus: the `zoo.data.corpora.Corpus`.
      tokenizer: trained on it.
      splits: of the data set.
      texts: `texts(split)` gives text; by default the documents of the split.
    """
    split = "validation" if "validation" in corpus.splits else next(iter(corpus.splits))
    key = _digest(corpus.fingerprint, tokenizer.fingerprint, split)
    path = cache_dir() / "tokenizers" / f"{_file_name(corpus.name)}-{key[:16]}-report.json"
    try:
        measured = read_json(path)
    except RunError:  # not there yet, or cut short
        documents = texts(split) if texts else corpus.splits[split]()
        measured = {"measured on": split, **tokenizers.report(tokenizer, documents)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, measured)
    sizes = {name: len(next(iter(arrays.values()))) for name, arrays in splits.items()}
    return {
        "Tokenizer": measured,
        "Data": {"source": corpus.name, "licence": corpus.licence, **sizes},
    }


def token_type(tokenizer) -> np.dtype:
    """Returns the smallest unsigned type that holds every token."""
    return np.dtype(np.uint16 if tokenizer.vocabulary_size <= 2**16 else np.uint32)


def _digest(*parts) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *parts], sort_keys=True).encode()).hexdigest()


def _file_name(name: str) -> str:
    """A corpus may be named by a path: `text:/home/me/book.txt`."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(name).name)[:60]
