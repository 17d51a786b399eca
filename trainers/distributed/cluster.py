"""Which processes train together, and a fingerprint of what each of them runs.

Loads no TensorFlow.
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
      workers: `host:port` of each; the first is the chief, which alone writes files.
      index: which of them this process is.
    """

    workers: tuple[str, ...]
    index: int

    def name(self, index: int) -> str:
        """How messages call a worker."""
        return f"worker {index} ({self.workers[index]})"


def read_cluster(workers: str = "", index: int | None = None, tf_config: str | None = None):
    """Returns the `Cluster` that flags or TF_CONFIG describe.

    Args:
      workers: `host:port,host:port`, of --workers.
      index: of --worker_index.
      tf_config: content of the environment's TF_CONFIG; None reads it there.

    Raises:
      UsageError: where there is none, two that differ, or one that is wrong.
    """
    tf_config = os.environ.get("TF_CONFIG", "") if tf_config is None else tf_config
    if not workers and index is None and not tf_config:
        raise UsageError(
            "Strategy multi_worker needs to know the workers: --workers=HOST:PORT,HOST:PORT and "
            "--worker_index=N, or TF_CONFIG in the environment. Received: neither."
        )
    found = []
    if workers or index is not None:
        if not workers or index is None:
            raise UsageError(
                "--workers and --worker_index go together. Received: "
                f"--workers={workers!r}, --worker_index={index}."
            )
        found.append(_checked([word.strip() for word in workers.split(",")], index, "--workers"))
    if tf_config:
        found.append(_of_tf_config(tf_config))
    if found[0] != found[-1]:
        raise UsageError(
            f"--workers and TF_CONFIG tell different things: {','.join(found[0].workers)} with "
            f"index {found[0].index}, and {','.join(found[1].workers)} with index "
            f"{found[1].index}. Give one."
        )
    return found[0]


def _of_tf_config(text: str) -> Cluster:
    try:
        content = json.loads(text)
        jobs, task = content["cluster"], content["task"]
        kind, index = task["type"], task["index"]
        index = int(index) if isinstance(index, str) else index
        jobs = {name: list(addresses) for name, addresses in jobs.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            'TF_CONFIG is {"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", '
            f'"index": 0}}}}. Received: {text!r} ({type(error).__name__}: {short(error)}).'
        ) from None
    strange = [name for name in (*jobs, kind) if name not in ("chief", "worker")]
    if strange:
        raise UsageError(
            "Strategy multi_worker knows the jobs 'worker' and 'chief'. Received: "
            f"{strange[0]!r} in TF_CONFIG."
        )
    chiefs = jobs.get("chief", [])
    if len(chiefs) > 1:
        raise UsageError(f"TF_CONFIG names one chief. Received: {len(chiefs)}.")
    if not isinstance(index, int) or not 0 <= index < len(jobs.get(kind, [])):
        raise UsageError(
            f"The index of a task is a number below how many there are. Received: {index!r} of "
            f"{len(jobs.get(kind, []))} {kind!r} in TF_CONFIG."
        )
    workers = [*chiefs, *jobs.get("worker", [])]
    return _checked(workers, index + (len(chiefs) if kind == "worker" else 0), "TF_CONFIG")


def _checked(workers: list, index: int, where: str) -> Cluster:
    for address in workers:
        found = _ADDRESS.fullmatch(str(address))
        if not found or not 0 < int(found["port"]) < 65536:
            raise UsageError(f"{where} names a worker HOST:PORT. Received: {address!r}.")
    if len(set(workers)) < len(workers):
        raise UsageError(f"{where} names each worker once. Received: {','.join(workers)}.")
    if not 0 <= index < len(workers):
        raise UsageError(
            f"A worker's index is below the number of workers. Received: {index} of {len(workers)}."
        )
    return Cluster(tuple(workers), index)


def code_fingerprint(files: Iterable[Path] = ()) -> str:
    """Hash of the zoo's own source files, and others, with the versions of what they compute with.

    Args:
      files: the user's own, known by their names, for workers have them in folders of their own.
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
    """The version of a library, whatever the package is called that brought it."""
    import importlib.metadata  # slow to load, and not for --help

    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # such as tensorflow-cpu
        return importlib.import_module(name).__version__
