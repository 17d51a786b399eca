"""The work directory: its files, and atomic writes that a kill cannot leave incomplete.

    config.json        the resolved configuration, written before the first step
    environment.json   machine, versions and command
    tokenizer.json     tokenizer of a text model
    metrics.jsonl      one JSON object per log interval
    checkpoints/       the last `trainer.keep` checkpoints
    best/model.keras   best model by the validation split
    model.keras        the final model alone; opens with plain keras.saving in safe mode, or with
                       `zoo.load` if it has layers of the zoo
    model.tflite       instead of model.keras after `zoo compress ptq` to LiteRT; float.keras is the
                       model before quantization
    evaluation/        metrics and predictions per split, and the evaluated weights
    report.html

Nothing read from a work directory is ever executed.
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

# Keys that may change when a run resumes, because they do not change the result of a step. If
# layers mix rows, `trainers.train.trainer` refuses changes of the rows computed together.
MAY_CHANGE = frozenset(
    {
        "trainer.strategy", "trainer.replicas", "trainer.steps_per_execution",
        "trainer.micro_batch_size", "trainer.remat", "trainer.jit_compile",
        "trainer.log_every", "trainer.checkpoint_every", "trainer.keep", "trainer.callbacks",
        "trainer.max_rollbacks", "trainer.preemption_notice",
        "data.manual_dir",
    }
)  # fmt: skip
# Events in metrics.jsonl that describe one process of a run, not the training.
PROCESS_EVENTS = frozenset({"started", "resumed", "preemption notice"})


class WorkDirectory:
    """A work directory that only this process may write, from `open` to `close`."""

    def __init__(self, path: str | Path):
        self.path = remote.local(path)
        self._mirror = remote.mirror_of(self.path)
        self._lock = None
        self._metrics: Path | None = None  # set while training
        self.lines = 0  # number of lines in metrics.jsonl
        self._created_folders: list[Path] = []  # folders that `open` created

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def is_remote(self) -> bool:
        """Whether the folder is a local copy of a remote folder."""
        return self._mirror is not None

    def open(self) -> "WorkDirectory":
        """Creates and locks the folder; the lock ends with the process, even after a kill.

        Raises:
          UsageError: if the folder is of another kind; nothing is written in it.
          RunError: if another process holds the lock, the folder cannot be written, or a folder has
            the name of a file or the reverse.
        """
        if (self / "config.json").is_file():
            read_config(self.path)
        elif self.path.is_dir():
            refuse_foreign(self.path)
        try:
            self._created_folders = [p for p in (self.path, *self.path.parents) if not p.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(self.path)  # held while training
        except (FileExistsError, NotADirectoryError):
            raise UsageError(f"A work directory must be a folder. Received: {self.path}.") from None
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
        """Unlocks the folder, removes it if it is new and empty, and uploads a remote folder."""
        self._metrics = None
        if self._lock:
            if not (self / "config.json").exists():
                (self / ".lock").unlink(missing_ok=True)
            self._lock.lock.release()
            self._lock = None
        with contextlib.suppress(OSError):  # not empty
            for folder in self._created_folders:
                folder.rmdir()
        if self._mirror:
            remote.push_at_end(self._mirror)

    def push(self) -> None:
        """Uploads new files if the folder is a copy of a remote folder.

        After a failure the next checkpoint and the end of the run try again.

        Raises:
          remote.TakenOver: if another run has claimed the remote folder.
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
        """Writes the resolved configuration; first checks it against that of an earlier run.

        This also claims a remote folder for this run and updates the local copy.

        Raises:
          UsageError: if the folder was made with another recipe (names the differences) or data.
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
            self._mirror.push()  # fails before the first step if the remote folder is read-only

    def _check_origin(self, config: Mapping, dataset) -> None:
        if (self / "config.json").exists():
            self.check_recipe(config)
            saved_config = read_config(self.path)
            if saved_config["data_fingerprint"] != dataset.fingerprint:
                raise UsageError(
                    f"{self.path} was created with other data than {dataset.name!r} contains now. "
                    "Use a new --workdir."
                )
            return
        leftovers = [n for n in ("checkpoints", "metrics.jsonl") if (self / n).exists()]
        if leftovers:
            raise UsageError(
                f"{self.path} contains {leftovers[0]} but no config.json, so its recipe is "
                "unknown. Use a new --workdir."
            )

    def check_recipe(self, config: Mapping) -> None:
        """Raises `UsageError` with all differences if the folder has another recipe."""
        saved_config = read_config(self.path)["config"]
        changes = [
            f"{key}: {old!r} -> {new!r}"
            for key, old, new in _differences(
                _with_all_sections(saved_config), _with_all_sections(config)
            )
            if key not in MAY_CHANGE
        ]
        if changes:
            raise UsageError(
                f"{self.path} was created with another recipe ({'; '.join(changes)}). "
                "Use a new work directory, or the original recipe."
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
        """Opens metrics.jsonl for appending, without lines of updates that the run repeats.

        Args:
          step: number of updates in the checkpoint from which the run resumes.
          lines: number of lines in the file when the checkpoint was written; None keeps all lines
            up to `step`. Lines of `PROCESS_EVENTS` up to `step` are always kept.

        Returns:
          Time of the run's first start, in seconds since 1970, as its first line states.
        """
        path = self / "metrics.jsonl"
        kept_lines = [
            line
            for number, line in enumerate(read_metrics(self.path))
            if line.get("step", 0) <= step
            and (lines is None or number < lines or line.get("event") in PROCESS_EVENTS)
        ]
        with atomic(path, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept_lines)
        self._metrics, self.lines = path, len(kept_lines)
        times = [line.get("time") for line in kept_lines if line.get("event") == "started"]
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
        # Closed each time, because a mounted bucket stores a file only when it is closed.
        with open_in_place(self._metrics) as file:
            file.write(json.dumps(values) + "\n")
        self.lines += 1


class NoDirectory(WorkDirectory):
    """The work directory of a worker other than the chief; nothing is written."""

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
      UsageError: if the folder is not a work directory, or has another format.
      RunError: if the file is damaged.
    """
    saved_config = saved_run.read_config(workdir)
    try:
        check_types(saved_config["config"])
    except UsageError as error:
        raise RunError(f"{Path(workdir) / 'config.json'} is damaged: {error}") from None
    return saved_config


def read_metrics(workdir: str | Path) -> list[dict]:
    """Returns the lines of metrics.jsonl, without a last line that a kill cut short."""
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
    """Saves a model alone, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        model.save(temporary)


def _with_all_sections(config: Mapping) -> dict:
    """Fills in optional sections: a missing section equals one that holds only defaults."""
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
    fields = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    name = fields.get("model name", platform.machine())
    return f"{name}, AVX512_BF16" if "avx512_bf16" in fields.get("flags", "") else name
