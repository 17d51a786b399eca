"""What compressing a work directory's model brought, and what it cost."""

import gzip
from pathlib import Path

import numpy as np

from trainers.evaluate import read_evaluation
from trainers.workdir import load_model
from zoo.data.disk import write_json


def facts(workdir: str | Path) -> dict:
    """Returns a trained model's sizes and the metrics of the test split.

    parameters and nonzeros are numbers of weights; bytes and gzip_bytes are those of the weights in
    float32, one after the other, as they are and compressed by gzip.
    """
    path = Path(workdir)
    weights = [np.asarray(value, np.float32) for value in load_model(path).get_weights()]
    content = b"".join(value.tobytes() for value in weights)
    return {
        "parameters": int(sum(value.size for value in weights)),
        "nonzeros": int(sum(np.count_nonzero(value) for value in weights)),
        "bytes": len(content),
        "gzip_bytes": len(gzip.compress(content, 9, mtime=0)),
        "test": {k: v for k, v in read_evaluation(path, "test").items() if isinstance(v, float)},
    }


def write_summary(before: str | Path, after: str | Path, method: str) -> dict:
    """Writes `after`/compression.json about two work directories, and returns it."""
    found = {
        "method": method, "from": str(before), "before": facts(before), "after": facts(after),
    }  # fmt: skip
    write_json(Path(after) / "compression.json", found)
    return found


def table(found: dict) -> str:
    """A line a fact: its name, before, after, and how they compare."""
    before, after = ({**found[side], **found[side]["test"]} for side in ("before", "after"))
    lines = [f"{'':24}{'before':>14}{'after':>14}"]
    for name, value in before.items():
        if name == "test" or name not in after:
            continue
        new = after[name]
        if isinstance(value, int):
            note = f"{value / max(new, 1):.2f}x" if new != value else ""
            lines.append(f"{name:24}{value:>14,}{new:>14,}  {note}".rstrip())
        else:
            lines.append(f"{name:24}{value:>14.5g}{new:>14.5g}  {new - value:+.2g}")
    return "\n".join(lines)
