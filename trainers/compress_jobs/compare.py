"""Several compressed models beside each other: which of them are worth having."""

from collections.abc import Sequence
from pathlib import Path

from trainers.compress_jobs.table import shown
from trainers.run.workdir import read_config
from zoo.errors import RunError, UsageError
from zoo.storage.disk import read_json


def compare(folders: Sequence[str]) -> dict:
    """Reads what `zoo compress` wrote into work directories of one task and one data set.

    Returns:
      task, split, metric, mode; models: a list of name, metric, parameters, nonzeros, file, bytes,
      gzip_bytes, milliseconds, speed (how many times that of its float file at one thread; None
      where there is no such file), and `front`: whether no other model with the same kind of file
      is as good in metric, gzip_bytes and speed, and better in one of them. The models that were
      compressed come first.

    Raises:
      UsageError: where a folder is no work directory of `zoo compress`, or of another task, data
        set or split than the first.
    """
    read = [(folder, _read(folder)) for folder in folders]
    first_folder, first = read[0]
    for folder, found in read[1:]:
        for key, what in (("task", "the task"), ("data", "the data set"), ("split", "the split")):
            if found[key] != first[key]:
                short = (str(x[key])[:12] for x in (found, first))
                raise UsageError(
                    f"Models of one task and data set are compared: {what} of {folder} is "
                    f"{next(short)}, that of {first_folder} {next(short)}."
                )
    originals, models = {}, []
    for folder, found in read:
        originals.setdefault(found["from"], _row(found["from"], found, "before"))
        models.append(_row(f"{Path(folder).name} ({found['method']})", found, "after"))
    models = [*originals.values(), *models]
    for model in models:
        model["front"] = not any(
            _beats(other, model, first["mode"]) for other in models if other is not model
        )
    return {**{key: first[key] for key in ("task", "split", "metric", "mode")}, "models": models}


def _read(folder: str) -> dict:
    read_config(folder)
    path = Path(folder) / "compression.json"
    if not path.exists():
        raise UsageError(
            f"{folder} has no compression.json: `zoo compress METHOD WORKDIR --out={folder}` "
            "writes it."
        )
    found = read_json(path)
    try:
        for side in ("before", "after"):
            _beats(*2 * [_row("", found, side)], found["mode"])
        if all(isinstance(found[key], str) for key in ("task", "data", "split", "from", "method")):
            return found
    except (LookupError, TypeError, AttributeError, ArithmeticError):
        pass
    raise RunError(f"{path} is damaged: it is no record of `zoo compress`.")


def _row(name: str, found: dict, side: str) -> dict:
    facts = found[side]
    before, now = (found[x]["milliseconds"] for x in ("before", side))
    keys = ("parameters", "nonzeros", "file", "bytes", "gzip_bytes", "milliseconds")
    return {
        "name": name,
        "metric": facts["test"].get(found["metric"]),
        **{key: facts[key] for key in keys},
        "speed": before["1"] / now["1"] if before and now else None,
    }


def _beats(one: dict, other: dict, mode: str) -> bool:
    """Whether `one` is nowhere worse than `other`, and somewhere better."""
    sign = 1 if mode == "max" else -1

    def values(row):
        unknown = float("-inf")
        metric = unknown if row["metric"] is None else sign * row["metric"]
        return metric, -row["gzip_bytes"], unknown if row["speed"] is None else row["speed"]

    if one["file"] != other["file"]:
        return False
    pairs = list(zip(values(one), values(other), strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def comparison_table(found: dict) -> str:
    """A line a model; a star for those of the front."""
    metric = f"{found['split']} {found['metric']}".strip()
    head = ("", metric, "file", "bytes", "gzip_bytes", "nonzeros", "ms, 1 thread", "speed")
    lines = [head]
    for model in found["models"]:
        times, speed = model["milliseconds"] or {}, model["speed"]
        lines.append(
            (
                f"{'*' if model['front'] else ' '} {model['name']}",
                shown(model["metric"]),
                model["file"],
                *(shown(model[key]) for key in ("bytes", "gzip_bytes", "nonzeros")),
                shown(times.get("1")),
                "–" if speed is None else f"{speed:.2f}x",
            )
        )
    width = max(len(line[0]) for line in lines)
    text = "\n".join(
        f"{line[0]:{width}}" + "".join(f"{cell:>14}" for cell in line[1:]) for line in lines
    )
    return f"{text}\n* no other is as good in {found['metric']}, size and speed, and better in one"
