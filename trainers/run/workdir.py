"""A work directory: what lies in it, and how it is written so that a kill leaves it whole.

    config.json        the resolved recipe, before the first step
    environment.json   machine, versions and command
    tokenizer.json     of a text model
    metrics.jsonl      one object a log interval
    checkpoints/       the last `trainer.keep` of them
    best/model.keras   by the validation split
    model.tflite       in its place, of `zoo compress ptq` to LiteRT; float.keras is what it rounds
    model.keras        at the end: the bare model; opens with plain keras.saving in safe mode, and
                       where it holds layers of the zoo with `zoo.load`
    evaluation/        metrics and predictions a split, with the weights that were measured
    report.html

Nothing read from here is ever executed.
"""

import contextlib
import json
import logging
import math
import os
import platform
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from trainers.config.base import with_optional
from trainers.config.schema import check_types
from trainers.run.layout import FOLDERS, check_layout
from zoo.errors import RunError, UsageError
from zoo.saved import workdir as saved_run
from zoo.storage import remote
from zoo.storage.bounds import JSON_EXPANSION
from zoo.storage.disk import (
    atomic,
    atomic_path,
    open_in_place,
    read_bytes,
    remove_temporary,
    write_json,
)
from zoo.storage.foreign import refuse_foreign
from zoo.storage.locks import lock_folder

_LOG = logging.getLogger(__name__)

# What may differ when a run goes on: it changes how a step is computed, not what. Where layers mix
# rows, `trainers.train.trainer` refuses changes of the rows that are computed together.
MAY_CHANGE = frozenset(
    {
        "trainer.strategy", "trainer.replicas", "trainer.steps_per_execution",
        "trainer.micro_batch_size", "trainer.remat", "trainer.jit_compile",
        "trainer.log_every", "trainer.checkpoint_every", "trainer.keep", "trainer.callbacks",
        "trainer.max_rollbacks", "trainer.preemption_notice",
        "data.manual_dir",
    }
)  # fmt: skip
# Lines of metrics.jsonl that tell of one process of a run, not of its training.
PROCESS_EVENTS = frozenset({"started", "resumed", "preemption notice"})


class WorkDirectory:
    """A work directory that this process alone may write, from `open` to `close`."""

    def __init__(self, path: str | Path):
        self.path = remote.local(path)
        self._mirror = remote.mirror_of(self.path)
        self._lock = None
        self._metrics: Path | None = None  # while training
        self.lines = 0  # of metrics.jsonl
        self._made: list[Path] = []  # folders that were not there before

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def is_remote(self) -> bool:
        """Whether the folder is a copy of one that lies elsewhere."""
        return self._mirror is not None

    def open(self) -> "WorkDirectory":
        """Creates the folder and locks it; the lock ends with the process, however it ends.

        Raises:
          UsageError: where the folder is of another kind; nothing is written in it.
          RunError: where another process holds it, the folder cannot be written, or a folder lies
            where a file is written, or the other way round.
        """
        if (self / "config.json").is_file():
            read_config(self.path)
        elif self.path.is_dir():
            refuse_foreign(self.path)
        try:
            self._made = [p for p in (self.path, *self.path.parents) if not p.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.path)  # held while training
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"The work directory is a folder. Received: {self.path}.") from None
        except OSError as error:
            raise RunError(f"Cannot write in {self.path}: {error.strerror}.") from None
        try:
            check_layout(self.path)
        except RunError:
            self.close()
            raise
        for folder in (".", *FOLDERS):
            remove_temporary(self / folder)
        return self

    def close(self) -> None:
        """Gives the folder back; leaves nothing of it where it became no work directory."""
        self._metrics = None
        if self._lock:
            if not (self / "config.json").exists():
                (self / ".lock").unlink(missing_ok=True)
            self._lock.lock.release()
            self._lock = None
        with contextlib.suppress(OSError):  # not empty: something came of it
            for folder in self._made:
                folder.rmdir()
        if self._mirror:
            remote.push_at_end(self._mirror)

    def push(self) -> None:
        """Copies what is new to where the folder truly lies, if that is not on this machine.

        Where that fails it is tried again after the next checkpoint, and at the end.

        Raises:
          remote.TakenOver: where another run works there since.
        """
        try:
            if self._mirror:
                self._mirror.push()
        except remote.TakenOver:
            raise
        except RunError as error:
            _LOG.warning(str(error))

    # --- recipe --------------------------------------------------------------------------------

    def write_config(self, config: Mapping, source: str, dataset, replicas: int = 1) -> None:
        """Writes the resolved recipe, or checks that it is the one this folder was made with.

        A remote folder is this run's from then on, and the copy here what it holds then.

        Raises:
          UsageError: where the folder was made with another recipe; names the differences.
        """
        self._check_origin(config, dataset)
        if self._mirror:
            self._mirror.claim()
            self._check_origin(config, dataset)
        write_json(
            self / "config.json",
            {
                "format_version": saved_run.FORMAT_VERSION,
                "source": source,
                "config": config,
                "class_names": list(dataset.class_names),
                "data_fingerprint": dataset.fingerprint,
                "tokenizer": dataset.tokenizer and dataset.tokenizer.fingerprint,
                "facts": dataset.facts,
                "replicas": replicas,
            },
        )
        if self._mirror:
            self._mirror.push()  # what cannot be written is known before the first step

    def _check_origin(self, config: Mapping, dataset) -> None:
        if (self / "config.json").exists():
            self.check_recipe(config)
            saved = read_config(self.path)
            if saved["data_fingerprint"] != dataset.fingerprint:
                raise UsageError(
                    f"{self.path} was made with other data than {dataset.name!r} holds now. "
                    "Take a new --workdir."
                )
            return
        leftovers = [n for n in ("checkpoints", "metrics.jsonl") if (self / n).exists()]
        if leftovers:
            raise UsageError(
                f"{self.path} holds {leftovers[0]} but no config.json: it cannot be told what "
                "made it. Take a new --workdir."
            )

    def check_recipe(self, config: Mapping) -> None:
        """Raises `UsageError` where the folder was made with another recipe, with what differs."""
        saved = read_config(self.path)["config"]
        changes = [
            f"{key}: {old!r} -> {new!r}"
            for key, old, new in _differences(_whole(saved), _whole(config))
            if key not in MAY_CHANGE
        ]
        if changes:
            raise UsageError(
                f"{self.path} was made with another recipe ({'; '.join(changes)}). "
                "Take a new folder, or the recipe as it was."
            )

    def write_environment(self, devices: list[str]) -> None:
        """Writes machine, versions and command."""
        import keras
        import tensorflow as tf

        write_json(
            self / "environment.json",
            {
                "cpu": cpu_name(),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
                "tensorflow": tf.__version__,
                "keras": keras.__version__,
                "devices": devices,
                "started": datetime.now(UTC).isoformat(timespec="seconds"),
                "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            },
        )

    # --- metrics -------------------------------------------------------------------------------

    def start_metrics(self, step: int, lines: int | None = None) -> float:
        """Opens metrics.jsonl for appending, without what the run does again.

        Args:
          step: of the checkpoint that the run goes on from.
          lines: how many lines the file had when that was written; None keeps all up to `step`.
            Lines that tell of a process (`PROCESS_EVENTS`) stay.

        Returns:
          When the run began, in seconds since 1970: the first line tells.
        """
        path = self / "metrics.jsonl"
        kept = [
            line
            for number, line in enumerate(read_metrics(self.path))
            if line.get("step", 0) <= step
            and (lines is None or number < lines or line.get("event") in PROCESS_EVENTS)
        ]
        with atomic(path, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        self._metrics, self.lines = path, len(kept)
        times = [line.get("time") for line in kept if line.get("event") == "started"]
        if times and isinstance(times[0], int | float):
            return times[0]
        now = time.time()
        began = datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds")
        self.log(step=step, event="started", detail=began, time=round(now, 3))
        return now

    def log(self, **values) -> None:
        """Appends one line to metrics.jsonl; a number that is not finite becomes null."""
        values = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        # Closed each time: a bucket that is mounted takes a file when it is closed.
        with open_in_place(self._metrics) as file:
            file.write(json.dumps(values) + "\n")
        self.lines += 1


class NoDirectory(WorkDirectory):
    """The work directory of a worker that is not the chief: it writes nothing."""

    def __init__(self, path: str | Path):
        self.path, self._mirror, self.lines = Path(path), None, 0

    def open(self) -> "NoDirectory":
        return self

    def close(self) -> None:
        pass

    def write_config(self, config: Mapping, source: str, dataset, replicas: int = 1) -> None:
        pass

    def write_environment(self, devices: list[str]) -> None:
        pass

    def start_metrics(self, step: int, lines: int | None = None) -> float:
        return time.time()

    def log(self, **values) -> None:
        pass


def read_config(workdir: str | Path) -> dict:
    """Returns the content of config.json.

    Raises:
      UsageError: if the folder is not a work directory, or of another format.
      RunError: if the file is damaged.
    """
    saved = saved_run.read_config(workdir)
    try:
        check_types(saved["config"])
    except UsageError as error:
        raise RunError(f"{Path(workdir) / 'config.json'} is damaged: {error}") from None
    return saved


def read_metrics(workdir: str | Path) -> list[dict]:
    """Returns the lines of metrics.jsonl; a last line cut short by a kill is left out."""
    path = Path(workdir) / "metrics.jsonl"
    lines = []
    if path.exists():
        for line in read_bytes(path, JSON_EXPANSION).decode(errors="replace").splitlines():
            try:
                lines.append(json.loads(line))
            except (ValueError, RecursionError):
                continue
    return [line for line in lines if isinstance(line, dict) and type(line.get("step", 0)) is int]


def save_model(model, path: Path) -> None:
    """Saves a bare model atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as made:
        model.save(made)


def _whole(config: Mapping) -> dict:
    """Fills in optional sections: one that is absent equals one that holds only defaults."""
    return json.loads(json.dumps(with_optional(config)))


def _differences(old: Mapping, new: Mapping, prefix: str = ""):
    for key in sorted({*old, *new}):
        before, after, name = old.get(key), new.get(key), f"{prefix}{key}"
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{name}.")
        elif before != after:
            yield name, before, after


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    name = found.get("model name", platform.machine())
    return f"{name}, AVX512_BF16" if "avx512_bf16" in found.get("flags", "") else name
