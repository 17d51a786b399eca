"""The section `data`: its keys and their rules."""

import logging
from collections.abc import Collection
from pathlib import Path

from trainers.config.paths import exists
from zoo.errors import check_minimums
from zoo.storage.disk import read_json

_LOG = logging.getLogger(__name__)

KEYS = {
    # Name of `zoo fetch`, npz:FILE, folder:FOLDER, prepared:FOLDER, synthetic:NAME,
    # tfds:NAME:VERSION; for text_classification csv:FILE, tsv:FILE, jsonl:FILE, parquet:FILE
    "source": "",
    "manual_dir": "",  # folder of the original files; "" looks in ZOO_DATA_DIR
    "validation_size": 0,  # number of training examples to hold out, stratified by class
    "balanced": False,  # repeat training examples until all classes have the same size
    # For folder: and tfds: (height, width), or (height, width, channels); () follows the images
    "image_size": (),
    # For text only:
    "languages": (),  # ("en", "de"): source and target; (): those of the dataset
    # Kind of tokenizer, or a work directory that holds one; "pixels" for images
    "tokenizer": "",
    "vocabulary_size": 0,  # number of tokens; 0: every character of the training split
    "normalization": "NFC",  # Unicode normalization of the text
    "sequence_length": 0,  # tokens per example
    # For text_classification: one or two text columns, and last the label column; () is their
    # default for a registered set, and all columns of a file whose last column is "label"
    "columns": (),
    "packing": "stream",  # windows over the whole text, or "best_fit": documents packed in rows
}


def check(data) -> None:
    """Checks the values of a section `data`; raises `UsageError`.

    Tasks on text check the keys for text (`zoo.data.text.dataset.check`).
    """
    check_minimums("data", data)


def follow_images(config, user_keys: Collection[str]) -> None:
    """Lets an image classifier follow the data that the user names.

    Sets model.num_classes to 0 and model.input_shape to (), which the task completes from the data,
    unless the user sets them.

    Args:
      config: a configuration; changed in place.
      user_keys: keys that the user set, such as "data.source".
    """
    if config.task.name != "image_classification" or "data.source" not in user_keys:
        return
    for key, unset in (("num_classes", 0), ("input_shape", ())):
        if key in config.model and f"model.{key}" not in user_keys:
            config.model[key] = unset


def sizes_follow_images(model) -> bool:
    """Returns whether a section `model` takes its classes or its input shape from the data."""
    return not model.get("num_classes", 1) or not model.get("input_shape", True)


def follow_prepared(data, user_keys: Collection[str]) -> None:
    """Takes packing and sequence length from prepared data, except for keys that the user gives.

    Packed rows keep their prepared length, even if a recipe's variant sets another one.
    Damaged files are reported when the data are loaded.

    Args:
      data: a section `data`; changed in place.
      user_keys: keys that the user set, such as "data.packing".
    """
    kind, _, folder = data.source.partition(":")
    path = Path(folder) / "prepared.json"
    if kind != "prepared" or not exists(path):
        return
    plan = read_json(path)
    if not isinstance(plan, dict) or plan.get("packing") != "best_fit":
        return
    for key in ("packing", "sequence_length"):
        value = plan.get(key)
        if f"data.{key}" in user_keys or data[key] == value:
            continue
        if isinstance(value, type(data[key])):
            data[key] = value
            _LOG.info(f"data.{key}={value}, from the prepared data in {folder}")
