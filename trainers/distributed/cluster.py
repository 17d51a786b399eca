"""The workers of a run, and a fingerprint of the code that each of them runs.

Importing this module does not import TensorFlow.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path

from zoo.errors import UsageError, short

_ADDRESS = re.compile(r"([\w.-]+|\[[\da-fA-F:.%]+\]):(?P<port>[0-9]{1,5})")
_PACKAGES = ("zoo", "trainers", "configs")
_LIBRARIES = ("tensorflow", "keras", "numpy")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run.

    Attributes:
      workers: `host:port` of each worker; the first is the chief, the only one that writes files.
      index: index of this process.
    """

    workers: tuple[str, ...]
    index: int

    def name(self, index: int) -> str:
        """Returns a worker's name for messages."""
        return f"worker {index} ({self.workers[index]})"


def read_cluster(workers: str = "", index: int | None = None, tf_config: str | None = None):
    """Returns the `Cluster` that flags or TF_CONFIG describe.

    Args:
      workers: value of --workers, `host:port,host:port`.
      index: value of --worker_index.
      tf_config: value of TF_CONFIG; None reads the environment.

    Raises:
      UsageError: if neither is set, both are set and differ, or one is invalid.
    """
    tf_config = os.environ.get("TF_CONFIG", "") if tf_config is None else tf_config
    if not workers and index is None and not tf_config:
        raise UsageError(
            "Strategy multi_worker requires --workers=HOST:PORT,HOST:PORT and --worker_index=N, or "
            "TF_CONFIG in the environment. Received: neither."
        )
    clusters = []
    if workers or index is not None:
        if not workers or index is None:
            raise UsageError(
                "--workers and --worker_index must be set together. Received: "
                f"--workers={workers!r}, --worker_index={index}."
            )
        addresses = [word.strip() for word in workers.split(",")]
        clusters.append(_make_cluster(addresses, index, "--workers"))
    if tf_config:
        clusters.append(_parse_tf_config(tf_config))
    if clusters[0] != clusters[-1]:
        raise UsageError(
            "--workers and TF_CONFIG must agree; set only one of them. Received: "
            f"{','.join(clusters[0].workers)} with index {clusters[0].index}, and "
            f"{','.join(clusters[1].workers)} with index {clusters[1].index}."
        )
    return clusters[0]


def _parse_tf_config(text: str) -> Cluster:
    try:
        content = json.loads(text)
        jobs, task = content["cluster"], content["task"]
        kind, index = task["type"], task["index"]
        index = int(index) if isinstance(index, str) else index
        jobs = {name: list(addresses) for name, addresses in jobs.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            'TF_CONFIG must be {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": '
            f'"worker", "index": 0}}}}. Received: {text!r} ({type(error).__name__}: '
            f"{short(error)})."
        ) from None
    unknown = [name for name in (*jobs, kind) if name not in ("chief", "worker")]
    if unknown:
        raise UsageError(
            f"TF_CONFIG may only have the jobs 'worker' and 'chief'. Received: {unknown[0]!r}."
        )
    chiefs = jobs.get("chief", [])
    if len(chiefs) > 1:
        raise UsageError(f"TF_CONFIG must not name more than one chief. Received: {len(chiefs)}.")
    if not isinstance(index, int) or not 0 <= index < len(jobs.get(kind, [])):
        raise UsageError(
            "The task index in TF_CONFIG must be below the number of tasks of its job. Received: "
            f"{index!r} of {len(jobs.get(kind, []))} {kind!r}."
        )
    workers = [*chiefs, *jobs.get("worker", [])]
    return _make_cluster(workers, index + (len(chiefs) if kind == "worker" else 0), "TF_CONFIG")


def _make_cluster(workers: list, index: int, source: str) -> Cluster:
    for address in workers:
        match = _ADDRESS.fullmatch(str(address))
        if not match or not 0 < int(match["port"]) < 65536:
            raise UsageError(f"A worker in {source} must be HOST:PORT. Received: {address!r}.")
    if len(set(workers)) < len(workers):
        raise UsageError(f"The workers in {source} must differ. Received: {','.join(workers)}.")
    if not 0 <= index < len(workers):
        raise UsageError(
            "The worker index must be below the number of workers. Received: "
            f"{index} of {len(workers)}."
        )
    return Cluster(tuple(workers), index)


def code_fingerprint(files: Iterable[Path] = ()) -> str:
    """Returns a hash of the zoo's source files, the user's files, and the versions of libraries.

    Args:
      files: the user's files. Only their names are hashed with their content, since their folders
        may differ between workers.
    """
    import platform

    digest = hashlib.sha256()
    root = Path(__file__).parents[2]
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0")
            digest.update(path.read_bytes())
    for path in sorted(files, key=lambda path: (path.name, str(path))):
        digest.update(path.name.encode() + b"\0")
        digest.update(path.read_bytes())
    versions = [_version(name) for name in _LIBRARIES]
    digest.update(repr((versions, platform.python_version_tuple()[:2])).encode())
    return digest.hexdigest()


def _version(name: str) -> str:
    """Returns the version of a library, also if its package has another name."""
    import importlib.metadata  # slow to import, not needed for --help

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # such as tensorflow-cpu
        return importlib.import_module(name).__version__
