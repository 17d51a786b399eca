"""The sections of the report: each turns data into HTML, or into "" where there is no data."""

import html
import json
import math
import statistics

import numpy as np

from trainers.report import figures

_NOT_METRICS = {"step", "epoch", "seconds", "skipped_steps", "goodput"}
_RATE = "_per_second"
_LARGEST_SAMPLES = 200
_LARGEST_TABLE = 20
_MOST_MISTAKES = 36  # as an evaluation keeps
_MOST_PLOTS = 60  # of metrics, and of rates: each takes 30 ms


def number(value) -> float:
    """Returns a JSON value as a float, NaN for what is no number or too large to draw."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return math.nan
    return float(value) if abs(value) < 1e30 else math.nan


def headline(run) -> str:
    """The model, its recipe, its state and the numbers that people ask for first."""
    tiles = [_metric_tile(run), _steps_tile(run), _time_tile(run), _throughput_tile(run)]
    updated = f", last record {run.updated:%Y-%m-%d %H:%M}" if run.updated else ""
    recipe = f"recipe <code>{_text(run.source)}</code>" if run.source else "recipe unknown"
    return (
        f"<header><h1>{_text(run.model)}</h1>"
        f'<p><span class="state {run.state}">{run.state}</span>{recipe}{updated}</p>'
        f'<div class="tiles">{"".join(tiles)}</div></header>'
    )


def notes(lines: list[str]) -> str:
    if not lines:
        return ""
    return f'<ul class="notes">{"".join(f"<li>{_text(line)}</li>" for line in lines)}</ul>'


def evaluation_metrics(evaluations) -> str:
    """A row a split with all its metrics."""
    summaries = [(e.split, e.summary, _metrics(e.summary)) for e in evaluations if e.summary]
    names = list(dict.fromkeys(name for _, _, metrics in summaries for name in metrics))
    if not names:
        return ""
    rows = [
        [_text(split), _text(_weights(summary))]
        + [_count(summary.get("step")), _count(summary.get("examples"))]
        + [_short(metrics[name]) if name in metrics else "–" for name in names]
        for split, summary, metrics in summaries
    ]
    head = ["split", "weights", "step", "examples", *map(_text, names)]
    return section("Evaluation", table(head, rows, text_columns=2))


def curves(records: list[dict]) -> str:
    """A plot a metric, training and validation together, then learning rate and throughput."""
    keys = dict.fromkeys(
        key for record in records for key, value in record.items() if not isinstance(value, str)
    )
    metrics = [key.removeprefix("val_") for key in keys if _is_metric(key)]
    metrics = sorted(dict.fromkeys(metrics), key=lambda name: name != "loss")
    rates = [*(key for key in keys if key.startswith("learning_rate")), *_rates(records)]
    more = max(0, len(metrics) - _MOST_PLOTS) + max(0, len(rates) - _MOST_PLOTS)
    plots = [
        _curve(name, {"training": _series(records, name),
                      "validation": _series(records, f"val_{name}")}, named=True)
        for name in metrics[:_MOST_PLOTS]
    ]  # fmt: skip
    for name in (*rates[:_MOST_PLOTS], "skipped_steps"):
        series = _series(records, name)
        if name != "skipped_steps" or any(series.values()):
            plots.append(_curve(name, {"training": series}))
    plots = "".join(plots)
    note = f"<p>{_count(more)} more lie in metrics.jsonl.</p>" if more else ""
    return section("Curves", f'<div class="plots">{plots}</div>{note}') if plots else ""


def classification(evaluation) -> str:
    """Confusion matrix, per-class table and the worst mistakes of one split."""
    arrays = evaluation.arrays
    if not arrays or not arrays["labels"].size:
        return ""
    # Half the time of a report: loaded only where classes are.
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    names = [str(name) for name in arrays["class_names"]]
    labels, predictions, classes = arrays["labels"], arrays["predictions"], range(len(names))
    counts = confusion_matrix(labels, predictions, labels=classes)
    scores = precision_recall_fscore_support(
        labels, predictions, labels=classes, zero_division=np.nan
    )
    split = evaluation.split
    explained = "Rows are the true class, columns the predicted one; colour is the row's share."
    return (
        section(
            f"Confusion matrix, {split}", f"<p>{explained}</p>{_confusion(split, counts, names)}"
        )
        + section(f"Classes, {split}", _class_table(scores, names))
        + _mistakes(split, arrays, names)
        + _heat(split, arrays, names)
    )


def translations(evaluation) -> str:
    """What a model made of each source of a split, beside the reference; the first ones."""
    rows = evaluation.samples[:_LARGEST_SAMPLES]
    names = [name for name in ("source", "prediction", "reference") if rows and name in rows[0]]
    cells = [[_text(row.get(name, "")) for name in names] for row in rows]
    more = len(evaluation.samples) - len(rows)
    note = f"<p>{_count(more)} more lie in evaluation/.</p>" if more else ""
    title = f"Samples, {evaluation.split}"
    return section(title, table(names, cells, len(names)) + note) if cells else ""


def samples(rows: list[dict]) -> str:
    """What a text model wrote at each evaluation, the last one first."""
    rows = [row for row in rows if row["event"] == "sample" and "detail" in row]
    cards = [
        f"<figure><h3>step {_count(row['step'])}</h3>"
        f"<pre>{_text(row.get('detail', ''))}</pre></figure>"
        for row in reversed(rows)
    ]
    return section("Samples", f'<div class="samples">{"".join(cards)}</div>') if cards else ""


def pictures(sheets: dict[str, bytes]) -> str:
    """What a model of pictures made at evaluations, and its way between pictures."""
    cards = [
        f"<figure><h3>{_text(title)}</h3>{figures.png(data, title)}</figure>"
        for title, data in sheets.items()
    ]
    return section("Pictures", f'<div class="samples">{"".join(cards)}</div>') if cards else ""


def facts(groups: dict) -> str:
    """What the run knew of its data, such as its tokenizer, a table each."""
    return "".join(
        section(title, _pairs([_pair(key, value) for key, value in _flat(values)]))
        for title, values in groups.items()
        if isinstance(values, dict) and values
    )


def events(rows: list[dict]) -> str:
    rows = [row for row in rows if row["event"] != "sample"]
    cells = [[_count(r["step"]), _text(r["event"]), _text(r.get("detail", ""))] for r in rows]
    return section("Events", table(["step", "event", "detail"], cells, 0)) if cells else ""


def config(recipe: dict) -> str:
    """The resolved recipe, a group of rows for each of its parts."""
    rows = []
    for part, values in recipe.items():
        if not isinstance(values, dict):
            rows.append(_pair(part, values))
            continue
        rows.append(f'<tr class="group"><th colspan="2">{_text(part)}</th></tr>')
        rows += [_pair(key, value) for key, value in _flat(values)]
    return section("Recipe", _pairs(rows)) if rows else ""


def environment(values: dict) -> str:
    rows = [_pair(key, value) for key, value in _flat(values)]
    return section("Environment", _pairs(rows)) if rows else ""


def _metric_tile(run) -> str:
    """The first metric of the test split that is no loss (those of a GAN that come first are)."""
    for evaluation in run.evaluations:
        examples = _count(evaluation.summary.get("examples"))
        detail = f"{_weights(evaluation.summary)} weights, {examples} examples"
        metrics = _metrics(evaluation.summary)
        if metrics:
            names = ["frechet_distance", *(name for name in metrics if name != "loss"), "loss"]
            name = next(name for name in names if name in metrics)
            return tile(f"{evaluation.split} {name}", _short(metrics[name]), detail)
        if evaluation.summary.get("metrics") == {}:
            return tile(f"{evaluation.split} metric", "no value", f"{detail}, none with a target")
    keys = [key for key in (run.records[-1] if run.records else {}) if _is_metric(key)]
    waiting = "" if run.state == "finished" else ", not yet tested"
    for key in ["val_accuracy", "val_loss", "loss", *keys]:
        series = _series(run.records, key)
        if series:
            step, value = list(series.items())[-1]
            name = key.removeprefix("val_")
            split = "validation" if name != key else "training"
            return tile(f"{split} {name}", _short(value), f"at step {_count(step)}{waiting}")
    return tile("test metric", "–", "not yet tested")


def _weights(summary: dict) -> str:
    """Which weights an evaluation measured: "final", "best averaged", …"""
    return str(summary.get("weights", summary.get("checkpoint", "–")))


def _steps_tile(run) -> str:
    if not run.records:
        return tile("steps", "0", "nothing recorded")
    planned = run.planned_steps
    last = run.records[-1]
    detail = [f"of {_count(planned)}"] if math.isfinite(planned) else []
    if math.isfinite(number(last.get("epoch"))):
        detail.append(f"epoch {number(last['epoch']):.4g}")
    return tile("steps", _count(last["step"]), ", ".join(detail))


def _time_tile(run) -> str:
    seconds = round(run.seconds)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    if not run.seconds:
        value = "–"
    elif seconds < 60:
        value = f"{run.seconds:.1f} s"
    else:
        value = f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds % 60} s"
    resumes = sum(event["event"] == "resumed" for event in run.events)
    said = [f"resumes: {resumes}"] if resumes else []
    shares = [share for share in _series(run.records, "goodput").values() if math.isfinite(share)]
    if shares:  # of the time since the first start, also that between two starts
        said.append(f"goodput {shares[-1]:.0%}")
    return tile("wall time", value, ", ".join(said))


def _throughput_tile(run) -> str:
    # The median, because the first interval holds tracing and compilation.
    for name in reversed(_rates(run.records)):
        values = [value for value in _series(run.records, name).values() if math.isfinite(value)]
        if values:
            unit = name.removesuffix(_RATE)
            return tile("throughput", _short(statistics.median(values)), f"{unit} / s, median")
    return tile("throughput", "–", "")


def tile(name: str, value: str, detail: str) -> str:
    """A number that is looked for first; `value` is HTML."""
    return (
        f'<div class="tile"><div class="detail">{_text(name)}</div>'
        f'<div class="value">{value}</div><div class="detail">{_text(detail)}</div></div>'
    )


def _is_metric(key: str) -> bool:
    plain = key not in _NOT_METRICS and not key.startswith("learning_rate")
    return plain and not key.endswith(_RATE)


def _rates(records: list[dict]) -> list[str]:
    """Names of the throughputs, that in samples first."""
    names = dict.fromkeys(key for record in records for key in record if key.endswith(_RATE))
    return sorted(names, key=lambda name: not name.startswith("samples"))


def _metrics(summary: dict) -> dict:
    metrics = summary.get("metrics")
    return metrics if isinstance(metrics, dict) else {}


def _series(records: list[dict], key: str) -> dict[float, float]:
    """Returns step -> value; the last account of a step holds."""
    return {record["step"]: number(record[key]) for record in records if key in record}


def _curve(name: str, lines: dict[str, dict[float, float]], named: bool = False) -> str:
    """Draws a metric of the splits that have it; `named` names the split of a single line too."""
    lines = {label: series for label, series in lines.items() if series}
    if not lines:
        return ""
    title = _text(name.replace("_", " "))
    captions = [_curve_caption(label if named else "", lines[label]) for label in lines]
    return (
        f"<figure><h3>{title}</h3>{figures.line_plot(lines, name)}"
        f"<figcaption>{'<br>'.join(captions)}</figcaption></figure>"
    )


def _curve_caption(label: str, series: dict[float, float]) -> str:
    """Last, lowest and highest value, and where the line breaks, for NaN cannot be drawn."""
    finite = {step: value for step, value in series.items() if math.isfinite(value)}
    parts = [f"last {_short(list(series.values())[-1])}"]
    for word, choose in (("lowest", min), ("highest", max)):
        if finite:
            step = choose(finite, key=finite.get)
            parts.append(f"{word} {_short(finite[step])} at step {_count(step)}")
    broken = [step for step in series if step not in finite]
    if broken:
        parts.append(
            f"not finite in {len(broken)} of {len(series)} records, first at step {broken[0]:,}"
        )
    key = f'<span class="key {label}">{label}</span> ' if label else ""
    return key + ", ".join(parts)


def _confusion(split: str, counts: np.ndarray, names: list[str]) -> str:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    if len(names) <= _LARGEST_TABLE:
        return _confusion_table(counts, shares, names)
    right = np.trace(counts) / counts.sum()
    caption = f"{len(names)} classes by number; {right:.2%} of the examples lie on the diagonal."
    drawing = figures.matrix(shares, f"confusion {split}")
    return f'<figure class="matrix">{drawing}<figcaption>{caption}</figcaption></figure>'


def _confusion_table(counts: np.ndarray, shares: np.ndarray, names: list[str]) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in names)
    rows = []
    for row, name in enumerate(names):
        cells = [
            _confusion_cell(int(counts[row, column]), shares[row, column], row == column)
            for column in range(len(names))
        ]
        rows.append(f"<tr><th>{_text(name)}</th>{''.join(cells)}</tr>")
    return (
        '<div class="scroll"><table class="confusion">'
        f"<thead><tr><th>true \\ predicted</th>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _confusion_cell(count: int, share: float, right: bool) -> str:
    if not count:
        return '<td class="none">0</td>'
    # A floor, so that a single mistake among thousands is still seen.
    style = f"{'right' if right else 'wrong'}{' strong' if share > 0.5 else ''}"
    return (
        f'<td class="{style}" style="--share: {0.12 + 0.88 * share:.2f}" '
        f'title="{share:.1%} of the row">{count:,}</td>'
    )


def _class_table(scores, names: list[str]) -> str:
    """`scores` are precision, recall, F1 and support, each of shape (classes,)."""
    order = list(range(len(names)))
    shown = [_text(name) for name in names]
    hint = ""
    if len(names) > _LARGEST_TABLE:  # The worst are looked for, and the image has only numbers.
        order.sort(key=lambda index: (math.isnan(scores[2][index]), scores[2][index]))
        shown = [f"{index} · {name}" for index, name in enumerate(shown)]
        hint = "<p>Lowest F1 first.</p>"
    rows = [
        [shown[index]]
        + [_defined(score[index]) for score in scores[:3]]
        + [_count(int(scores[3][index]))]
        for index in order
    ]
    return hint + table(["class", "precision", "recall", "F1", "support"], rows)


def _mistakes(split: str, arrays: dict, names: list[str]) -> str:
    """The worst mistakes as cards; inputs that are no pictures get a card of words."""
    keys = ("worst_index", "worst_inputs", "worst_probabilities")
    if any(key not in arrays or not len(arrays[key]) for key in keys):
        return ""
    cards = []
    shown = [arrays[key][:_MOST_MISTAKES] for key in keys]
    for index, pixels, probabilities in zip(*shown, strict=False):
        true, predicted = int(arrays["labels"][index]), int(arrays["predictions"][index])
        caption = (
            f"true <b>{_text(names[true])}</b> {probabilities[true]:.1%}<br>"
            f"predicted <b>{_text(names[predicted])}</b> {probabilities[predicted]:.1%}"
        )
        alternative = _text(f"{split} example {index}")
        picture = figures.picture(pixels, alternative) if pixels.ndim in (2, 3) else ""
        cards.append(
            f"<figure>{picture}<figcaption>{caption}<br>example {index}</figcaption></figure>"
        )
    intro = "Most confident wrong answers first, with the model's probability for each class."
    return section(
        f"Worst mistakes, {split}", f'<p>{intro}</p><div class="mistakes">{"".join(cards)}</div>'
    )


def _heat(split: str, arrays: dict, names: list[str]) -> str:
    """Where the model saw what it took a picture for: a strip of pairs, the picture left."""
    if "heat_index" not in arrays:
        return ""
    cards = []
    keys = ("heat_index", "heat_inputs", "heat_maps")
    shown = [arrays[key][:_MOST_MISTAKES] for key in keys]
    for index, pixels, heat in zip(*shown, strict=True):
        true, predicted = int(arrays["labels"][index]), int(arrays["predictions"][index])
        caption = f"predicted <b>{_text(names[predicted])}</b>"
        if true != predicted:
            caption += f", true <b>{_text(names[true])}</b>"
        picture = figures.picture(figures.warmed(pixels, heat), _text(f"{split} example {index}"))
        cards.append(
            f"<figure>{picture}<figcaption>{caption}<br>example {index}</figcaption></figure>"
        )
    intro = (
        "Bright is what spoke for the predicted class (Grad-CAM): of each class the surest right "
        "answer, then the worst mistakes."
    )
    return section(
        f"Where it looks, {split}", f'<p>{intro}</p><div class="mistakes">{"".join(cards)}</div>'
    )


def section(title: str, content: str) -> str:
    """A heading and HTML under it."""
    return f"<section><h2>{_text(title)}</h2>{content}</section>"


def table(head: list[str], rows: list[list[str]], text_columns: int = 1) -> str:
    """Cells are HTML already; those from `text_columns` on are numbers, all text for 0."""
    text_columns = text_columns or len(head)
    style = ["text" if column < text_columns else "number" for column in range(len(head))]
    long = " long" if len(rows) > _LARGEST_TABLE else ""
    top = "".join(f'<th class="{s}">{cell}</th>' for s, cell in zip(style, head, strict=True))
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{s}">{cell}</td>' for s, cell in zip(style, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll{long}"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _pairs(rows: list[str]) -> str:
    return f'<div class="scroll"><table><tbody>{"".join(rows)}</tbody></table></div>'


def _pair(key: str, value) -> str:
    shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f'<tr><th>{_text(key)}</th><td class="text"><code>{_text(shown)}</code></td></tr>'


def _flat(values: dict, prefix: str = ""):
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value) -> str:
    return html.escape(str(value))


def _count(value) -> str:
    value = number(value)
    return f"{value:,.0f}" if math.isfinite(value) else "–"


def _defined(value: float) -> str:
    """A score that has nothing to be computed from is a dash, not a zero."""
    return "–" if math.isnan(value) else _short(float(value))


def _short(value) -> str:
    """Four digits or so; NaN is shown as such, for it is the news."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return _text(value)
    try:
        value = float(value)
    except OverflowError:  # JSON holds integers of any size
        value = math.inf
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else _text(value)
    if not value:
        return "0"
    if not 1e-3 <= abs(value) < 1e9:
        return f"{value:.3g}"
    return f"{value:,.{4 if abs(value) < 10 else 2 if abs(value) < 1000 else 0}f}"
