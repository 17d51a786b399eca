"""Prepares the content of the report: formatted numbers, rows of tables and drawings.

`templates/report.html` defines the layout of the content.
"""

import json
import math
import statistics
from collections.abc import Iterable

import numpy as np

from trainers.report import figures
from trainers.report.read import Evaluation, Run, to_float
from trainers.report.uncertainty import BINS, accuracy_interval, calibration_bins
from zoo.formatting import duration

_NOT_METRICS = {"step", "epoch", "seconds", "skipped_steps", "goodput"}
_RATE = "_per_second"
_MAX_SAMPLES = 200
_MAX_TABLE_CLASSES = 20  # number of classes up to which the confusion matrix is a table of numbers
_MAX_MISTAKES = 36  # the number that an evaluation stores
_MAX_TEXTS = 50  # mistakes, and correct predictions of ten classes
_WEAK = 0.05  # share of the largest attribution of a text up to which a token has no color
_OPACITY = 0.6  # of the strongest color behind a token, which must be readable
_MAX_PLOTS = 60  # limit for metrics and for rates: each plot takes 30 ms
_SMALL_IMAGE = 64  # pixels per side up to which the page shows images without interpolation


def tiles(run: Run) -> list[tuple[str, str, str]]:
    """Returns the most important numbers of a run as (name, value, detail)."""
    return [_metric_tile(run), _steps_tile(run), _time_tile(run), _throughput_tile(run)]


def evaluation_table(evaluations: list[Evaluation]) -> dict:
    """Returns `head` and `rows` of a table with all metrics, one row per split."""
    splits = [evaluation for evaluation in evaluations if evaluation.summary]
    names = dict.fromkeys(name for split in splits for name in _metrics(split.summary))
    names = [name for name in names if "/" not in name]  # members of groups: see `curves`
    rows = [
        [split.split, _weights(split.summary)]
        + [count(split.summary.get(key)) for key in ("step", "examples")]
        + [_digits(_metrics(split.summary).get(name, "–")) for name in names]
        for split in splits
    ]
    head = ["split", "weights", "step", "examples", *names]
    return {"head": head, "rows": rows if names else []}


def curves(records: list[dict]) -> dict:
    """Plots every metric, with its training and validation values in one plot, then the rates.

    Metrics with a "/" in the name are members of a group, such as "load/0/7" of "load/0": the
    training values of all members are in one plot.

    Returns:
      Dict with `plots`, and the number of omitted plots as `more`.
    """
    keys = dict.fromkeys(
        key for record in records for key, value in record.items() if not isinstance(value, str)
    )
    metrics = [key.removeprefix("val_") for key in keys if is_metric(key)]
    metrics = sorted(dict.fromkeys(metrics), key=lambda name: name != "loss")
    groups = {}
    for name in [name for name in metrics if "/" in name]:
        groups.setdefault(name.rpartition("/")[0], []).append(name)
    metrics = [name for name in metrics if "/" not in name]
    rates = [*(key for key in keys if key.startswith("learning_rate")), *_rates(records)]
    plots = []
    for name in metrics[:_MAX_PLOTS]:
        lines = {"training": _series(records, name), "validation": _series(records, f"val_{name}")}
        plots.append(_curve(name, {label: series for label, series in lines.items() if series}))
    for group, members in list(groups.items())[:_MAX_PLOTS]:
        plots.append(_group_curve(group, [_series(records, name) for name in members]))
    for name in (*rates[:_MAX_PLOTS], "skipped_steps"):
        series = _series(records, name)
        if series and (name != "skipped_steps" or any(series.values())):
            plots.append(_curve(name, {"training": series}, labeled=False))
    num_hidden = sum(max(0, len(names) - _MAX_PLOTS) for names in (metrics, groups, rates))
    return {"plots": plots, "more": num_hidden}


def classification(evaluation: Evaluation) -> dict | None:
    """Returns the confusion matrix, scores per class, worst mistakes and heat maps of one split.

    Raises:
      Exception: any exception of NumPy and Pillow for arrays that are not images.
    """
    arrays = evaluation.arrays
    if not arrays or not arrays["labels"].size:
        return None
    # This import takes half the time of a report, so a report without classes avoids it.
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    names = [str(name) for name in arrays["class_names"]]
    labels, predictions, classes = arrays["labels"], arrays["predictions"], range(len(names))
    counts = confusion_matrix(labels, predictions, labels=classes)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    *scores, support = precision_recall_fscore_support(
        labels, predictions, labels=classes, zero_division=np.nan
    )
    is_drawing = len(names) > _MAX_TABLE_CLASSES
    order, class_labels = list(classes), names
    if is_drawing:  # the matrix is a drawing that shows classes only as numbers
        order.sort(key=lambda index: (math.isnan(scores[2][index]), scores[2][index]))
        class_labels = [f"{index} · {name}" for index, name in enumerate(names)]
    return {
        "name": evaluation.split,
        "names": names,
        "drawing": figures.matrix(shares, f"confusion {evaluation.split}") if is_drawing else None,
        "accuracy": float(np.trace(counts) / counts.sum()),
        "interval": accuracy_interval(labels == predictions),
        "calibration": _calibration(evaluation),
        "counts": counts.tolist(),
        "shares": shares.tolist(),
        "scores": [
            [class_labels[i], *("–" if math.isnan(x[i]) else _digits(float(x[i])) for x in scores)]
            + [count(int(support[i]))]
            for i in order
        ],
        "mistakes": _mistakes(arrays, names),
        "heat_maps": _heat_maps(arrays, names),
        "texts": _texts(evaluation.samples),
    }


def depths_by_loops(evaluation: Evaluation) -> dict:
    """Returns `head` and `rows` of the accuracy by depth, with a row per number of loops."""
    rows = [row for row in evaluation.samples if "loops" in row]
    head = list(rows[0]) if rows else []
    return {"head": head, "rows": [[row.get(name, "") for name in head] for row in rows]}


# Columns of samples: of translations, and of contexts with a passage of an index.
_COLUMNS = ("source", "prediction", "reference", "passage", "share")


def translations(evaluation: Evaluation) -> dict:
    """Returns `head` and `rows` of a table of the first samples; `more` counts the others.

    Samples of questions, of classified texts and of numbers of loops have their own sections.
    """
    others = {"context", "texts", "loops"}
    samples = [row for row in evaluation.samples if not row.keys() & others]
    rows = samples[:_MAX_SAMPLES]
    names = [name for name in _COLUMNS if rows and name in rows[0]]
    cells = [[row.get(name, "") for name in names] for row in rows if names]
    return {"head": names, "rows": cells, "more": len(samples) - len(rows)}


def events(run: Run) -> list[list]:
    """Returns step, name and detail of each event that is not a sample."""
    return [
        [count(event["step"]), event["event"], event.get("detail", "")]
        for event in run.events
        if event["event"] != "sample"
    ]


def texts(run: Run) -> list[tuple[str, str]]:
    """Returns step and text of each sample of a text model, the latest first."""
    return [
        (count(event["step"]), event["detail"])
        for event in reversed(run.events)
        if event["event"] == "sample" and "detail" in event
    ]


def pairs(values: dict, prefix: str = "") -> Iterable[tuple[str, str]]:
    """Yields the dotted name and the value of each leaf of a nested dict, both as text."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from pairs(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f"{prefix}{key}", text


def count(value) -> str:
    """Returns a JSON value as a whole number, or a dash if it is not a finite number."""
    value = to_float(value)
    return f"{value:,.0f}" if math.isfinite(value) else "–"


def is_metric(key: str) -> bool:
    """Returns whether a key of metrics.jsonl is a metric, neither a rate nor a time."""
    plain = key not in _NOT_METRICS and not key.startswith("learning_rate")
    return plain and not key.endswith(_RATE)


def _metric_tile(run: Run) -> tuple[str, str, str]:
    """Shows the first evaluation: its Fréchet distance, else its first metric except the loss."""
    for evaluation in run.evaluations:
        examples = count(evaluation.summary.get("examples"))
        detail = f"{_weights(evaluation.summary)} weights, {examples} examples"
        metrics = _metrics(evaluation.summary)
        if metrics:
            names = ["frechet_distance", *(name for name in metrics if name != "loss"), "loss"]
            name = next(name for name in names if name in metrics)
            return f"{evaluation.split} {name}", _digits(metrics[name]), detail
        if evaluation.summary.get("metrics") == {}:
            return f"{evaluation.split} metric", "no value", f"{detail}, no targets"
    keys = [key for key in (run.records[-1] if run.records else {}) if is_metric(key)]
    suffix = "" if run.state == "finished" else ", not yet tested"
    for key in ["val_accuracy", "val_loss", "loss", *keys]:
        series = _series(run.records, key)
        if series:
            step, value = list(series.items())[-1]
            name = key.removeprefix("val_")
            split = "validation" if name != key else "training"
            return f"{split} {name}", _digits(value), f"at step {count(step)}{suffix}"
    return "test metric", "–", "not yet tested"


def _steps_tile(run: Run) -> tuple[str, str, str]:
    if not run.records:
        return "steps", "0", "no records"
    last = run.records[-1]
    detail = [f"of {count(run.planned_steps)}"] if math.isfinite(run.planned_steps) else []
    if math.isfinite(to_float(last.get("epoch"))):
        detail.append(f"epoch {to_float(last['epoch']):.4g}")
    return "steps", count(last["step"]), ", ".join(detail)


def _time_tile(run: Run) -> tuple[str, str, str]:
    value = f"{run.seconds:.1f} s" if run.seconds < 59.5 else duration(run.seconds)
    resumes = sum(event["event"] == "resumed" for event in run.events)
    detail = [f"resumes: {resumes}"] if resumes else []
    shares = [share for share in _series(run.records, "goodput").values() if math.isfinite(share)]
    if shares:  # relative to the time since the first start, including the time between starts
        detail.append(f"goodput {shares[-1]:.0%}")
    return "wall time", value if run.seconds else "–", ", ".join(detail)


def _throughput_tile(run: Run) -> tuple[str, str, str]:
    for name in reversed(_rates(run.records)):
        values = [value for value in _series(run.records, name).values() if math.isfinite(value)]
        if values:  # the median, because the first interval includes tracing and compilation
            unit = name.removesuffix(_RATE)
            return "throughput", _digits(statistics.median(values)), f"{unit} / s, median"
    return "throughput", "–", ""


def _weights(summary: dict) -> str:
    """Returns which weights an evaluation measured, such as "final" or "best averaged"."""
    return str(summary.get("weights", "–"))


def _rates(records: list[dict]) -> list[str]:
    """Returns the names of the throughputs, samples per second first."""
    names = dict.fromkeys(key for record in records for key in record if key.endswith(_RATE))
    return sorted(names, key=lambda name: not name.startswith("samples"))


def _metrics(summary: dict) -> dict:
    metrics = summary.get("metrics")
    return metrics if isinstance(metrics, dict) else {}


def _series(records: list[dict], key: str) -> dict[float, float]:
    """Returns step -> value; uses the last record of each step."""
    return {record["step"]: to_float(record[key]) for record in records if key in record}


def _curve(name: str, lines: dict[str, dict[float, float]], labeled: bool = True) -> dict:
    return {
        "title": name.replace("_", " "),
        "drawing": figures.line_plot(lines, name),
        "captions": [(label if labeled else "", _caption(lines[label])) for label in lines],
    }


def _group_curve(group: str, lines: list[dict[float, float]]) -> dict:
    """Draws the members of a group, with the range of their last values as the caption."""
    last = [value for series in lines for value in list(series.values())[-1:]]
    finite = [value for value in last if math.isfinite(value)]
    caption = f"{len(lines)} lines"
    if finite:
        caption += f", last {_digits(min(finite))} to {_digits(max(finite))}"
    return {
        "title": group.replace("_", " ").replace("/", " "),
        "drawing": figures.group_plot(lines, group.replace("/", "_")),
        "captions": [("", caption)],
    }


def _caption(series: dict[float, float]) -> str:
    """Returns the last, lowest and highest value, and the number of values that are not finite."""
    finite = {step: value for step, value in series.items() if math.isfinite(value)}
    parts = [f"last {_digits(list(series.values())[-1])}"]
    for word, choose in (("lowest", min), ("highest", max)):
        if finite:
            step = choose(finite, key=finite.get)
            parts.append(f"{word} {_digits(finite[step])} at step {count(step)}")
    bad_steps = [step for step in series if step not in finite]
    if bad_steps:
        parts.append(
            f"not finite in {len(bad_steps)} of {len(series)} records, "
            f"first at step {bad_steps[0]:,}"
        )
    return ", ".join(parts)


def _mistakes(arrays: dict, names: list[str]) -> list[dict]:
    keys = ("worst_index", "worst_inputs", "worst_probabilities")
    if any(key not in arrays for key in keys):
        return []
    return [
        _example(arrays, names, index, pixels, probabilities)
        for index, pixels, probabilities in _first_rows(arrays, keys)
    ]


def _calibration(evaluation: Evaluation) -> dict | None:
    """Returns the drawing and the error of a split's calibration; None without confidences."""
    confidences = evaluation.arrays.get("confidences", np.zeros(0))
    if not confidences.size or not np.isfinite(confidences).all():
        return None
    correct = evaluation.arrays["labels"] == evaluation.arrays["predictions"]
    bins, error = calibration_bins(confidences, correct)
    name = f"calibration {evaluation.split}"
    return {"drawing": figures.calibration(bins, name), "error": error, "bins": BINS}


def _texts(samples: list[dict]) -> list[dict]:
    """Returns the texts of a classifier, see `trainers.evaluation.text_samples`.

    Returns:
      Dicts with the classes and probabilities as text, `correct`, and `texts`: lists of (piece,
      kind, opacity of its color), where the kind is "right" or "wrong" for a piece that supports or
      opposes the prediction, and "" for a weak one.
    """
    rows = []
    for sample in [sample for sample in samples if "texts" in sample][:_MAX_TEXTS]:
        texts = [[(str(piece), float(x)) for piece, x in text] for text in sample["texts"]]
        largest = max((abs(x) for text in texts for _, x in text), default=0.0)
        largest = largest if math.isfinite(largest) and largest else math.inf
        rows.append(
            {
                "index": count(sample["example"]),
                "true": str(sample["label"]),
                "predicted": str(sample["prediction"]),
                "correct": sample["label"] == sample["prediction"],
                "shares": [
                    f"{to_float(sample[key]):.1%}" for key in ("label_probability", "probability")
                ],
                "texts": [[_colored(piece, x / largest) for piece, x in text] for text in texts],
            }
        )
    return rows


def _colored(piece: str, share: float) -> tuple[str, str, str]:
    kind = "right" if share > _WEAK else "wrong" if share < -_WEAK else ""
    return piece, kind, f"{_OPACITY * min(abs(share), 1):.2f}"


def _heat_maps(arrays: dict, names: list[str]) -> list[dict]:
    if "heat_index" not in arrays:
        return []
    return [
        _example(arrays, names, index, figures.with_heat_map(pixels, heat))
        for index, pixels, heat in _first_rows(arrays, ("heat_index", "heat_inputs", "heat_maps"))
    ]


def _first_rows(arrays: dict, keys: tuple[str, ...]) -> Iterable[tuple]:
    return zip(*(arrays[key][:_MAX_MISTAKES] for key in keys), strict=False)


def _example(arrays: dict, names: list[str], index: int, pixels, probabilities=None) -> dict:
    """Returns one example with its labels; inputs that are not images have an empty `image`."""
    true, predicted = int(arrays["labels"][index]), int(arrays["predictions"][index])
    is_image = pixels.ndim in (2, 3)
    return {
        "index": int(index),
        "image": figures.image(pixels) if is_image else "",
        "small": is_image and max(pixels.shape[:2]) <= _SMALL_IMAGE,
        "true": names[true],
        "predicted": names[predicted],
        "correct": true == predicted,
        "shares": None if probabilities is None
        else (f"{probabilities[true]:.1%}", f"{probabilities[predicted]:.1%}"),
    }  # fmt: skip


def _digits(value) -> str:
    """Returns a number with about four digits, or any other value as text."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return str(value)
    try:
        value = float(value)
    except OverflowError:  # JSON allows integers of any size
        value = math.inf
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else str(value)
    if not value:
        return "0"
    if not 1e-3 <= abs(value) < 1e9:
        return f"{value:.3g}"
    return f"{value:,.{4 if abs(value) < 10 else 2 if abs(value) < 1000 else 0}f}"
