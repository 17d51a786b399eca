"""What compressing a work directory's model brought, and what it cost."""

import gzip
import importlib.util
import tempfile
from pathlib import Path

import numpy as np

from trainers.compress_jobs.latency import interleaved
from trainers.compress_jobs.loaded_run import LoadedRun, load
from trainers.compress_jobs.page import write_page
from trainers.export.litert import write
from trainers.export.litert_file import NO_RUNTIME
from zoo import registry
from zoo.errors import RunError
from zoo.saved.workdir import FLOATS, LITERT
from zoo.storage.disk import read_bytes, read_json, write_json


def write_summary(before: str | Path, after: str | Path, method: str) -> dict:
    """Measures two work directories on the same test split (validation, where there is none).

    What stands there already is taken where it is newer than the model.

    Returns what it writes to `after`/compression.json and shows in compression.html beside it:

      method, from, task, data, split.
      metric, mode: that by which its task chooses checkpoints, and whether "min" or "max" is best.
      before, after: of each model
        parameters, nonzeros: numbers of weights (of a rounded model: before it was rounded).
        file: "litert", or "keras" where no LiteRT file can be made, or Keras' own integers are
          kept, which LiteRT makes floats of. bytes, gzip_bytes: of that file.
        milliseconds: number of threads -> median time of a sample in LiteRT; none, and `remark`
          says why, where it has no such file.
        test: metrics.
    """
    record, page = Path(after) / "compression.json", Path(after) / "compression.html"
    models = [path for name in ("model.keras", LITERT) if (path := Path(after) / name).exists()]
    if record.exists() and all(p.stat().st_mtime <= record.stat().st_mtime for p in models):
        return read_json(record)
    one = load(before)
    other = load(after, one.dataset)
    with tempfile.TemporaryDirectory() as folder:
        sides = {"before": one, "after": other}
        files, remarks = {}, {}
        for name, side in sides.items():
            files[name], remarks[name] = runtime_file(side, Path(folder) / f"{name}.tflite")
        as_keras = _keeps_integers(other) or None in files.values()
        running = {name: path for name, path in files.items() if path}
        if importlib.util.find_spec("ai_edge_litert") is None:
            running = {}
            remarks = {name: text or f"not timed: {NO_RUNTIME}" for name, text in remarks.items()}
        examples = {**other.examples(), **one.examples()}
        times = interleaved(running, examples) if running else {}
        found = {
            "method": method,
            "from": str(before),
            "task": one.saved["config"]["task"]["name"],
            "data": one.dataset.fingerprint,
            "split": one.split,
            "metric": one.task.monitor.removeprefix("val_"),
            "mode": one.task.monitor_mode,
        }
        for name, side in sides.items():
            path = side.path / "model.keras" if as_keras else files[name]
            found[name] = {
                **counts(side),
                "file": "keras" if as_keras else "litert",
                "bytes": path.stat().st_size,
                "gzip_bytes": len(gzip.compress(read_bytes(path), 9, mtime=0)),
                "milliseconds": times.get(name),
                "remark": remarks[name],
                "test": side.metrics(),
            }
    write_page(found, page)
    write_json(record, found)  # last: where it is, all is there
    return found


def runtime_file(side: LoadedRun, path: Path) -> tuple[Path | None, str]:
    """The LiteRT file of a work directory's model, made at `path` where there is none.

    Returns:
      `(file, "")`; or `(None, why)` where none can be made.
    """
    if side.file is not None:
        return side.file, ""
    try:
        write(side.served(), side.examples(), path)
    except RunError as error:
        return None, f"no runtime file: {error}"
    return path, ""


def counts(side: LoadedRun) -> dict[str, int]:
    """Numbers of weights, and of those that are not 0."""
    floats = side.path / FLOATS
    model = registry.load(str(floats)) if floats.exists() else side.model
    # The ends of 8-bit ranges are no weights.
    weights = [v.numpy() for v in model.weights if "_ranges/" not in v.path]
    return {
        "parameters": int(sum(value.size for value in weights)),
        "nonzeros": int(sum(np.count_nonzero(value) for value in weights)),
    }


def _keeps_integers(side: LoadedRun) -> bool:
    return side.compress.get("ptq", {}).get("format", "").startswith("keras")
