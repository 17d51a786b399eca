"""Work directories on gs:// and the like: kept on this machine too, and copied there as they grow.

Buckets know neither locks nor appending nor mapped memory, and a work directory needs all three.
So the zoo works in a copy in its cache folder. What is on the bucket counts: a command first takes
over what changed there since it last copied, and copies back what it made. Training copies after
each checkpoint. Whatever `tf.io.gfile` opens is understood: gs://, file://, ram://, and hdfs:// and
s3:// once tensorflow-io is there.

A run puts its name into the folder (`.writer`) when it starts, before it takes over what is there.
Where another run, on another machine, has put its own there since, the earlier one copies nothing
more and ends.
"""

import contextlib
import re
import shutil
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from zoo.data.datasets import cache_dir
from zoo.data.disk import atomic_path, open_file, read_json, write_json
from zoo.errors import RunError, UsageError, short
from zoo.locks import is_held, one_at_a_time

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.]*)://(?P<path>.*)", re.DOTALL)
_NOT_FILES = ("http", "https", "grpc")
_FLAGS = ("--workdir=", "--model_dir=", "--out=")
_WRITER = "/.writer"
_TEMPORARY = re.compile(r".*\.[0-9a-f]{32}\.tmp")
_TRIES = 3  # to copy a folder that changes meanwhile
_mirrors: dict[Path, "Mirror"] = {}


def is_remote(name) -> bool:
    """Whether a file or folder is to be reached by `tf.io.gfile` alone."""
    match = _URL.fullmatch(str(name))
    return bool(match) and match["scheme"] not in _NOT_FILES


def local(name: str | Path) -> Path:
    """Returns where a file or folder lies on this machine; a remote one is copied here first.

    Raises:
      UsageError: for a scheme that TensorFlow has no file system for.
      RunError: where it cannot be read.
    """
    if not is_remote(name):
        return Path(name)
    match = _URL.fullmatch(str(name))
    parts = PurePosixPath(match["path"].strip("/")).parts
    if not parts or ".." in parts:
        raise UsageError(f"A folder on {match['scheme']}:// has a name. Received: {name}.")
    path = cache_dir() / "remote" / match["scheme"] / Path(*parts)
    if path not in _mirrors:
        root = "/" if match["path"].startswith("/") else ""
        _mirrors[path] = Mirror(f"{match['scheme']}://{root}{'/'.join(parts)}", path)
    _mirrors[path].pull()
    return path


def mirror_of(path: Path) -> "Mirror | None":
    """The mirror whose copy lies at `path`, of those that `local` made in this process."""
    return _mirrors.get(path)


@contextlib.contextmanager
def localized(argv: Sequence[str]) -> Iterator[list[str]]:
    """The words of a command with remote files and folders replaced by local copies.

    What the command changed is copied back at its end, however it ends.
    """
    words, found = [argv[0]], []
    for word in argv[1:]:
        flag = next((flag for flag in _FLAGS if word.startswith(flag)), "")
        name = word.removeprefix(flag)
        if is_remote(name):
            found.append(local(name))
            name = str(found[-1])
        words.append(flag + name)
    with contextlib.ExitStack() as stack:
        for path in dict.fromkeys(found):  # one may be named twice
            stack.callback(_mirrors.pop, path)
            stack.callback(push_at_end, _mirrors[path])
        yield words


def push_at_end(mirror: "Mirror") -> None:
    """Copies back; where another error is on its way to the user, a failure is only said."""
    failing = sys.exc_info()[0] is not None
    try:
        mirror.push()
    except RunError as error:
        if not failing:
            raise
        print(f"zoo: {error}", file=sys.stderr, flush=True)


class TakenOver(RunError):
    """Another run works in the remote folder since."""


class Mirror:
    """A remote file or folder and its copy on this machine.

    Files are known by what follows the address: "/config.json" in a folder, "" for the file
    itself, ".json" for what `zoo export` lays beside either.

    Args:
      remote: its address, without a slash at the end.
      path: of the copy.
    """

    def __init__(self, remote: str, path: Path):
        self.remote, self.path = remote, path
        # {name: [stamp there, stamp here]} of what is equal in both; beside the copy.
        self._index = path.with_name(f".{path.name}.mirror.json")
        self._lock = threading.Lock()
        self._seen: set[str] = set()  # what was here after the last copying
        self._name = ""  # of a run, while it has the folder

    def pull(self) -> None:
        """Makes the copy what the remote folder is, unless that is as it was when last copied.

        Then the copy may be newer, of a process that was killed before it copied back, and stays;
        only what it lacks is copied anew.

        Raises:
          RunError: where it cannot be read.
        """
        with self._alone(), _named(self.remote):
            if not is_held(self.path):  # else this machine trains: nothing is newer
                self._pull()
            self._seen = set(self._here())

    def _pull(self) -> None:
        for more in reversed(range(_TRIES)):
            try:
                self._take_over()
                break
            except _gone():  # a run elsewhere deletes its oldest checkpoint
                if not more:
                    raise

    def _take_over(self) -> None:
        there, known = self._there(), self._known()
        if there and there == {name: stamps[0] for name, stamps in known.items()}:
            lacking = [name for name in there if not Path(f"{self.path}{name}").exists()]
        else:
            # Without an index what follows is no whole copy, and is never copied back.
            self._index.unlink(missing_ok=True)
            _remove(self.path)
            Path(f"{self.path}.json").unlink(missing_ok=True)
            known, lacking = {}, list(there)
        for name in lacking:
            target = Path(f"{self.path}{name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(target) as made:
                _check_kind(self.remote + name)
                _gfile().copy(self.remote + name, str(made))
            known[name] = [there[name], _stamp(target)]
        self._know(known)
        if lacking:
            print(f"zoo: {self.remote} is copied to {self.path}", file=sys.stderr, flush=True)

    def claim(self) -> None:
        """Takes the folder for a run of this process, which has locked the copy; then as `pull`.

        Whoever had it copies nothing from now on.

        Raises:
          RunError: where it cannot be written.
        """
        with self._alone(), _named(self.remote):
            gfile, self._name = _gfile(), uuid.uuid4().hex
            gfile.makedirs(self.remote)
            temporary = f"{self.remote}{_WRITER}.{self._name}.tmp"
            with gfile.GFile(temporary, "w") as file:
                file.write(self._name)
            gfile.rename(temporary, self.remote + _WRITER, overwrite=True)
            self._remove_temporary()
            self._pull()
            self._seen = set(self._here())

    def _remove_temporary(self) -> None:
        """Removes what kills left of `_upload`."""
        for folder, _, names in list(_gfile().walk(self.remote)):
            for name in filter(_TEMPORARY.fullmatch, names):
                _gfile().remove(f"{folder.rstrip('/')}/{name}")

    def _check_writer(self) -> None:
        if self._name and self._writer() not in (self._name, ""):
            raise TakenOver(
                f"Another run works in {self.remote} since this one began, so this one ends: one "
                "run, one folder."
            )

    def _writer(self) -> str:
        try:
            _check_kind(self.remote + _WRITER)
            with _gfile().GFile(self.remote + _WRITER) as file:
                return file.read()
        except _gone():
            return ""

    def push(self) -> None:
        """Copies what is new here, then deletes there what this process saw here and is gone.

        Raises:
          RunError: where it cannot be written.
          TakenOver: where another run has taken the folder since this one's `claim`, and there is
            something to copy.
        """
        with self._alone(), _named(self.remote):
            if not self._index.exists():
                return  # another command was ended while it copied
            known, here = self._known(), self._here()
            for name in sorted(here, key=_checkpoints_last):
                if known.get(name, [None, None])[1] != here[name]:
                    self._upload(name)
                    known[name] = [_stamp_there(self.remote + name), here[name]]
                    self._know(known)
            for name in [name for name in known if name in self._seen and name not in here]:
                self._check_writer()
                if _gfile().exists(self.remote + name):
                    _gfile().remove(self.remote + name)
                del known[name]
                self._know(known)
            self._seen = set(here)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """While it lasts no other thread or process of this machine copies."""
        with self._lock, one_at_a_time(self.path):
            yield

    def _upload(self, name: str) -> None:
        address = self.remote + name
        _gfile().makedirs(address.rpartition("/")[0])
        # A kill leaves no half of a file under its name.
        self._check_writer()
        # Nobody can guess the name: file:// may be a folder that others write in.
        temporary = f"{address}.{uuid.uuid4().hex}.tmp"
        _gfile().copy(f"{self.path}{name}", temporary)
        self._check_writer()  # copying may have taken minutes
        _gfile().rename(temporary, address, overwrite=True)

    def _known(self) -> dict[str, list]:
        return read_json(self._index) if self._index.exists() else {}

    def _know(self, known: dict[str, list]) -> None:
        write_json(self._index, known)

    def _here(self) -> dict[str, list]:
        """Name -> stamp of the files on this machine."""
        files = [path for path in (self.path, Path(f"{self.path}.json")) if path.is_file()]
        files += [path for path in self.path.rglob("[!.]*") if path.is_file()]
        return {str(path).removeprefix(str(self.path)): _stamp(path) for path in files}

    def _there(self) -> dict[str, list]:
        """Name -> stamp of the remote files."""
        gfile, found = _gfile(), []
        if gfile.exists(self.remote):
            found = [self.remote]
            if gfile.isdir(self.remote):
                found = [
                    f"{folder.rstrip('/')}/{name}"
                    for folder, _, names in gfile.walk(self.remote)
                    for name in names
                    if not name.endswith(".tmp") and f"/{name}" != _WRITER
                ]
            if gfile.exists(f"{self.remote}.json"):
                found.append(f"{self.remote}.json")
        return {name.removeprefix(self.remote): _stamp_there(name) for name in found}


def _check_kind(address: str) -> None:
    """Raises RunError where a file of a folder on this machine is none, such as a named pipe."""
    path = Path(address.removeprefix("file://"))
    if address.startswith("file://") and path.exists():
        open_file(path).close()


def _gone() -> type[Exception]:
    import tensorflow as tf

    return tf.errors.NotFoundError


def _gfile():
    import tensorflow as tf

    return tf.io.gfile


def _remove(path: Path) -> None:
    """Removes a file or folder, but for the lock that a process may have in it."""
    if not (path / ".lock").exists():
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        return
    for child in path.iterdir():
        if child.is_dir():
            shutil.rmtree(child)
        elif child.name != ".lock":
            child.unlink()


def _checkpoints_last(name: str) -> tuple[bool, str]:
    # A checkpoint counts only with the metrics up to it.
    return name.startswith("/checkpoints/"), name


def _stamp(path: str | Path) -> list:
    stat = Path(path).stat()
    return [stat.st_size, stat.st_mtime_ns]


def _stamp_there(address: str) -> list:
    stat = _gfile().stat(address)
    return [stat.length, stat.mtime_nsec]


@contextlib.contextmanager
def _named(remote: str):
    """Starts TensorFlow, and turns what its file systems raise into one line."""
    from trainers.start import start_tensorflow

    start_tensorflow()
    import tensorflow as tf

    try:
        yield
    except tf.errors.UnimplementedError:
        raise UsageError(
            f"TensorFlow has no file system for {remote.split('://')[0]}:// here. Received: "
            f"{remote}; tensorflow-io brings some."
        ) from None
    except tf.errors.OpError as error:
        reason = short(error.message)
        raise RunError(f"Cannot work in {remote}: {reason or type(error).__name__}.") from None
