"""Writes HTML pages about compressed models; does not import TensorFlow."""

from pathlib import Path

from trainers.compress_jobs.table import format_value, rows
from trainers.report import figures
from zoo.pages import render


def write_page(record: dict, path: Path) -> None:
    """Writes the page of one compression.

    Args:
      record: content of compression.json, see `trainers.compress_jobs.summary`.
      path: HTML file to write.
    """
    before, after = record["before"], record["after"]
    name = f"{record['split']} {record['metric']}"
    tiles = [(name, *_change(*(side["test"].get(record["metric"]) for side in (before, after))))]
    tiles += [_ratio_tile(key, before[key], after[key], "B") for key in ("bytes", "gzip_bytes")]
    ratios = {key: after[key] / before[key] for key in ("nonzeros", "bytes", "gzip_bytes")}
    times = before["milliseconds"], after["milliseconds"]
    if all(times):
        tiles.append(_ratio_tile("time per sample, 1 thread", times[0]["1"], times[1]["1"], "ms"))
        ratios |= {f"ms, {n} thread{'s' * (n != '1')}": times[1][n] / times[0][n] for n in times[0]}
    render.write_page(
        path,
        "trainers.compress_jobs",
        "compression.html",
        record=record,
        source=Path(record["from"]).name,
        file_kind={"litert": "the LiteRT file", "keras": "model.keras"}[after["file"]],
        tiles=tiles,
        remarks=[f"{s}: {record[s]['remark']}" for s in ("before", "after") if record[s]["remark"]],
        drawing=figures.bars(ratios, "ratios"),
        rows=[
            (name, format_value(old), format_value(new), note)
            for name, old, new, note in rows(record)
        ],
    )


def write_comparison(comparison: dict, path: Path) -> None:
    """Writes the page that compares several compressed models.

    Args:
      comparison: result of `trainers.compress_jobs.compare.compare`.
      path: HTML file to write.
    """
    numbered_models = list(enumerate(comparison["models"], 1))
    sizes = {
        "gzip bytes": lambda model: model["gzip_bytes"],
        "milliseconds per sample, 1 thread": lambda model: (model["milliseconds"] or {}).get("1"),
    }
    plots = []
    for title, size in sizes.items():
        points = [
            (size(model), model["metric"], str(number), model["front"])
            for number, model in numbered_models
            if size(model) is not None and model["metric"] is not None
        ]
        if points:
            plots.append((title, figures.scatter(points, title, comparison["metric"], title)))
    cells = [
        [
            str(number),
            model["name"] + (" ★" if model["front"] else ""),
            *(
                format_value(model[k])
                for k in ("metric", "parameters", "nonzeros", "bytes", "gzip_bytes")
            ),
            *(format_value((model["milliseconds"] or {}).get(n)) for n in ("1", "2")),
            "–" if model["speed"] is None else f"{model['speed']:.2f}x",
        ]
        for number, model in numbered_models
    ]
    values = {"comparison": comparison, "plots": plots, "rows": cells}
    render.write_page(path, "trainers.compress_jobs", "comparison.html", **values)


def _change(before: float | None, after: float | None) -> tuple[str, str]:
    """Returns a metric after compression as text, and its change if both values are known."""
    both_known = before is not None and after is not None
    return format_value(
        after
    ), f"before {format_value(before)}, {after - before:+.2g}" if both_known else ""


def _ratio_tile(key: str, before: float, after: float, unit: str) -> tuple[str, str, str]:
    effect = "the speed" if unit == "ms" else "smaller"
    detail = f"{format_value(before)} {unit} to {format_value(after)} {unit}"
    return key.replace("_", " "), f"{before / after:.2f}x {effect}", detail
