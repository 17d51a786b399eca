"""The sizes, speed and metrics of a model before and after compression."""

import gzip
import importlib.util
import tempfile
from pathlib import Path

import numpy as np

from trainers.compress_jobs.latency import measure_latencies
from trainers.compress_jobs.loaded_run import LoadedRun, load
from trainers.compress_jobs.page import write_page
from trainers.export.export import quantized_format
from trainers.export.litert import write
from trainers.export.litert_file import NO_RUNTIME
from zoo import registry
from zoo.errors import RunError
from zoo.saved.workdir import FLOATS, LITERT
from zoo.storage.disk import read_bytes, read_json, write_json


def write_summary(before: str | Path, after: str | Path, method: str) -> dict:
    """Measures two work directories on the same test split (or validation split).

    A compression.json that is newer than the model is returned unchanged.

    Returns the content of `after`/compression.json, which compression.html beside it shows:

      method, from, task, data, split.
      metric, mode: metric by which the task selects checkpoints, and its best value, "min" or
        "max".
      before, after: for each model
        parameters, nonzeros: numbers of weights (of a quantized model: before quantization).
        file: "litert", or "keras" if no LiteRT file can be made or if `after` has integers of
          Keras, which a LiteRT file would store as floats. bytes, gzip_bytes: sizes of that file.
        milliseconds: number of threads -> median time per example in LiteRT; None, with the
          reason in `remark`, if there is no such file.
        test: metrics of the split.
    """
    record, page = Path(after) / "compression.json", Path(after) / "compression.html"
    models = [path for name in ("model.keras", LITERT) if (path := Path(after) / name).exists()]
    if record.exists() and all(p.stat().st_mtime <= record.stat().st_mtime for p in models):
        return read_json(record)
    run_before = load(before)
    runs = {"before": run_before, "after": load(after, run_before.dataset)}
    with tempfile.TemporaryDirectory() as folder:
        files, remarks = {}, {}
        for side, run in runs.items():
            files[side], remarks[side] = litert_file(run, Path(folder) / f"{side}.tflite")
        integers = quantized_format(runs["after"].saved).startswith("keras")
        uses_keras_file = integers or None in files.values()
        files_to_time = {side: path for side, path in files.items() if path}
        if importlib.util.find_spec("ai_edge_litert") is None:
            files_to_time = {}
            remarks = {side: text or f"not timed: {NO_RUNTIME}" for side, text in remarks.items()}
        examples = {**runs["after"].examples(), **run_before.examples()}
        times = measure_latencies(files_to_time, examples) if files_to_time else {}
        summary = {
            "method": method,
            "from": str(before),
            "task": run_before.saved["config"]["task"]["name"],
            "data": run_before.dataset.fingerprint,
            "split": run_before.split,
            "metric": run_before.task.monitor.removeprefix("val_"),
            "mode": run_before.task.monitor_mode,
        }
        for side, run in runs.items():
            path = run.path / "model.keras" if uses_keras_file else files[side]
            summary[side] = {
                **counts(run),
                "file": "keras" if uses_keras_file else "litert",
                "bytes": path.stat().st_size,
                "gzip_bytes": len(gzip.compress(read_bytes(path), 9, mtime=0)),
                "milliseconds": times.get(side),
                "remark": remarks[side],
                "test": run.metrics(),
            }
    write_page(summary, page)
    write_json(record, summary)  # comes last, because it marks the work directory as complete
    return summary


def litert_file(run: LoadedRun, path: Path) -> tuple[Path | None, str]:
    """Returns `(path of the run's LiteRT file or of a new file, "")`, or `(None, reason)`."""
    if run.file is not None:
        return run.file, ""
    try:
        write(run.serving_model(), run.examples(), path)
    except RunError as error:
        return None, f"no LiteRT file: {error}"
    return path, ""


def counts(run: LoadedRun) -> dict[str, int]:
    """Returns the number of weights as "parameters", and of nonzero weights as "nonzeros"."""
    floats = run.path / FLOATS
    model = registry.load(str(floats)) if floats.exists() else run.model
    # The limits of 8-bit ranges are not weights.
    weights = [v.numpy() for v in model.weights if "_ranges/" not in v.path]
    return {
        "parameters": int(sum(value.size for value in weights)),
        "nonzeros": int(sum(np.count_nonzero(value) for value in weights)),
    }
