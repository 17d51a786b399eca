"""Builds the index of a run, and evaluates and opens its decoder with an index."""

from collections.abc import Callable, Mapping
from pathlib import Path

from trainers.evaluation.evaluate import Result, weights_name
from trainers.run.workdir import read_metrics
from zoo.errors import UsageError
from zoo.retrieval.build import build
from zoo.retrieval.documents import read_texts
from zoo.retrieval.encoder_of import check_split, decoder_of, text_of
from zoo.retrieval.encoders import MeanStates, Passages, TokenStates, weights_digest
from zoo.retrieval.index import PROBES, Index
from zoo.retrieval.knn_lm import NEIGHBORS, KnnLanguageModel
from zoo.saved.model import load_model
from zoo.storage.disk import make_folder, read_object, write_json

PASSAGE = 64  # tokens of a passage, as in RETRO (Borgeaud et al. 2022)


def build_index(
    folder: str,
    workdir: str,
    saved_config: Mapping,
    checkpoint: str,
    method: str,
    source: str,
    split: str,
    max_tokens: int,
    add: bool,
) -> dict:
    """Builds an index with the model of a work directory; see `zoo.retrieval.build.build`.

    Args:
      folder: folder of the index.
      workdir: path of the work directory.
      saved_config: config of the work directory.
      checkpoint: "final" or "best".
      method: "states", "pooled" or "bm25".
      source: name of a corpus; "" for that of the training.
      split: split of the corpus.
      max_tokens: number of tokens after which no document is read; 0 for all documents.
      add: whether to add the documents to a finished index.
    """
    tokenizer, corpus = text_of(workdir, saved_config, source)
    check_split(corpus, split)
    config, weights, settings = saved_config["config"], "", {"length": PASSAGE}
    model = load_model(workdir, checkpoint) if method != "bm25" else None
    if method == "states":
        decoder = decoder_of(model, saved_config, tokenizer)
        data = config["data"]
        settings = {"length": data["sequence_length"], "packing": data["packing"]}

        def make_entries(documents):
            return TokenStates(decoder, documents, **settings)
    else:
        pool = None if model is None else MeanStates(model)

        def make_entries(documents):
            return Passages(documents, PASSAGE, pool)

    if model is not None:
        weights = weights_digest(model)
    return build(
        folder,
        method=method,
        settings=settings,
        tokenizer=tokenizer,
        weights=weights,
        model=config["model"]["name"] if weights else "",
        source={
            "source": corpus.name, "split": split, "fingerprint": corpus.fingerprint,
            "max_tokens": max_tokens,
        },
        texts=corpus.splits[split],
        make_entries=make_entries,
        add=add,
    )  # fmt: skip


def open_with_index(
    saved_config: Mapping, index: Index, load: Callable, neighbors=NEIGHBORS, probes=PROBES
) -> KnnLanguageModel:
    """Returns the kNN language model of a work directory's model and an index.

    Args:
      saved_config: config of the work directory.
      index: index of the model's states.
      load: returns the model; called after the checks that do not need it.
      neighbors: number of neighbors.
      probes: number of clusters that a search visits.

    Raises:
      UsageError: if the index does not hold the states of this model.
    """
    if index.method != "states":
        raise UsageError(
            f"--index must be an index of the method 'states'. Received: {index.folder}, of the "
            f"method {index.method!r}."
        )
    index.check_encoder(tokenizer=saved_config.get("tokenizer") or "no tokenizer")
    index.check_neighbors(neighbors, probes)
    model = load()
    index.check_encoder(weights=weights_digest(model))
    decoder = decoder_of(model, saved_config, index.tokenizer)
    return KnnLanguageModel(decoder, index, neighbors, probes)


def evaluate_with_index(
    workdir: str,
    saved_config: Mapping,
    index: Index,
    split: str | None,
    checkpoint: str,
    neighbors: int,
    probes: int,
    max_tokens: int,
) -> Result:
    """Tunes share and temperature on the validation split, and evaluates another split once.

    Writes evaluation/SPLIT_index.json and SPLIT_index_samples.json in the work directory.

    Args:
      workdir: path of the work directory.
      saved_config: config of the work directory.
      index: index of the model's states.
      split: split to evaluate; None for "test".
      checkpoint: "final" or "best".
      neighbors: number of neighbors.
      probes: number of clusters that a search visits.
      max_tokens: number of tokens after which each of both splits ends; 0 for all.

    Raises:
      UsageError: if the corpus does not have both splits, or the index is of another model.
    """
    tokenizer, corpus = text_of(workdir, saved_config)
    split = split or "test"
    for name in ("validation", split):
        check_split(corpus, name)
    if split in ("validation", "train"):
        raise UsageError(
            "--split must differ from 'train' and from 'validation', which tunes share and "
            f"temperature. Received: {split!r}."
        )
    language_model = open_with_index(
        saved_config, index, lambda: load_model(workdir, checkpoint), neighbors, probes
    )
    texts = {name: corpus.splits[name]() for name in ("validation", split)}
    documents = {k: read_texts(tokenizer, v, max_tokens) for k, v in texts.items()}
    share, temperature = language_model.tune(documents["validation"], max_tokens)
    metrics = language_model.evaluate(documents[split], share, temperature, max_tokens)
    step = max((line.get("step", 0) for line in read_metrics(workdir)), default=0)
    result = Result(split, weights_name(checkpoint, saved_config["config"]), step, metrics)
    folder = Path(workdir) / "evaluation"
    make_folder(folder)
    samples = language_model.samples(documents[split], temperature)
    write_json(folder / f"{split}_index_samples.json", samples)
    write_json(
        folder / f"{split}_index.json",
        {
            "split": split, "checkpoint": checkpoint, "weights": result.weights, "step": step,
            "tuned on": "validation", "index": index.manifest["trained"], "entries": len(index),
            "metrics": metrics,
        },
    )  # fmt: skip
    return result


def tuned_settings(workdir: str, index: Index) -> tuple[float, float]:
    """Returns share and temperature that `evaluate_with_index` tuned for an index.

    Raises:
      UsageError: if the model was not evaluated with the index.
    """
    for path in sorted((Path(workdir) / "evaluation").glob("*_index.json"), reverse=True):
        saved = read_object(path, index=str, metrics=dict)
        if saved["index"] == index.manifest["trained"]:
            return float(saved["metrics"]["share"]), float(saved["metrics"]["temperature"])
    raise UsageError(
        f"Run `zoo evaluate {workdir} --index={index.folder}` first: it tunes share and "
        "temperature of the neighbors on the validation split."
    )
