"""Compares several compressed models and finds their Pareto front."""

from collections.abc import Sequence
from pathlib import Path

from trainers.compress_jobs.table import format_value
from trainers.run.workdir import read_config
from zoo.errors import RunError, UsageError
from zoo.storage.disk import read_object


def compare(folders: Sequence[str]) -> dict:
    """Compares work directories of `zoo compress` with the same task and dataset.

    Returns:
      Dict with task, split, metric, mode and models: a list of dicts with name, metric, parameters,
      nonzeros, file, bytes, gzip_bytes, milliseconds, speed (relative to the float file at one
      thread; None if there is no such file) and front: whether no other model with this kind of
      file is as good in metric, gzip_bytes and speed, and better in one. The originals come first.

    Raises:
      UsageError: if a folder is not a work directory of `zoo compress`, or has another task,
        dataset or split than the first.
    """
    summaries = [(folder, _read(folder)) for folder in folders]
    first_folder, first = summaries[0]
    for folder, summary in summaries:
        for key, description in (("task", "task"), ("data", "dataset"), ("split", "split")):
            if summary[key] != first[key]:
                values = [str(x[key])[:12] for x in (summary, first)]
                raise UsageError(
                    f"zoo compress compare requires models of the same {description}. Received: "
                    f"{values[0]} in {folder}, {values[1]} in {first_folder}."
                )
    originals, models = {}, []
    for folder, summary in summaries:
        originals.setdefault(summary["from"], _row(summary["from"], summary, "before"))
        models.append(_row(f"{Path(folder).name} ({summary['method']})", summary, "after"))
    models = [*originals.values(), *models]
    for model in models:
        model["front"] = not any(
            _dominates(other, model, first["mode"]) for other in models if other is not model
        )
    return {**{key: first[key] for key in ("task", "split", "metric", "mode")}, "models": models}


def _read(folder: str) -> dict:
    read_config(folder)
    path = Path(folder) / "compression.json"
    if not path.exists():
        raise UsageError(
            f"{folder} has no compression.json. Run zoo compress METHOD WORKDIR --out={folder}, "
            "which writes the file."
        )
    keys = ("task", "data", "split", "from", "method", "mode")
    summary = read_object(path, **dict.fromkeys(keys, str))
    try:
        for side in ("before", "after"):
            _dominates(*2 * [_row("", summary, side)], summary["mode"])
    except (LookupError, TypeError, AttributeError, ArithmeticError):
        raise RunError(f"{path} is damaged. Delete the file and run zoo compress again.") from None
    return summary


def _row(name: str, summary: dict, side: str) -> dict:
    measurements = summary[side]
    before, now = (summary[x]["milliseconds"] for x in ("before", side))
    keys = ("parameters", "nonzeros", "file", "bytes", "gzip_bytes", "milliseconds")
    return {
        "name": name,
        "metric": measurements["test"].get(summary["metric"]),
        **{key: measurements[key] for key in keys},
        "speed": before["1"] / now["1"] if before and now else None,
    }


def _dominates(first: dict, second: dict, mode: str) -> bool:
    """Returns whether `first` is as good as `second` in each value and better in at least one."""
    sign = 1 if mode == "max" else -1

    def values(row):
        unknown = float("-inf")
        metric = unknown if row["metric"] is None else sign * row["metric"]
        return metric, -row["gzip_bytes"], unknown if row["speed"] is None else row["speed"]

    if first["file"] != second["file"]:
        return False
    pairs = list(zip(values(first), values(second), strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def comparison_table(comparison: dict) -> str:
    """Returns a text table with one line per model; a star marks the models of the Pareto front."""
    metric = f"{comparison['split']} {comparison['metric']}".strip()
    lines = [("", metric, "file", "bytes", "gzip_bytes", "nonzeros", "ms, 1 thread", "speed")]
    lines += [
        (
            f"{'*' if model['front'] else ' '} {model['name']}",
            format_value(model["metric"]),
            model["file"],
            *(format_value(model[key]) for key in ("bytes", "gzip_bytes", "nonzeros")),
            format_value((model["milliseconds"] or {}).get("1")),
            "–" if model["speed"] is None else f"{model['speed']:.2f}x",
        )
        for model in comparison["models"]
    ]
    width = max(len(line[0]) for line in lines)
    text = "\n".join(
        f"{line[0]:{width}}" + "".join(f"{cell:>14}" for cell in line[1:]) for line in lines
    )
    rule = f"at least as good in {comparison['metric']}, size and speed, and better in one of them"
    return f"{text}\n* no other model is {rule}"
