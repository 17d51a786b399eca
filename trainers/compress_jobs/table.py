"""Formats the content of compression.json as rows and as text. Does not import TensorFlow."""

from trainers.compress_jobs.latency import THREADS
from zoo.formatting import number


def rows(summary: dict) -> list[tuple[str, object, object, str]]:
    """Returns (name, before, after, comparison) per measurement; None is an unknown value."""
    before, after = (_measurements(summary[side]) for side in ("before", "after"))
    lines = []
    for name, value in before.items():
        new = after.get(name)
        if isinstance(value, int) and isinstance(new, int):
            note = f"{value / max(new, 1):.2f}x smaller" if new < value else ""
        elif name.startswith("ms, ") and value and new:
            note = f"{value / new:.2f}x the speed"
        elif value is None or new is None:
            note = ""
        else:
            note = f"{new - value:+.2g}"
        lines.append((name, value, new, note))
    return lines


def _measurements(side: dict) -> dict:
    times = side["milliseconds"] or {}
    return {
        **{name: side[name] for name in ("parameters", "nonzeros", "bytes", "gzip_bytes")},
        **{f"ms, {n} thread{'s' * (n > 1)}": times.get(str(n)) for n in THREADS},
        **side["test"],
    }


def table(summary: dict) -> str:
    """Returns the rows of `rows` as a text table, followed by the remarks."""
    split = f"metrics: {name} split" if (name := summary.get("split")) else ""
    lines = [f"{split:24}{'before':>14}{'after':>14}"]
    for name, value, new, note in rows(summary):
        cells = "".join(f"{format_value(x):>14}" for x in (value, new))
        lines.append(f"{name:24}{cells}  {note}".rstrip())
    for side in ("before", "after"):
        if summary[side]["remark"]:
            lines.append(f"{side}: {summary[side]['remark']}")
    return "\n".join(lines)


def format_value(value) -> str:
    """Returns a number as text, or a dash for None."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else number(value, digits=5)
