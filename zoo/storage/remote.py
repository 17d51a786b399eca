"""Mirrors remote work directories (gs:// and similar) in the local cache folder.

A work directory needs locks, appending and memory mapping, which buckets lack. So the zoo works in
a local copy. The remote folder is authoritative: a command first downloads remote changes and
uploads its own changes at the end; training uploads after each checkpoint. All addresses of
`tf.io.gfile` are supported: gs://, file://, ram://, and with tensorflow-io hdfs:// and s3://.

A run writes its id into the remote file `.writer` when it starts, before it downloads. If a run on
another machine replaces the id, the earlier run uploads nothing more and ends.
"""

import contextlib
import logging
import re
import shutil
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from zoo.errors import RunError, UsageError, short
from zoo.start import start_tensorflow
from zoo.storage.disk import atomic_path, open_file, read_json, write_json
from zoo.storage.locks import is_held, one_at_a_time
from zoo.storage.paths import cache_dir

_LOG = logging.getLogger(__name__)

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.]*)://(?P<path>.*)", re.DOTALL)
_NOT_FILES = ("http", "https", "grpc")
_FLAGS = ("--workdir=", "--model_dir=", "--out=")
_WRITER = "/.writer"
_TEMPORARY = re.compile(r".*\.[0-9a-f]{32}\.tmp")
_TRIES = 3  # of downloading a folder that another run changes meanwhile
_mirrors: dict[Path, "Mirror"] = {}


def is_remote(name) -> bool:
    """Returns whether a path is the address of a remote file system."""
    match = _URL.fullmatch(str(name))
    return bool(match) and match["scheme"] not in _NOT_FILES


def local(name: str | Path) -> Path:
    """Returns the local path of a file or folder; downloads a remote one first.

    Raises:
      UsageError: if the address names no folder, or TensorFlow has no file system for its scheme.
      RunError: if the remote file or folder cannot be read.
    """
    if not is_remote(name):
        return Path(name)
    match = _URL.fullmatch(str(name))
    parts = PurePosixPath(match["path"].strip("/")).parts
    if not parts or ".." in parts:
        raise UsageError(
            f"A URL with {match['scheme']}:// must refer to a folder, without '..'. Received: "
            f"{name}."
        )
    path = cache_dir() / "remote" / match["scheme"] / Path(*parts)
    if path not in _mirrors:
        root = "/" if match["path"].startswith("/") else ""
        _mirrors[path] = Mirror(f"{match['scheme']}://{root}{'/'.join(parts)}", path)
    _mirrors[path].pull()
    return path


def mirror_of(path: Path) -> "Mirror | None":
    """Returns the mirror that `local` created in this process for a local path, or None."""
    return _mirrors.get(path)


@contextlib.contextmanager
def localized(argv: Sequence[str]) -> Iterator[list[str]]:
    """Yields the arguments of a command with remote paths replaced by local copies.

    Changes are uploaded when the context exits, also after an error.
    """
    words, copies = [argv[0]], []
    for word in argv[1:]:
        flag = next((flag for flag in _FLAGS if word.startswith(flag)), "")
        name = word.removeprefix(flag)
        if is_remote(name):
            copies.append(local(name))
            name = str(copies[-1])
        words.append(flag + name)
    with contextlib.ExitStack() as stack:
        for path in dict.fromkeys(copies):  # a path may occur twice
            stack.callback(_mirrors.pop, path)
            stack.callback(push_at_end, _mirrors[path])
        yield words


def push_at_end(mirror: "Mirror") -> None:
    """Uploads changes; while another exception is raised, a failure is only printed."""
    failing = sys.exc_info()[0] is not None
    try:
        mirror.push()
    except RunError as error:
        if not failing:
            raise
        _LOG.warning(str(error))


class TakenOver(RunError):
    """Another run has claimed the remote folder."""


class Mirror:
    """A remote file or folder and its local copy.

    The name of a file is its address without the address of the mirror: "/config.json" in a folder,
    "" for a mirrored file, ".json" for the description that `zoo export` writes beside its output.

    Args:
      remote: address of the file or folder, without a trailing slash.
      path: path of the local copy.
    """

    def __init__(self, remote: str, path: Path):
        self.remote, self.path = remote, path
        # {name: [remote stamp, local stamp]} of synchronized files; beside the copy.
        self._index = path.with_name(f".{path.name}.mirror.json")
        self._lock = threading.Lock()
        self._last_names: set[str] = set()  # of local files after the last synchronization
        self._run_id = ""  # of a run that has claimed the folder

    def pull(self) -> None:
        """Makes the local copy equal to the remote folder.

        If the remote folder has not changed since the last synchronization, the local copy may be
        newer, of a process that was killed before it uploaded. Then only missing files are
        downloaded.

        Raises:
          RunError: if the remote folder cannot be read.
        """
        with self._exclusive(), _one_line_errors(self.remote):
            if not is_held(self.path):  # a run in the local copy has the newest files
                self._pull()
            self._last_names = set(self._local_stamps())

    def _pull(self) -> None:
        for remaining in reversed(range(_TRIES)):
            try:
                self._download()
                break
            except _not_found():  # another run has deleted its oldest checkpoint
                if not remaining:
                    raise

    def _download(self) -> None:
        remote, index = self._remote_stamps(), self._read_index()
        if remote and remote == {name: stamps[0] for name, stamps in index.items()}:
            missing = [name for name in remote if not Path(f"{self.path}{name}").exists()]
        else:
            # Without an index an incomplete copy is never uploaded.
            self._index.unlink(missing_ok=True)
            _remove(self.path)
            Path(f"{self.path}.json").unlink(missing_ok=True)
            index, missing = {}, list(remote)
        for name in missing:
            target = Path(f"{self.path}{name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(target) as temporary:
                _check_kind(self.remote + name)
                _gfile().copy(self.remote + name, str(temporary))
            index[name] = [remote[name], _local_stamp(target)]
        write_json(self._index, index)
        if missing:
            _LOG.info(f"copied {self.remote} to {self.path}")

    def claim(self) -> None:
        """Claims the remote folder for a run of this process, then downloads as `pull`.

        The local copy must be locked. An earlier run uploads nothing from now on.

        Raises:
          RunError: if the remote folder cannot be written.
        """
        with self._exclusive(), _one_line_errors(self.remote):
            gfile, self._run_id = _gfile(), uuid.uuid4().hex
            gfile.makedirs(self.remote)
            temporary = f"{self.remote}{_WRITER}.{self._run_id}.tmp"
            with gfile.GFile(temporary, "w") as file:
                file.write(self._run_id)
            gfile.rename(temporary, self.remote + _WRITER, overwrite=True)
            self._remove_temporary()
            self._pull()
            self._last_names = set(self._local_stamps())

    def _remove_temporary(self) -> None:
        """Removes unfinished uploads of killed runs."""
        for folder, _, names in list(_gfile().walk(self.remote)):
            for name in filter(_TEMPORARY.fullmatch, names):
                _gfile().remove(f"{folder.rstrip('/')}/{name}")

    def _check_writer(self) -> None:
        if self._run_id and self._writer() not in (self._run_id, ""):
            raise TakenOver(
                f"Another run has started in {self.remote}, so this run ends. Give each run a "
                "separate folder."
            )

    def _writer(self) -> str:
        try:
            _check_kind(self.remote + _WRITER)
            with _gfile().GFile(self.remote + _WRITER) as file:
                return file.read()
        except _not_found():
            return ""

    def push(self) -> None:
        """Uploads changed local files, then deletes remote files that this process deleted locally.

        Raises:
          RunError: if the remote folder cannot be written.
          TakenOver: if there are changes, and another run has claimed the folder.
        """
        with self._exclusive(), _one_line_errors(self.remote):
            if not self._index.exists():
                return  # the local copy is incomplete: a command ended while it downloaded
            index, local_stamps = self._read_index(), self._local_stamps()
            for name in sorted(local_stamps, key=_checkpoints_last):
                if index.get(name, [None, None])[1] != local_stamps[name]:
                    self._upload(name)
                    index[name] = [_remote_stamp(self.remote + name), local_stamps[name]]
                    write_json(self._index, index)
            for name in [
                name for name in index if name in self._last_names and name not in local_stamps
            ]:
                self._check_writer()
                if _gfile().exists(self.remote + name):
                    _gfile().remove(self.remote + name)
                del index[name]
                write_json(self._index, index)
            self._last_names = set(local_stamps)

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Excludes other threads and processes of this machine from synchronizing."""
        with self._lock, one_at_a_time(self.path):
            yield

    def _upload(self, name: str) -> None:
        address = self.remote + name
        _gfile().makedirs(address.rpartition("/")[0])
        self._check_writer()
        # The temporary name keeps a kill from leaving half a file under the final one. It cannot be
        # guessed, because others may write in the folder of a file:// address.
        temporary = f"{address}.{uuid.uuid4().hex}.tmp"
        _gfile().copy(f"{self.path}{name}", temporary)
        self._check_writer()  # copying may have taken minutes
        _gfile().rename(temporary, address, overwrite=True)

    def _read_index(self) -> dict[str, list]:
        return read_json(self._index) if self._index.exists() else {}

    def _local_stamps(self) -> dict[str, list]:
        """Returns name -> stamp of the local files."""
        files = [path for path in (self.path, Path(f"{self.path}.json")) if path.is_file()]
        files += [path for path in self.path.rglob("[!.]*") if path.is_file()]
        return {str(path).removeprefix(str(self.path)): _local_stamp(path) for path in files}

    def _remote_stamps(self) -> dict[str, list]:
        """Returns name -> stamp of the remote files."""
        gfile, addresses = _gfile(), []
        if gfile.exists(self.remote):
            addresses = [self.remote]
            if gfile.isdir(self.remote):
                addresses = [
                    f"{folder.rstrip('/')}/{name}"
                    for folder, _, names in gfile.walk(self.remote)
                    for name in names
                    if not name.endswith(".tmp") and f"/{name}" != _WRITER
                ]
            if gfile.exists(f"{self.remote}.json"):
                addresses.append(f"{self.remote}.json")
        return {name.removeprefix(self.remote): _remote_stamp(name) for name in addresses}


def _check_kind(address: str) -> None:
    """Raises RunError if a file:// address is not a regular file, such as a named pipe."""
    path = Path(address.removeprefix("file://"))
    if address.startswith("file://") and path.exists():
        open_file(path).close()


def _not_found() -> type[Exception]:
    import tensorflow as tf

    return tf.errors.NotFoundError


def _gfile():
    import tensorflow as tf

    return tf.io.gfile


def _remove(path: Path) -> None:
    """Removes a file or folder, but keeps a lock file in the folder."""
    if not (path / ".lock").exists():
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return
    for child in path.iterdir():
        if child.is_dir():
            shutil.rmtree(child)
        elif child.name != ".lock":
            child.unlink()


def _checkpoints_last(name: str) -> tuple[bool, str]:
    # A resumed run needs the metrics up to its checkpoint.
    return name.startswith("/checkpoints/"), name


def _local_stamp(path: str | Path) -> list:
    stat = Path(path).stat()
    return [stat.st_size, stat.st_mtime_ns]


def _remote_stamp(address: str) -> list:
    stat = _gfile().stat(address)
    return [stat.length, stat.mtime_nsec]


@contextlib.contextmanager
def _one_line_errors(remote: str):
    """Starts TensorFlow, and converts errors of its file systems to errors of one line."""
    start_tensorflow()
    import tensorflow as tf

    try:
        yield
    except tf.errors.UnimplementedError:
        raise UsageError(
            f"TensorFlow has no file system for {remote.split('://')[0]}://. Received: {remote}. "
            "The package tensorflow-io provides more file systems."
        ) from None
    except tf.errors.OpError as error:
        reason = short(error.message)
        raise RunError(f"Cannot access {remote}: {reason or type(error).__name__}.") from None
