"""Reads a work directory for its report, including incomplete and damaged directories.

A report is possible while a run is still active, and after a run was killed while writing. A file
that cannot be read becomes a note at the top of the page.
"""

import dataclasses
import datetime
import io
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from zoo.errors import RunError, short
from zoo.storage.arrays import open_npz
from zoo.storage.bounds import JSON_EXPANSION
from zoo.storage.disk import read_bytes, read_json, read_object
from zoo.storage.foreign import check_has_config, refuse_foreign
from zoo.storage.locks import is_held

_MAX_CLASSES = 2000  # the report computes and draws a matrix of all pairs
_MAX_GRIDS = 12


@dataclasses.dataclass
class Evaluation:
    """The files of one evaluated split; each attribute but `split` may be empty.

    Attributes:
      split: name of the split.
      summary: content of SPLIT.json: metrics, number of examples, weights.
      arrays: content of SPLIT.npz: labels, predictions, worst mistakes, heat maps.
      samples: content of SPLIT_samples.json: translations, answered questions, or the texts of a
        classifier.
    """

    split: str
    summary: dict
    arrays: dict
    samples: list[dict]


@dataclasses.dataclass
class Run:
    """The readable content of a work directory.

    Attributes:
      model: name of the model.
      source: name of the recipe, such as `cnn_mnist:debug`.
      planned_steps: `trainer.steps` of the config; infinity if the config counts epochs.
      config: the nested config.
      facts: title -> name -> value: properties of the data, such as its tokenizer.
      environment: name -> value: properties of the machine.
      records: lines of metrics.jsonl with numbers, in the order written.
      events: lines of metrics.jsonl with an `event`, in the order written.
      seconds: wall time in training, summed over all starts of the run.
      evaluations: one per split, the test split first.
      images: title -> content of a PNG file: image grids sampled during training.
      state: `finished`, `running` or `stopped`.
      updated: time of the last write to metrics.jsonl, or None.
      data_fingerprint: fingerprint of the data; "" if unknown.
      notes: one line per file that could not be read completely.
    """

    model: str
    source: str
    planned_steps: float
    config: dict
    facts: dict
    environment: dict
    records: list[dict]
    events: list[dict]
    seconds: float
    evaluations: list[Evaluation]
    images: dict[str, bytes]
    state: str
    updated: datetime.datetime | None
    data_fingerprint: str
    notes: list[str]


def to_float(value) -> float:
    """Returns a JSON value as a float; NaN if it is not a number or is too large to draw."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value) if abs(value) < 1e30 else math.nan


def read_run(workdir: Path) -> Run:
    """Reads a work directory; only config.json must exist.

    Raises:
      UsageError: if `workdir` has no config.json, or is a model folder of another library.
    """
    check_has_config(workdir)
    notes = []
    saved_config = _read(workdir / "config.json", read_object, {}, notes)
    if "format_version" not in saved_config:
        refuse_foreign(workdir, saved_config)
    config = _section(saved_config, "config")
    steps = to_float(_section(config, "trainer").get("steps"))
    metrics = workdir / "metrics.jsonl"
    records, events = _read_metrics(metrics, notes)
    seconds = [to_float(record.get("seconds")) for record in records]
    last_write = metrics.stat().st_mtime if metrics.is_file() else None
    return Run(
        model=str(_section(config, "model").get("name", "model")),
        source=str(saved_config.get("source", "")),
        planned_steps=steps if steps > 0 else math.inf,
        config=config,
        facts=_section(saved_config, "facts"),
        environment=_read(workdir / "environment.json", read_object, {}, notes),
        records=records,
        events=events,
        seconds=next((value for value in reversed(seconds) if math.isfinite(value)), 0.0),
        evaluations=_read_evaluations(workdir / "evaluation", notes),
        images=_read_images(workdir / "samples", notes),
        state=_state(workdir),
        updated=datetime.datetime.fromtimestamp(last_write) if last_write else None,
        data_fingerprint=str(saved_config.get("data_fingerprint", "")),
        notes=notes,
    )


def _section(values: dict, name: str) -> dict:
    section = values.get(name)
    return section if isinstance(section, dict) else {}


def _state(workdir: Path) -> str:
    if any((workdir / name).exists() for name in ("model.keras", "model.tflite")):
        return "finished"
    return "running" if is_held(workdir) else "stopped"


def _read(path: Path, read: Callable, default, notes: list[str]):
    """Returns `read(path)`; `default` for a missing file; `default`, adding a note, on failure."""
    if not path.exists():
        return default
    try:
        return read(path)
    except Exception as error:  # zipfile, NumPy and Pillow raise many types for damaged files
        notes.append(f"{path.name} could not be read: {short(error)}")
        return default


def _read_metrics(path: Path, notes: list[str]) -> tuple[list[dict], list[dict]]:
    content = _read(path, lambda path: read_bytes(path, JSON_EXPANSION), b"", notes)
    lines = content.decode(errors="replace").splitlines()
    rows = [_parse_row(line) for line in lines]
    # A run that is still active may have written only a part of the last line.
    num_damaged_lines = sum(
        row is None and bool(line.strip()) for row, line in zip(rows[:-1], lines, strict=False)
    )
    if num_damaged_lines:
        notes.append(f"{path.name}: {num_damaged_lines} of {len(lines)} lines could not be read")
    rows = [row for row in rows if row is not None]
    return [row for row in rows if "event" not in row], [row for row in rows if "event" in row]


def _parse_row(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not math.isfinite(to_float(row.get("step"))):
        return None
    return row


def _read_evaluations(folder: Path, notes: list[str]) -> list[Evaluation]:
    names = {path.stem for suffix in ("json", "npz") for path in folder.glob(f"*.{suffix}")}
    names = {name for name in names if not name.endswith("_samples")}
    return [
        Evaluation(
            split,
            _read(folder / f"{split}.json", read_object, {}, notes),
            _read(folder / f"{split}.npz", _read_arrays, {}, notes),
            _read(folder / f"{split}_samples.json", _read_samples, [], notes),
        )
        for split in sorted(names, key=lambda name: (name != "test", name))
    ]


def _read_images(folder: Path, notes: list[str]) -> dict[str, bytes]:
    """Reads interpolation.png and at most `_MAX_GRIDS` evenly spaced grids, the latest first."""
    paths = sorted(folder.glob("step_*.png"))[::-1]
    if len(paths) > _MAX_GRIDS:
        indices = np.linspace(0, len(paths) - 1, _MAX_GRIDS).round().astype(int)
        paths = [paths[i] for i in indices]
    images = {}
    for path in [folder / "interpolation.png", *paths]:
        step = path.stem.removeprefix("step_")
        title = f"step {int(step):,}" if step.isdecimal() else step
        images[title] = _read(path, _read_png, None, notes)
    return {title: content for title, content in images.items() if content is not None}


def _read_png(path: Path) -> bytes:
    from PIL import Image

    content = read_bytes(path)
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        image.verify()
    return content


def _read_samples(path: Path) -> list[dict]:
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RunError("the file must contain a list of samples")
    return rows


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an evaluation and checks that shapes and values are consistent."""
    with open_npz(path) as file:
        arrays = dict(file)
    labels, predictions, names = (arrays[k] for k in ("labels", "predictions", "class_names"))
    if names.size > _MAX_CLASSES:
        raise ValueError(f"{names.size:,} classes; the report supports at most {_MAX_CLASSES:,}")
    list(map(str, names.reshape(-1)))  # raises if the names are not text
    if labels.ndim != 1 or labels.shape != predictions.shape:
        raise ValueError(
            f"labels {labels.shape} must have the shape of predictions {predictions.shape}"
        )
    limits = {"labels": names.size, "predictions": names.size}
    limits |= {"worst_index": labels.size, "heat_index": labels.size}
    for key, limit in limits.items():
        values = arrays.get(key, np.zeros(0, int))
        if values.dtype.kind not in "iu":
            raise ValueError(f"{key} must be integers. Received: {values.dtype}")
        if values.size and not 0 <= values.min() <= values.max() < limit:
            raise ValueError(f"{key} must be from 0 to {limit - 1}")
    if "heat_index" in arrays:
        maps, inputs, index = (arrays[f"heat_{key}"] for key in ("maps", "inputs", "index"))
        if maps.ndim != 3 or maps.shape != inputs.shape[:3] or len(maps) != len(index):
            raise ValueError(
                f"heat_maps {maps.shape} and heat_inputs {inputs.shape} must have equal shapes"
            )
    confidences = arrays.get("confidences", labels)
    if confidences.shape != labels.shape:
        raise ValueError(f"confidences {confidences.shape} must have the shape of labels")
    probabilities = arrays.get("worst_probabilities")
    if probabilities is not None and probabilities.shape[1:] != names.shape:
        raise ValueError(
            f"worst_probabilities {probabilities.shape} must match the {names.size} classes"
        )
    return arrays
