"""Converts the `data` section of a recipe to tokenized records in the cache."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from zoo.data.datasets import Dataset
from zoo.data.pixels import PIXELS, pixel_rows
from zoo.data.text import packing, tokenizers
from zoo.data.text.corpora import load_corpus
from zoo.data.text.published.folder import has_tokenizer, read_folder
from zoo.data.text.synthetic.contexts import SYNTHETIC, synthetic_rows
from zoo.data.windows import Windows
from zoo.errors import RunError, UsageError
from zoo.progress import progress
from zoo.storage.disk import json_digest, read_json, read_object, write_json
from zoo.storage.paths import cache_dir
from zoo.storage.records import RecordWriter, open_records
from zoo.storage.transformers_files import is_transformers

FORMAT = 2
PREPARED_FORMAT = 1  # of prepared.json
PACKINGS = ("stream", "best_fit")
PREPARED = "prepared:"


def language_modeling(data: Mapping, task: Mapping) -> Dataset:
    """Loads tokens for `zoo.tasks.clm`.

    Examples have "tokens" (sequence_length + 1,), and with best-fit packing "segments" of the same
    shape: the document of each token, 0 for padding. A document is <start> text <end>. Synthetic
    examples have "is_target" instead: whether each token counts as a target. The tokenizer "pixels"
    is for images, see `zoo.data.pixels`.

    Args:
      data: section `data` of the recipe: source, manual_dir, tokenizer, vocabulary_size,
        normalization, sequence_length, packing.
      task: unused.
    """
    if data["tokenizer"] == PIXELS:
        return pixel_rows(data)
    if data["source"].startswith(PREPARED):
        return from_prepared(data)
    check(data, PACKINGS)
    if data["source"].startswith(SYNTHETIC):
        return synthetic_rows(data, own_tokenizer(data))
    return token_rows(data, data["sequence_length"])


def token_rows(data: Mapping, length: int) -> Dataset:
    """Returns rows of `length + 1` tokens; see `language_modeling`."""
    corpus = corpus_of(data)
    tokenizer = tokenizer_of(corpus, data, published=True)  # other tasks refuse it in `bind`
    is_best_fit = data["packing"] == "best_fit"
    settings = {"packing": data["packing"], "length": length + 1 if is_best_fit else 0}
    kind = token_type(tokenizer)
    if is_best_fit:
        layout = {"tokens": ((length + 1,), kind), "segments": ((length + 1,), np.uint16)}
    else:
        layout = {"tokens": ((), kind)}

    def rows(split):
        ends = {"start_id": tokenizer.start_id, "end_id": tokenizer.end_id}
        documents = tokenizer.encode_documents(corpus.splits[split]())
        if is_best_fit:
            for tokens, segments in packing.best_fit(documents, length + 1, **ends):
                yield {"tokens": tokens, "segments": segments}
        else:
            for tokens in packing.stream(documents, **ends):
                yield {"tokens": tokens}

    splits, digest = cached_records(corpus, tokenizer, settings, layout, rows)
    if not is_best_fit:
        splits = {k: {"tokens": Windows(v["tokens"], length)} for k, v in splits.items()}
    return Dataset(corpus.name, splits, (), digest, tokenizer, facts(corpus, tokenizer, splits))


def from_prepared(data: Mapping) -> Dataset:
    """Loads the records of `zoo prepare`, as `language_modeling` does.

    Args:
      data: section `data` of the recipe, with the tokenizer of the records.

    Raises:
      UsageError: if the folder does not exist, or does not match the recipe.
    """
    folder = Path(data["source"].removeprefix(PREPARED)).expanduser()
    if not (folder / "prepared.json").is_file():
        raise UsageError(
            f"{PREPARED}FOLDER must be the output of a finished `zoo prepare --out=FOLDER`. "
            f"Received: {folder}."
        )
    _check_length(data)
    plan = read_object(
        folder / "prepared.json", format=int, packing=str, sequence_length=int, records=dict,
        licences=dict,
    )  # fmt: skip
    if plan["format"] != PREPARED_FORMAT:
        raise UsageError(
            f"{folder / 'prepared.json'} has format {plan['format']}; this version reads "
            f"{PREPARED_FORMAT}: prepare it again."
        )
    tokenizer = tokenizers.load(folder / "tokenizer.json")
    for key in ("packing", "sequence_length"):
        # Windows over a stream may have any length, packed rows have a fixed one.
        if data[key] != plan[key] and (key == "packing" or plan["packing"] == "best_fit"):
            raise UsageError(
                f"data.{key} must be {plan[key]}, as prepared in {folder}. Received: {data[key]}. "
                f"Set data.{key}={plan[key]}, or prepare the data with this recipe."
            )
    if own := own_tokenizer(data):
        is_same_tokenizer = own.fingerprint == tokenizer.fingerprint
    else:
        is_same_tokenizer = data["tokenizer"] in ("", tokenizer.kind)
    if not is_same_tokenizer:
        raise UsageError(
            f"data.tokenizer must be {tokenizer.kind!r}, which {folder} was prepared with. "
            f"Received: {data['tokenizer']!r}."
        )
    splits, digests = {}, []
    for split in plan["records"]:
        if split not in ("train", "validation"):
            raise RunError(f"{folder / 'prepared.json'} is damaged: unknown split {split!r}.")
        records = open_records(folder / "records" / split)
        if "tokens" not in records.arrays:
            raise RunError(f"{folder / 'records' / split} is damaged: it contains no tokens.")
        splits[split] = dict(records.arrays)
        digests.append(records.fingerprint)
    if plan["packing"] == "stream":
        splits = {
            k: {"tokens": Windows(v["tokens"], data["sequence_length"])} for k, v in splits.items()
        }
    sizes = {name: len(next(iter(arrays.values()))) for name, arrays in splits.items()}
    card = read_object(folder / "data_card.json", tokenizer_report=dict)
    facts = {
        "Tokenizer": {"measured on": "validation", **card["tokenizer_report"]},
        "Data": {"source": data["source"], "licence": ", ".join(plan["licences"]), **sizes},
    }
    return Dataset(data["source"], splits, (), _digest(*digests), tokenizer, facts)


def corpus_of(data: Mapping):
    """Loads the corpus of a task on text in one language.

    Raises:
      UsageError: if the corpus has pairs of sentences.
    """
    languages = tuple(data["languages"])
    corpus = load_corpus(data["source"], data["manual_dir"] or None, languages=languages)
    if isinstance(next(next(iter(corpus.splits.values()))(), None), tuple):
        raise UsageError(
            f"The task requires text. Received: data.source={corpus.name!r} with pairs of "
            "sentences, which task.name=seq2seq requires."
        )
    return corpus


def _check_length(data: Mapping) -> None:
    if data["sequence_length"] < 2:
        raise UsageError(
            f"data.sequence_length must be at least 2. Received: {data['sequence_length']}."
        )


def check(data: Mapping, packings: Iterable[str] = ()) -> None:
    """Checks the keys of the section `data` for a task on text; raises `UsageError`."""
    if data["tokenizer"] not in tokenizers.KINDS and not _tokenizer_file(data):
        raise UsageError(
            f"data.tokenizer must be one of {', '.join(tokenizers.KINDS)}, or a work directory, a "
            "folder of transformers with a tokenizer, or a tokenizer.json of the zoo. Received: "
            f"{data['tokenizer']!r}."
        )
    _check_length(data)
    if packings and data["packing"] not in packings:
        raise UsageError(
            f"data.packing must be one of {', '.join(packings)}. Received: {data['packing']!r}."
        )


def tokenizer_of(
    corpus, data: Mapping, texts: Callable[[], Iterable[str]] | None = None, published: bool = False
):
    """Loads a tokenizer from its file or from the cache, or trains it on the training split.

    Args:
      corpus: a `zoo.data.text.corpora.Corpus`.
      data: section `data` of the recipe: tokenizer (a kind or a path), vocabulary_size,
        normalization.
      texts: returns the text to train on; by default the documents of the training split.
      published: whether the rows need no special tokens that a published tokenizer may lack.

    Raises:
      UsageError: if there is nothing to train on, or a published tokenizer is not supported.
    """
    if own := own_tokenizer(data):
        if own.kind == tokenizers.PUBLISHED and not published:
            raise UsageError(tokenizers.ONLY_CLM)
        return own
    key = _digest(
        corpus.fingerprint, data["tokenizer"], data["vocabulary_size"], data["normalization"]
    )
    path = cache_dir() / "tokenizers" / f"{_file_name(corpus.name)}-{key[:16]}.json"
    if path.exists():
        return tokenizers.load(path)
    if "train" not in corpus.splits:
        raise UsageError(
            f"{corpus.name!r} has no split 'train' to train a tokenizer on. It has: "
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
    """Returns the file or the folder of transformers with the tokenizer of `data`, or None."""
    if data["tokenizer"] in ("", *tokenizers.KINDS):
        return None
    path = Path(data["tokenizer"]).expanduser()
    if path.is_dir() and is_transformers(path):
        return path if has_tokenizer(path) else None
    path = path / "tokenizer.json" if path.is_dir() else path
    return path if path.is_file() else None


def own_tokenizer(data: Mapping):
    """Returns the tokenizer that `data.tokenizer` names by its path, or None."""
    path = _tokenizer_file(data)
    if path is None:
        return None
    return read_folder(path) if path.is_dir() else tokenizers.load(path)


def cached_records(
    corpus, tokenizer, settings: Mapping, layout: Mapping, rows: Callable[[str], Iterator[Mapping]]
) -> tuple[dict, str]:
    """Opens the records of each split in the cache, or creates them.

    Args:
      corpus: corpus of the splits.
      tokenizer: tokenizer of the rows.
      settings: other JSON values that determine the rows.
      layout: array name -> (row shape, dtype).
      rows: `rows(split)` yields dicts of equally long arrays.

    Returns:
      `(split -> array name -> array, digest)`.
    """
    key = _digest(corpus.fingerprint, tokenizer.fingerprint, dict(settings))
    splits, digests = {}, []
    for split in corpus.splits:
        folder = cache_dir() / "records" / f"{_file_name(corpus.name)}-{key[:16]}" / split
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with RecordWriter(folder, layout, metadata=dict(settings)) as writer:
                for arrays in progress(rows(split), title=f"tokenizing {split}", unit="batches"):
                    writer.append(**arrays)
                if not writer.rows:
                    raise RunError(
                        f"The {split} split of {corpus.name!r} has no tokens of the "
                        f"{tokenizer.kind!r} tokenizer."
                    )
        records = open_records(folder)
        splits[split] = dict(records.arrays)
        digests.append(records.fingerprint)
    return splits, _digest(key, *digests)


def facts(corpus, tokenizer, splits: Mapping, texts: Callable | None = None) -> dict:
    """Returns the facts of a text dataset for the report: its tokenizer and its splits.

    The tokenizer is measured on the validation split, or on the first split. The result is cached.

    Args:
      corpus: a `zoo.data.text.corpora.Corpus`.
      tokenizer: tokenizer of the dataset.
      splits: splits of the dataset.
      texts: `texts(split)` returns text; by default the documents of the split.
    """
    split = "validation" if "validation" in corpus.splits else next(iter(corpus.splits))
    key = _digest(corpus.fingerprint, tokenizer.fingerprint, split)
    path = cache_dir() / "tokenizers" / f"{_file_name(corpus.name)}-{key[:16]}-report.json"
    try:
        measurements = read_json(path)
    except RunError:  # missing or damaged
        documents = texts(split) if texts else corpus.splits[split]()
        measurements = {"measured on": split, **tokenizers.report(tokenizer, documents)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, measurements)
    sizes = {name: len(next(iter(arrays.values()))) for name, arrays in splits.items()}
    return {
        "Tokenizer": measurements,
        "Data": {"source": corpus.name, "licence": corpus.licence, **sizes},
    }


def token_type(tokenizer) -> np.dtype:
    """Returns the smallest unsigned integer type for all token ids."""
    return np.dtype(np.uint16 if tokenizer.vocabulary_size <= 2**16 else np.uint32)


def _digest(*parts) -> str:
    return json_digest([FORMAT, *parts])


def _file_name(name: str) -> str:
    """Converts the name of a corpus, which may be a path, to the name of a file."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(name).name)[:60]
