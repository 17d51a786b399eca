"""The content of a compression.json as rows and as text. Loads no TensorFlow."""

from trainers.compress_jobs.latency import THREADS
from zoo.formatting import number


def rows(found: dict) -> list[tuple[str, object, object, str]]:
    """A row a fact: its name, before, after, and how they compare; None for what is not known."""
    before, after = (_flat(found[side]) for side in ("before", "after"))
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


def _flat(side: dict) -> dict:
    times = side["milliseconds"] or {}
    return {
        **{name: side[name] for name in ("parameters", "nonzeros", "bytes", "gzip_bytes")},
        **{f"ms, {n} thread{'s' * (n > 1)}": times.get(str(n)) for n in THREADS},
        **side["test"],
    }


def table(found: dict) -> str:
    """The same as text."""
    judged = f"metrics: {split} split" if (split := found.get("split")) else ""
    lines = [f"{judged:24}{'before':>14}{'after':>14}"]
    for name, value, new, note in rows(found):
        cells = "".join(f"{shown(x):>14}" for x in (value, new))
        lines.append(f"{name:24}{cells}  {note}".rstrip())
    for side in ("before", "after"):
        if found[side]["remark"]:
            lines.append(f"{side}: {found[side]['remark']}")
    return "\n".join(lines)


def shown(value) -> str:
    """A number of a table; a dash for what is not known."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else number(value, digits=5)
