"""One self-contained HTML page about a run, from its work directory alone.

It loads neither TensorFlow nor Keras, and a run that is still going, or that was killed while
writing, gets a page too: what cannot be read becomes one line under the headline.
"""

import dataclasses
import datetime
import html
import io
import json
import math
from pathlib import Path

import numpy as np

from trainers import report_sections as sections
from trainers.foreign import check_has_config, refuse_foreign
from zoo.data.arrays import open_npz
from zoo.data.bounds import JSON_EXPANSION
from zoo.data.disk import atomic, read_bytes, read_json
from zoo.errors import RunError, short
from zoo.locks import is_held

_MOST_CLASSES = 2000  # a matrix of all pairs is computed and drawn
_MOST_SHEETS = 12


@dataclasses.dataclass
class Evaluation:
    """One split: its JSON file, its npz file and its samples, any of which may be empty."""

    split: str
    summary: dict
    arrays: dict
    samples: list[dict] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Run:
    """What could be read from a work directory.

    Attributes:
      model: the model's name.
      source: the recipe's name, such as `cnn_mnist:debug`.
      planned_steps: the recipe's `trainer.steps`, infinity where it counts epochs instead.
      config: the nested recipe.
      facts: title -> name -> value: what the run knew of its data.
      environment: what the run saw of its machine.
      records: the lines of metrics.jsonl that hold numbers, in order of their `step`.
      events: the lines of metrics.jsonl that hold an `event`, in the order written.
      seconds: wall time in training, all starts of the run together.
      evaluations: one a split.
      pictures: title -> PNG file's content: sheets that were made in training.
      state: `finished`, `going` or `stopped`.
      updated: when metrics.jsonl was last written, or None.
      notes: one line for each file that could not be read whole.
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
    pictures: dict[str, bytes]
    state: str
    updated: datetime.datetime | None
    notes: list[str]


def write_report(workdir: str | Path) -> Path:
    """Writes `WORKDIR/report.html` and returns its path.

    Raises:
      UsageError: if `workdir` holds no config.json, and so is no work directory.
    """
    workdir = Path(workdir)
    content = _page(read_run(workdir))
    path = workdir / "report.html"
    with atomic(path) as file:
        file.write(content.encode("utf-8", "replace"))
    return path


def read_run(workdir: Path) -> Run:
    """Reads whatever of the work directory is there; only config.json must exist."""
    check_has_config(workdir)
    notes = []
    resolved = _read_json(workdir / "config.json", notes)
    if "format_version" not in resolved:
        refuse_foreign(workdir, resolved)
    config = _part(resolved, "config")
    planned = sections.number(_part(config, "trainer").get("steps"))
    planned = planned if planned > 0 else math.inf
    metrics = workdir / "metrics.jsonl"
    records, events, seconds = _read_metrics(metrics, notes)
    written = metrics.stat().st_mtime if metrics.is_file() else None
    return Run(
        model=str(_part(config, "model").get("name", "model")),
        source=str(resolved.get("source", "")),
        planned_steps=planned,
        config=config,
        facts=_part(resolved, "facts"),
        environment=_read_json(workdir / "environment.json", notes),
        records=records,
        events=events,
        seconds=seconds,
        evaluations=_read_evaluations(workdir / "evaluation", notes),
        pictures=_read_pictures(workdir / "samples", notes),
        state=_state(workdir),
        updated=datetime.datetime.fromtimestamp(written) if written else None,
        notes=notes,
    )


def _part(config: dict, name: str) -> dict:
    part = config.get(name)
    return part if isinstance(part, dict) else {}


def _state(workdir: Path) -> str:
    if any((workdir / name).exists() for name in ("model.keras", "model.tflite")):
        return "finished"
    return "going" if is_held(workdir) else "stopped"


def _read_json(path: Path, notes: list[str]) -> dict:
    """Returns the object in a file: `{}` for no file, `{}` and a note for an unreadable one."""
    if not path.exists():
        return {}
    try:
        value = read_json(path)
    except RunError as error:
        notes.append(f"{path.name} could not be read: {short(error)}")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path.name} could not be read: it holds no JSON object")
        return {}
    return value


def _read_metrics(path: Path, notes: list[str]) -> tuple[list[dict], list[dict], float]:
    records, events, bad_lines = [], [], 0
    total_seconds = 0.0
    try:
        content = read_bytes(path, JSON_EXPANSION) if path.exists() else b""
    except RunError as error:
        notes.append(f"{path.name} could not be read: {short(error)}")
        content = b""
    lines = content.decode(errors="replace").splitlines()
    for index, line in enumerate(lines):
        row = _parse_row(line)
        if row is None:
            # A half-written last line is how a going run looks, not damage.
            bad_lines += bool(line.strip()) and index < len(lines) - 1
            continue
        if "event" in row:
            events.append(row)
            continue
        records.append(row)
        seconds = sections.number(row.get("seconds"))
        if math.isfinite(seconds):
            total_seconds = seconds
    if bad_lines:
        notes.append(f"{path.name}: {bad_lines} of {len(lines)} lines could not be read")
    return records, events, total_seconds


def _parse_row(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not math.isfinite(sections.number(row.get("step"))):
        return None
    return row


def _read_evaluations(folder: Path, notes: list[str]) -> list[Evaluation]:
    names = {path.stem for suffix in ("json", "npz") for path in folder.glob(f"*.{suffix}")}
    names = {name for name in names if not name.endswith("_samples")}
    evaluations = []
    for split in sorted(names, key=lambda name: (name != "test", name)):
        summary = _read_json(folder / f"{split}.json", notes)
        arrays = _read_arrays(folder / f"{split}.npz", notes)
        samples = _read_samples(folder / f"{split}_samples.json", notes)
        evaluations.append(Evaluation(split, summary, arrays, samples))
    return evaluations


def _read_pictures(folder: Path, notes: list[str]) -> dict[str, bytes]:
    """Returns the interpolation and some sheets, the last one first and the others far apart."""
    from PIL import Image

    steps = sorted(folder.glob("step_*.png"))[::-1]
    if len(steps) > _MOST_SHEETS:
        places = np.linspace(0, len(steps) - 1, _MOST_SHEETS).round().astype(int)
        steps = [steps[i] for i in places]
    found = {}
    for path in [folder / "interpolation.png", *steps]:
        if not path.exists():
            continue
        try:
            content = read_bytes(path)
            with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
                image.verify()
            number = path.stem.removeprefix("step_")
            title = f"step {int(number):,}" if number.isdigit() else "from one to another"
            found[title] = content
        except Exception as error:  # Pillow raises what it likes for a bad file
            notes.append(f"{path.name} could not be read: {short(error)}")
    return found


def _read_samples(path: Path, notes: list[str]) -> list[dict]:
    if not path.exists():
        return []
    try:
        rows = read_json(path)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise RunError("it holds no list of samples")
    except RunError as error:
        notes.append(f"{path.name} could not be read: {short(error)}")
        return []
    return rows


def _read_arrays(path: Path, notes: list[str]) -> dict:
    """Returns the arrays of an evaluation whose labels and predictions fit each other."""
    if not path.exists():
        return {}
    try:
        with open_npz(path) as file:
            arrays = dict(file)
        _check_arrays(arrays)
    except Exception as error:  # zipfile and NumPy raise about ten kinds for a damaged file
        notes.append(f"{path.name} could not be read: {short(error)}")
        return {}
    return arrays


def _check_arrays(arrays: dict) -> None:
    labels, predictions, names = (arrays[k] for k in ("labels", "predictions", "class_names"))
    if names.size > _MOST_CLASSES:
        raise ValueError(f"{names.size:,} classes, of which at most {_MOST_CLASSES:,} are shown")
    list(map(str, names.reshape(-1)))  # raises where they are no text
    if labels.ndim != 1 or labels.shape != predictions.shape:
        raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} do not fit")
    limits = {"labels": names.size, "predictions": names.size, "worst_index": labels.size}
    limits["heat_index"] = labels.size
    for key, limit in limits.items():
        values = arrays.get(key, np.zeros(0, int))
        if values.dtype.kind not in "iu":
            raise ValueError(f"{key} are {values.dtype}, not integers")
        if values.size and not 0 <= values.min() <= values.max() < limit:
            raise ValueError(f"{key} lie outside 0 … {limit - 1}")
    if "heat_index" in arrays:
        maps, inputs = arrays["heat_maps"], arrays["heat_inputs"]
        if (
            maps.ndim != 3
            or maps.shape != inputs.shape[:3]
            or len(maps) != len(arrays["heat_index"])
        ):
            raise ValueError(f"heat_maps {maps.shape} and heat_inputs {inputs.shape} do not fit")
    probabilities = arrays.get("worst_probabilities")
    if probabilities is not None and probabilities.shape[1:] != names.shape:
        raise ValueError(
            f"worst_probabilities {probabilities.shape} and {names.size} classes do not fit"
        )


def _classification(evaluation: Evaluation, notes: list[str]) -> str:
    try:
        return sections.classification(evaluation)
    except Exception as error:  # of pictures that are none, NumPy and Pillow raise what they like
        notes.append(f"{evaluation.split}.npz could not be drawn: {short(error)}")
        return ""


def _page(run: Run) -> str:
    classes = [_classification(evaluation, run.notes) for evaluation in run.evaluations]
    title = html.escape(f"{run.model} · {run.source}")
    body = "\n".join(
        part
        for part in (
            sections.headline(run),
            sections.notes(run.notes),
            sections.evaluation_metrics(run.evaluations),
            sections.curves(run.records),
            *classes,
            *(sections.translations(evaluation) for evaluation in run.evaluations),
            sections.samples(run.events),
            sections.pictures(run.pictures),
            sections.facts(run.facts),
            sections.events(run.events),
            sections.config(run.config),
            sections.environment(run.environment),
        )
        if part
    )
    return page(title, body, "zoo report")


def page(title: str, body: str, command: str) -> str:
    """A whole page in the report's style; `title` and `body` are HTML."""
    written = datetime.datetime.now().strftime("%Y-%m-%d %H:%M")
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{body}
</main>
<footer>Written {written} by <code>{command}</code>.</footer>
</body>
</html>
"""


_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1b2330;
  --quiet: #5d6878; --line: #e0e4ea; --training: #2563eb; --validation: #dd6b10;
  --right: 37 99 235; --wrong: 214 69 40; --warn: #fff4dc; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --card: #1b212a; --ink: #e6eaf0;
  --quiet: #98a3b3; --line: #303946; --training: #6ea3ff; --validation: #ffa657;
  --right: 59 119 240; --wrong: 226 88 60; --warn: #3a3018; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main, footer { max-width: 1080px; margin: 0 auto; padding: 0 20px; }
footer { color: var(--quiet); font-size: 13px; padding-top: 24px; padding-bottom: 32px; }
header { padding: 36px 0 8px; }
h1 { margin: 0; font-size: 30px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 40px 0 12px; font-size: 20px; }
h3 { margin: 0; font-size: 15px; overflow-wrap: anywhere; }
p { margin: 4px 0 12px; }
p, figcaption, .detail { color: var(--quiet); }
code { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.state { display: inline-block; margin-right: 8px; padding: 1px 10px; border-radius: 99px;
  background: var(--quiet); color: var(--card); font-size: 13px; font-weight: 600; }
.state.finished { background: #1d7f49; color: #ffffff; }
.state.going { background: #1d4fd7; color: #ffffff; }
.tiles, .plots, .mistakes { display: grid; gap: 16px; }
.tiles { grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); margin-top: 16px; }
.plots { grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); }
.mistakes { grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)); }
.tile, figure, .scroll { margin: 0; background: var(--card); border: 1px solid var(--line);
  border-radius: 10px; }
.tile, figure { padding: 14px 16px; }
.tile .value { font-size: 26px; font-weight: 650; line-height: 1.25; }
.detail, figcaption { font-size: 13px; overflow-wrap: anywhere; }
figure svg { display: block; width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; font-family: system-ui, sans-serif !important; }
figure.matrix { max-width: 760px; }
figure img { display: block; width: 100%; margin-bottom: 8px; border-radius: 4px; }
figure img.small { image-rendering: pixelated; }
.key { font-weight: 600; white-space: nowrap; }
.key.training { color: var(--training); }
.key.validation { color: var(--validation); }
.scroll { overflow: auto; width: fit-content; max-width: 100%; }
.scroll.long { max-height: 620px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
tr:last-child > * { border-bottom: 0; }
thead th { position: sticky; top: 0; background: var(--card); color: var(--quiet);
  font-size: 13px; }
th { font-weight: 600; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.text { overflow-wrap: anywhere; }
tr.group th { padding-top: 14px; color: var(--quiet); font-size: 13px; }
table.confusion th, table.confusion td { padding: 6px 10px; text-align: center; }
table.confusion tbody th { text-align: right; }
.right { background: rgb(var(--right) / var(--share)); }
.wrong { background: rgb(var(--wrong) / var(--share)); }
.strong { color: #ffffff; }
.samples { display: grid; gap: 16px; max-height: 760px; overflow: auto; }
pre { margin: 8px 0 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext;
  font: 13px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.none { color: var(--quiet); opacity: 0.5; }
.notes { margin: 16px 0 0; padding: 10px 16px 10px 32px; background: var(--warn);
  border-radius: 10px; }
"""
