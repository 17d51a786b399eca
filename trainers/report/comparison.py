"""Compares runs by their work directories; imports neither TensorFlow nor Keras."""

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path

from trainers.report import figures
from trainers.report.read import Run, read_run, to_float
from trainers.report.sections import is_metric, pairs
from zoo.errors import RunError, UsageError, short
from zoo.formatting import duration, number
from zoo.pages.render import write_page
from zoo.storage.disk import read_object
from zoo.tasks.directions import better

_MAX_RUNS = 24  # the curves have eight colors and three line styles
_MAX_METRICS = 40
_MISSING = "–"
# Facts of the start of a run that differ between all runs.
_NOT_COMPARED = ("started", "command")
_MODELS = ("model.keras", "model.tflite")


@dataclasses.dataclass
class ComparedRun:
    """One run of a comparison.

    Attributes:
      name: the end of the path of its work directory that no other run has.
      workdir: its work directory.
      run: content of the work directory.
      best: content of best/metrics.json; {} if the run has no best checkpoint.
    """

    name: str
    workdir: Path
    run: Run
    best: dict


@dataclasses.dataclass
class Metric:
    """One metric of all runs; a row of the table.

    Attributes:
      name: name without "val_".
      split: split and checkpoint of the values: "validation, best", "validation, last",
        "training, last", or the name of an evaluated split.
      direction: "higher" or "lower", whichever is better; "" if unknown.
      values: value of each run; None for a run without the metric.
      winners: indices of the runs with the best value; empty without a direction, or if fewer than
        two runs have the metric.
    """

    name: str
    split: str
    direction: str
    values: list[float | None]

    @property
    def winners(self) -> list[int]:
        finite = [value for value in self.values if value is not None and math.isfinite(value)]
        if not self.direction or len(finite) < 2:
            return []
        best = max(finite) if self.direction == "higher" else min(finite)
        return [i for i, value in enumerate(self.values) if value == best]


@dataclasses.dataclass
class Comparison:
    """Everything about several runs that a table or a page shows.

    Attributes:
      runs: the runs, in the order given.
      facts: name -> value of each run as text: recipe, state, steps, time, sizes.
      metrics: the metrics, those of evaluated splits first.
      keys: key of the configuration -> value of each run as text, for keys that differ.
      machine: fact of the machine -> value of each run as text, for facts that differ.
      notes: reasons to read the comparison with care.
    """

    runs: list[ComparedRun]
    facts: dict[str, list[str]]
    metrics: list[Metric]
    keys: dict[str, list[str]]
    machine: dict[str, list[str]]
    notes: list[str]


def compare_runs(workdirs: Sequence[str | Path]) -> Comparison:
    """Reads and compares work directories.

    Args:
      workdirs: paths of at least two work directories.

    Raises:
      UsageError: if a path is no work directory or is given twice, or for more than 24 runs.
    """
    paths = [Path(os.path.abspath(path)) for path in workdirs]
    for path in paths:
        if paths.count(path) > 1:
            raise UsageError(f"Each run must be given once. Received {path} twice.")
    if not 2 <= len(paths) <= _MAX_RUNS:
        raise UsageError(f"A comparison needs 2 to {_MAX_RUNS} runs. Received: {len(paths)}.")
    runs = [_read(path, name) for path, name in zip(paths, _short_names(paths), strict=True)]
    notes = [f"{run.name}: {note}" for run in runs for note in run.run.notes]
    fingerprints = {run.run.data_fingerprint for run in runs}
    if len(fingerprints) > 1:
        notes.append(
            "The runs have different data. Their metrics are comparable only if the evaluated "
            "splits hold the same examples."
        )
    return Comparison(
        runs=runs,
        facts=_facts(runs),
        metrics=_metrics(runs),
        keys=_differences([dict(pairs(run.run.config)) for run in runs]),
        machine=_differences([_machine(run) for run in runs]),
        notes=notes,
    )


def as_json(comparison: Comparison) -> dict:
    """Returns the comparison as JSON values; values that are not finite are null."""
    return {
        "runs": [str(run.workdir) for run in comparison.runs],
        "facts": comparison.facts,
        "metrics": [
            {
                "name": metric.name,
                "split": metric.split,
                "better": metric.direction,
                "values": [
                    value if value is not None and math.isfinite(value) else None
                    for value in metric.values
                ],
            }
            for metric in comparison.metrics
        ],
        "config": comparison.keys,
        "machine": comparison.machine,
        "notes": comparison.notes,
    }


def table_rows(comparison: Comparison) -> dict[str, list[list[str]]]:
    """Returns the tables of the comparison: title -> rows of text, one column per run.

    The first cell of a row is its name. A star marks the best value of a metric.
    """
    metrics = []
    for metric in comparison.metrics:
        cells = [_MISSING if value is None else number(value) for value in metric.values]
        cells = [f"{cell} *" if i in metric.winners else cell for i, cell in enumerate(cells)]
        direction = f", {metric.direction} is better" if metric.direction else ""
        metrics.append([f"{metric.name} ({metric.split}{direction})", *cells])
    tables = {
        "Runs": [[name, *values] for name, values in comparison.facts.items()],
        "Metrics": metrics,
        "Config": [[name, *values] for name, values in comparison.keys.items()],
        "Machine": [[name, *values] for name, values in comparison.machine.items()],
    }
    return {title: rows for title, rows in tables.items() if rows}


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Writes the comparison as an HTML page, atomically."""
    axes = _axes(comparison.runs)
    write_page(
        path,
        "trainers.report",
        "comparison.html",
        names=[run.name for run in comparison.runs],
        tables=table_rows(comparison),
        notes_of_runs=comparison.notes,
        curves=_curves(comparison.runs, axes),
        axes=list(axes),
        num_colors=figures.NUM_COLORS,
    )


def _read(path: Path, name: str) -> ComparedRun:
    run = read_run(path)
    best = {}
    try:
        if (path / "best" / "metrics.json").exists():
            best = read_object(path / "best" / "metrics.json")
    except RunError as error:
        run.notes.append(f"best/metrics.json could not be read: {short(error)}")
    return ComparedRun(name, path, run, best)


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Returns the shortest ends of paths that differ."""
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _facts(runs: list[ComparedRun]) -> dict[str, list[str]]:
    facts: dict[str, list[str]] = {"recipe": [], "state": [], "steps": [], "wall time": []}
    facts["model file"] = []
    for compared in runs:
        run = compared.run
        facts["recipe"].append(run.source or _MISSING)
        facts["state"].append(run.state)
        last = run.records[-1]["step"] if run.records else 0
        of = f" of {run.planned_steps:,.0f}" if math.isfinite(run.planned_steps) else ""
        facts["steps"].append(f"{last:,.0f}{of}")
        facts["wall time"].append(duration(run.seconds) if run.seconds else _MISSING)
        files = [path for name in _MODELS if (path := compared.workdir / name).is_file()]
        facts["model file"].append(
            f"{files[0].stat().st_size / 2**20:,.2f} MiB" if files else _MISSING
        )
    return facts


def _metrics(runs: list[ComparedRun]) -> list[Metric]:
    columns = [_values(run) for run in runs]
    keys = dict.fromkeys(key for column in columns for key in column)
    # Evaluated splits first, then the best and the last validation, then training.
    order = {"validation, best": 1, "validation, last": 2, "training, last": 3}
    ordered = sorted(keys, key=lambda key: order.get(key[0], 0))
    return [
        Metric(name, split, better(name), [column.get((split, name)) for column in columns])
        for split, name in ordered[:_MAX_METRICS]
    ]


def _values(compared: ComparedRun) -> dict[tuple[str, str], float]:
    """Returns (split, metric) -> value of one run."""
    values = {}
    for evaluation in compared.run.evaluations:
        metrics = evaluation.summary.get("metrics")
        for name, value in (metrics if isinstance(metrics, dict) else {}).items():
            values[evaluation.split, name] = value
    for name, value in compared.best.items():
        if name.startswith("val_"):
            values["validation, best", name.removeprefix("val_")] = value
    for record in compared.run.records:  # the last value of each metric stays
        for name, value in record.items():
            if is_metric(name):
                split = "validation, last" if name.startswith("val_") else "training, last"
                values[split, name.removeprefix("val_")] = value
    numbers = {key: to_float(value) for key, value in values.items()}
    return {key: value for key, value in numbers.items() if not math.isnan(value)}


def _differences(columns: list[dict[str, str]]) -> dict[str, list[str]]:
    """Returns key -> value in each column, for keys whose values are not all equal."""
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = {key: [column.get(key, _MISSING) for column in columns] for key in keys}
    return {key: row for key, row in rows.items() if len(set(row)) > 1}


def _machine(compared: ComparedRun) -> dict[str, str]:
    return {
        key: value
        for key, value in pairs(compared.run.environment)
        if key.partition(".")[0] not in _NOT_COMPARED
    }


def _axes(runs: list[ComparedRun]) -> dict[str, list[float]]:
    """Returns the axes of the curves: name -> what one step adds for each run.

    The time is no multiple of the steps, so that it has no factors.
    """
    batches = [_setting(run.run, "trainer", "global_batch_size") for run in runs]
    lengths = [_setting(run.run, "data", "sequence_length") for run in runs]
    axes = {"step": [1.0] * len(runs), "minutes": []}
    if all(lengths):
        axes["tokens"] = [a * b for a, b in zip(batches, lengths, strict=True)]
    else:
        axes["examples"] = batches
    return axes


def _curves(runs: list[ComparedRun], axes: dict[str, list[float]]) -> list[dict]:
    """Plots each metric of all runs over each axis.

    Returns:
      Dicts with `title`, and `drawings`: one per axis.
    """
    keys = dict.fromkeys(
        key for run in runs for record in run.run.records for key in record if is_metric(key)
    )
    # The loss first, and the validation split before the training split.
    ordered = sorted(keys, key=lambda key: (key.removeprefix("val_") != "loss", key[:4] != "val_"))
    plots = []
    for key in ordered[:_MAX_METRICS]:
        name = key.removeprefix("val_")
        split = "validation" if name != key else "training"
        direction = f", {better(name)} is better" if better(name) else ""
        drawings = {}
        for axis, factors in axes.items():
            points = [
                _points(run.run, key, factors[i] if factors else None) for i, run in enumerate(runs)
            ]
            drawings[axis] = figures.overlay(points, axis, f"{key} over {axis}")
        title = f"{name.replace('_', ' ')} ({split}{direction})"
        plots.append({"title": title, "drawings": drawings})
    return plots


def _points(run: Run, key: str, factor: float | None) -> tuple[list[float], list[float]]:
    """Returns the places and values of a metric; `factor` is None for the time in minutes."""
    x, y, seconds = [], [], 0.0
    for record in run.records:
        # The time of a validation is the time of the last update before it.
        seconds = to_float(record.get("seconds", seconds))
        if key in record:
            x.append(seconds / 60 if factor is None else record["step"] * factor)
            y.append(to_float(record[key]))
    return x, y


def _setting(run: Run, section: str, key: str) -> float:
    """Returns a number of the configuration; 0 if there is none."""
    values = run.config.get(section)
    value = to_float(values.get(key)) if isinstance(values, dict) else math.nan
    return 0.0 if math.isnan(value) else value
