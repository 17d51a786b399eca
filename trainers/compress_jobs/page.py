"""HTML pages about compressed models, in the style of `trainers.report.page`; loads no TensorFlow."""

import html
from pathlib import Path

from trainers.report import figures as report_figures
from trainers.report import page as report
from trainers.report import sections
from zoo.storage.disk import atomic


def write_page(found: dict, path: Path) -> None:
    """Writes the page of one compression; `found` as `trainers.compress_jobs.summary` has it."""
    from trainers.compress_jobs.summary import rows, shown

    before, after = found["before"], found["after"]
    name = html.escape(found["metric"])
    values = [side["test"].get(found["metric"]) for side in (before, after)]
    tiles = [sections.tile(f"{found['split']} {name}", *_changed(values))]
    for key in ("bytes", "gzip_bytes"):
        tiles.append(_ratio_tile(key.replace("_", " "), before[key], after[key], "smaller", "B"))
    times = [side["milliseconds"] for side in (before, after)]
    if all(times):
        tiles.append(
            _ratio_tile("a sample, 1 thread", times[0]["1"], times[1]["1"], "the speed", "ms")
        )
    bars = {key: after[key] / before[key] for key in ("nonzeros", "bytes", "gzip_bytes")}
    if all(times):
        bars |= {f"ms, {n} threads": times[1][n] / times[0][n] for n in times[0]}
    cells = [[html.escape(n), shown(a), shown(b), html.escape(c)] for n, a, b, c in rows(found)]
    remarks = [f"{side}: {found[side]['remark']}" for side in ("before", "after")]
    plot = (
        f'<div class="plots"><figure>{report_figures.bars(bars, "ratios")}<figcaption>After, as a '
        "share of before; shorter is smaller or faster.</figcaption></figure></div>"
    )
    body = [
        _header(f"{found['method']} of {Path(found['from']).name}", _about(found), tiles),
        sections.notes([r for r in remarks if not r.endswith(": ")]),
        sections.section("Of what it was", plot),
        sections.section("Before and after", sections.table(["", "before", "after", ""], cells)),
    ]
    _write(path, f"{found['method']} of {found['from']}", body)


def write_comparison(found: dict, path: Path) -> None:
    """Writes the page of several; `found` as `trainers.compress_jobs.compare` has it."""
    from trainers.compress_jobs.summary import shown

    models, metric = found["models"], found["metric"]
    plots = []
    for key, title in (("gzip_bytes", "gzip bytes"), ("ms", "milliseconds a sample, 1 thread")):
        points = [
            (_value(m, key), m["metric"], str(number), m["front"])
            for number, m in enumerate(models, 1)
            if _value(m, key) is not None and m["metric"] is not None
        ]
        if points:
            drawing = report_figures.scatter(points, title, metric, f"front of {key}")
            plots.append(f"<figure><h3>{html.escape(metric)} by {title}</h3>{drawing}</figure>")
    cells = [
        [
            str(number),
            html.escape(m["name"]) + (" ★" if m["front"] else ""),
            *(shown(m[k]) for k in ("metric", "parameters", "nonzeros", "bytes", "gzip_bytes")),
            *(shown((m["milliseconds"] or {}).get(n)) for n in ("1", "2")),
            "–" if m["speed"] is None else f"{m['speed']:.2f}x",
        ]
        for number, m in enumerate(models, 1)
    ]
    head = ["", "model", html.escape(metric), "parameters", "nonzeros", "bytes", "gzip bytes"]
    head += ["ms, 1 thread", "ms, 2 threads", "speed"]
    explained = (
        "★ and full dots: no other model is as good in metric, gzip bytes and speed, and better in "
        "one of them. Speed is that of the float file in the same minutes: compare it rather than "
        "milliseconds that were measured at different times."
    )
    body = [
        _header(f"{len(models)} models", f"task {found['task']}, split {found['split']}", []),
        sections.section("The front", f'<div class="plots">{"".join(plots)}</div>'),
        sections.section("Models", f"<p>{explained}</p>" + sections.table(head, cells, 2)),
    ]
    _write(path, "comparison of compressed models", body)


def _value(model: dict, key: str):
    return model[key] if key != "ms" else (model["milliseconds"] or {}).get("1")


def _about(found: dict) -> str:
    kinds = {"litert": "a LiteRT file", "keras": "model.keras"}
    kind = kinds[found["after"]["file"]]
    return f"task {found['task']}, measured on {found['split']}; sizes of {kind}"


def _changed(values: list) -> tuple[str, str]:
    from trainers.compress_jobs.summary import shown

    before, after = values
    if before is None or after is None:
        return shown(after), ""
    return shown(after), f"before {shown(before)}, {after - before:+.2g}"


def _ratio_tile(name: str, before, after, word: str, unit: str) -> str:
    from trainers.compress_jobs.summary import shown

    detail = f"{shown(before)} {unit} to {shown(after)} {unit}"
    return sections.tile(name, f"{before / after:.2f}x {word}", detail)


def _header(title: str, about: str, tiles: list[str]) -> str:
    return (
        f"<header><h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>"
        f'<div class="tiles">{"".join(tiles)}</div></header>'
    )


def _write(path: Path, title: str, body: list[str]) -> None:
    page = report.page(html.escape(title), "\n".join(filter(None, body)), "zoo compress")
    with atomic(path) as file:
        file.write(page.encode("utf-8", "replace"))
