"""Opens the encoder of an index: the model of a work directory."""

from collections.abc import Mapping
from pathlib import Path

from zoo import registry
from zoo.data.pixels import PIXELS
from zoo.data.text.dataset import PREPARED, corpus_of
from zoo.data.text.synthetic.contexts import SYNTHETIC
from zoo.data.text.tokenizers import PUBLISHED
from zoo.errors import UsageError, near_names
from zoo.retrieval.encoders import Decoder
from zoo.saved.workdir import data_section, read_tokenizer


def text_of(workdir: str | Path, saved_config: Mapping, source: str = ""):
    """Returns the tokenizer of a work directory and a corpus. Does not start TensorFlow.

    Args:
      workdir: path of the work directory.
      saved_config: its config, from `zoo.saved.workdir.read_config`.
      source: name of the corpus; "" for the corpus of the training.

    Raises:
      UsageError: if the model has no tokenizer, or the source is not a corpus in one language.
    """
    data = data_section(workdir, saved_config)
    if not saved_config.get("tokenizer") or data["tokenizer"] == PIXELS:
        raise UsageError(f"{workdir} must contain a model of text with a tokenizer.")
    if source and source != data["source"]:
        data |= {"source": source, "manual_dir": ""}
    if data["source"].startswith((PREPARED, SYNTHETIC)):
        raise UsageError(
            "The documents of an index must come from a corpus, such as wikipedia_en or text:PATH. "
            f"Received: {data['source']}. Set --source."
        )
    tokenizer = read_tokenizer(workdir, saved_config)
    if tokenizer.kind == PUBLISHED:  # its special tokens have other ids
        raise UsageError(
            f"An index requires a model with a tokenizer of the zoo. Received: {workdir}, with the "
            "tokenizer of a published model."
        )
    return tokenizer, corpus_of(data)


def check_split(corpus, split: str) -> None:
    """Raises `UsageError` if a corpus does not have a split."""
    if split not in corpus.splits:
        raise UsageError(
            f"The corpus {corpus.name!r} has no split {split!r}.{near_names(split, corpus.splits)} "
            f"Known: {', '.join(corpus.splits)}."
        )


def decoder_of(model, saved_config: Mapping, tokenizer) -> Decoder:
    """Returns the decoder of a work directory's model; see `zoo.retrieval.encoders.Decoder`.

    Raises:
      UsageError: if the model is not a decoder of text.
    """
    config = saved_config["config"]
    if config["task"]["name"] != "clm":
        raise UsageError(
            "The next tokens of neighbors require a model of the task 'clm'. Received: "
            f"{config['task']['name']!r}."
        )
    task = registry.build_task(**config["task"]).bind(model, None, config["model"])
    task.tokenizer = tokenizer
    return Decoder(model, task)
