"""Records: round trips, and refusals of incomplete or damaged folders."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.memory import peak_of
from zoo.errors import RunError, UsageError
from zoo.storage import disk, records
from zoo.storage.records import RecordWriter, ShardedArray, open_records

ROOT = Path(__file__).resolve().parents[3]
LAYOUT = {"tokens": ((5,), "uint16"), "label": ((), np.int64)}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Disables fsync, because hundreds of small shards take minutes on a busy disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def rows(count=100, seed=0):
    numbers = np.random.default_rng(seed)
    tokens = numbers.integers(0, 2**16, (count, 5)).astype(np.uint16)
    return {"tokens": tokens, "label": np.arange(count)}


def write(folder, count=100, seed=0, **options):
    options = {"shard_bytes": 160, "metadata": {"kind": "test"}} | options
    with RecordWriter(folder, LAYOUT, **options) as writer:
        writer.append(**rows(count, seed))
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def python(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process):
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


# --- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_any_rows_in_any_shards_come_back(tmp_path, seed):
    numbers = np.random.default_rng(seed)
    shape = tuple(numbers.integers(1, 4, numbers.integers(0, 3)).tolist())
    dtype = np.dtype(numbers.choice(["u1", "<u2", ">i4", "i8", "f4", "?", "S3", "U2", "c8"]))
    total = int(numbers.integers(1, 200))
    whole = numbers.integers(0, 2, (total, *shape)).astype(dtype)
    cuts = np.sort(numbers.integers(0, total + 1, 4))
    shard_bytes = max(1, int(whole.nbytes * numbers.uniform(0.02, 1.1)))
    with RecordWriter(tmp_path / "made", {"x": (shape, dtype)}, shard_bytes=shard_bytes) as writer:
        for part in np.split(whole, cuts):
            writer.append(x=part)
    array = open_records(tmp_path / "made").arrays["x"]
    assert (array.shape, array.dtype) == (whole.shape, whole.dtype)
    assert [array.ndim, array.nbytes, array.size] == [whole.ndim, whole.nbytes, whole.size]
    assert len(array) == total
    np.testing.assert_array_equal(np.asarray(array), whole)
    bounds = [*numbers.integers(-total - 3, total + 3, 8), None, 0]
    for _ in range(40):
        start, stop = numbers.choice(bounds, 2)
        step = numbers.choice([None, 1, 2, 7, -1, -3])
        np.testing.assert_array_equal(array[start:stop:step], whole[start:stop:step])
        places = numbers.integers(-total, total, numbers.integers(0, 6, numbers.integers(1, 4)))
        for index in (places, np.sort(places, axis=None), places.tolist()):
            expected = whole[np.asarray(index, np.int64)]
            received = array[index]
            assert (received.shape, received.dtype) == (expected.shape, expected.dtype)
            np.testing.assert_array_equal(received, expected)
    for index in (0, -1, total - 1, -total, np.int32(0)):
        np.testing.assert_array_equal(array[index], whole[index])
        assert np.shape(array[index]) == shape


@pytest.mark.parametrize("shard_bytes", [50, 10**9])
def test_a_row_that_is_not_there_is_an_index_error(tmp_path, shard_bytes):
    array = open_records(write(tmp_path / "made", shard_bytes=shard_bytes)).arrays["tokens"]
    for index in (100, -101, [0, 100], [[-101]], 2**40):
        with pytest.raises(IndexError, match="is out of bounds for 100 rows"):
            array[index]
    for index in ((0, 1), 1.0, [True] * 100, "label", None):
        with pytest.raises(IndexError, match="Rows must be indexed by integers"):
            array[index]
    assert len(list(array)) == 100


def test_what_is_read_is_the_readers_own_and_the_map_is_not(tmp_path):
    array = open_records(write(tmp_path / "made", shard_bytes=10**6)).arrays["tokens"]
    expected = rows()["tokens"]
    for index in (3, slice(0, 50), [1, 2], slice(None)):
        array[index][...] = 0
        np.testing.assert_array_equal(np.asarray(array), expected)
    mapped = np.asarray(array)
    assert np.shares_memory(mapped, np.asarray(array))
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 0
    assert not np.shares_memory(mapped, np.array(array))
    assert np.asarray(array, np.float64).dtype == np.float64
    pieces = ShardedArray([mapped[:60], mapped[60:]])
    np.testing.assert_array_equal(np.asarray(pieces, np.int32), expected)
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(pieces, copy=False)
    for start, stop, shared in ((5, 60, True), (60, 100, True), (59, 61, False), (100, 100, False)):
        part = pieces.part(start, stop)
        np.testing.assert_array_equal(part, expected[start:stop])
        assert np.shares_memory(part, mapped) == shared
        assert part.base is None or part.base.shape != pieces.shape or shared


def test_a_shard_is_what_the_manifest_and_numpy_say(tmp_path):
    folder = write(tmp_path / "made")
    manifest = json.loads((folder / "manifest.json").read_text())
    # 16 rows of 10 bytes and 20 rows of 8 bytes a shard.
    assert [len(manifest["arrays"][name]["sha256"]) for name in LAYOUT] == [7, 5]
    data = (folder / "tokens-00001.bin").read_bytes()
    assert manifest["arrays"]["tokens"]["sha256"][1] == hashlib.sha256(data).hexdigest()
    stored = np.fromfile(folder / "tokens-00001.bin", "<u2").reshape(-1, 5)
    np.testing.assert_array_equal(stored, rows()["tokens"][16:32])
    assert folder.stat().st_mode & 0o777 == 0o755


def test_metadata_comes_back_and_the_fingerprint_tells_any_change(tmp_path):
    metadata = {"name": "é", "nested": {"a": [1, 2.5, None]}}
    original = open_records(write(tmp_path / "0", metadata=metadata))
    assert original.metadata == metadata
    others = [
        open_records(write(tmp_path / str(number), **options))
        for number, options in enumerate(
            [{}, {"metadata": {}}, {"seed": 1}, {"count": 99}, {"shard_bytes": 80}], start=1
        )
    ]
    prints = [records.fingerprint for records in (original, *others)]
    assert len(set(prints)) == len(prints)
    assert open_records(write(tmp_path / "again", metadata=metadata)).fingerprint == prints[0]


def write_blocks(folder):
    block = np.zeros((1000, 512), np.uint8)
    with RecordWriter(folder, {"x": ((512,), "u1")}, shard_bytes=4 << 20) as writer:
        for _ in range(40):
            writer.append(x=block)


def test_memory_stays_constant(tmp_path):
    _, peak = peak_of(write_blocks, tmp_path / "made")
    assert 1 << 20 < peak < 4 << 20
    assert open_records(tmp_path / "made").arrays["x"].shape == (40_000, 512)


# --- refusals of the writer ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tokens": None}, "must have the arrays tokens, label. Received: label"),
        ({"more": np.zeros(100)}, "Received: tokens, label, more"),
        ({"label": np.arange(99)}, "tokens 100, label 99"),
        ({"tokens": np.zeros((100, 4), "u2")}, r"rows of \(5,\) uint16. Received: .*\(100, 4\)"),
        ({"label": np.int64(3)}, r"'label' must have rows of \(\) int64"),
        ({"label": np.zeros(100)}, "Received: float64"),
        ({"tokens": np.full((100, 5), 65_536)}, "values 65536 … 65536"),
        ({"tokens": np.full((100, 5), -1)}, "values -1 … -1"),
        ({"label": np.full(100, 2**63, np.uint64)}, "values 9223372036854775808"),
    ],
)
def test_rows_that_do_not_fit_are_refused_whole(tmp_path, given, words):
    with RecordWriter(tmp_path / "made", LAYOUT) as writer:
        writer.append(**rows(3))
        wrong = {name: array for name, array in (rows() | given).items() if array is not None}
        with pytest.raises(UsageError, match=words):
            writer.append(**wrong)
        writer.append(tokens=rows(2)["tokens"].astype(np.int64), label=np.arange(2, dtype="u1"))
    assert open_records(tmp_path / "made").arrays["label"][:].tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("arrays", "metadata", "words"),
    [
        ({}, None, "require at least one array"),
        ({"a/b": ((), "i4")}, None, "must be a Python identifier. Received: 'a/b'"),
        ({"x": ((), object)}, None, "plain NumPy types. Received: object for 'x'"),
        ({"x": ((), [("a", "i4")])}, None, "plain NumPy types"),
        ({"x": ((3, 0), "i4")}, None, r"must not be empty. Received: \(3, 0\)"),
        ({"x": ((), "S0")}, None, "must not be empty"),
        ({"x": ((), "i4")}, {"a": {1}}, "must be JSON"),
        ({"x": ((), "i4")}, {"a": float("nan")}, "must be JSON"),
    ],
)
def test_a_layout_that_cannot_be_written_is_refused(tmp_path, arrays, metadata, words):
    with pytest.raises(UsageError, match=words):
        RecordWriter(tmp_path / "made", arrays, metadata=metadata)


def test_nothing_is_left_of_a_block_that_fails(tmp_path):
    with pytest.raises(RunError, match="No rows were written"):
        write(tmp_path / "a", count=0)
    with (
        pytest.raises(UsageError, match="must have the arrays tokens"),
        RecordWriter(tmp_path / "a", LAYOUT) as w,
    ):
        w.append(nothing=w.append(**rows()))
    assert names(tmp_path) == []


@pytest.mark.parametrize("call", [1, 8, 13, 14])  # a shard, the last one, the manifest, the folder
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch, call):
    calls = iter(range(1, 100))
    fsync = os.fsync

    def full(descriptor):
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        write(tmp_path / "made")
    assert call == 14 or str(tmp_path) in error.value.filename
    assert names(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_really_full_disk_is_reported_as_one(tmp_path, monkeypatch):
    shards = records._ShardWriter(tmp_path, records._Layout("x", (), np.dtype("u1"), 10**6))
    with open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(records, "open", lambda *a, **k: full, raising=False)
        with pytest.raises(OSError, match="No space left") as error:
            shards.append(np.zeros(10**5, np.uint8))
    assert error.value.filename == str(tmp_path / "x-00000.bin")


# --- damage -------------------------------------------------------------------------------------


def change(path, new):
    path.write_bytes(new(path.read_bytes()))


def edit(path, old, new):
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


SHARD, END, JSON = "tokens-00003.bin", "label-00004.bin", "manifest.json"


@pytest.mark.parametrize(
    ("damage", "name", "words"),
    [
        (lambda f: change(f / SHARD, lambda b: b[:-1]), SHARD, "has 159 bytes instead of 160"),
        (lambda f: change(f / SHARD, lambda b: b + b"x"), SHARD, "has 161 bytes instead of 160"),
        (lambda f: change(f / SHARD, lambda b: b""), SHARD, "has 0 bytes instead of 160"),
        (lambda f: change(f / END, lambda b: b + b), END, "has 320 bytes instead of 160"),
        (lambda f: (f / SHARD).unlink(), SHARD, "is missing"),
        (lambda f: (f / END).unlink(), END, "is missing"),
        (lambda f: shutil.copy(f / SHARD, f / "tokens-00007.bin"), "tokens-00007.bin", "not bel"),
        (lambda f: (f / "other-00000.bin").touch(), "other-00000.bin", "does not belong"),
        (lambda f: (f / JSON).unlink(), JSON, "is missing"),
        (lambda f: change(f / JSON, lambda b: b[:-2]), JSON, "is damaged"),
        (lambda f: change(f / JSON, lambda b: b"\xff\x00"), JSON, "is damaged"),
        (lambda f: change(f / JSON, lambda b: b"[]"), JSON, "is damaged"),
        (lambda f: change(f / JSON, lambda b: b'{"format": 2}'), JSON, "is damaged"),
        (lambda f: change(f / JSON, lambda b: b"[" * 10**5), JSON, "is damaged"),
        (lambda f: edit(f / JSON, '"format": 2', '"format": 3'), JSON, "has format 3"),
        (lambda f: edit(f / JSON, '"format": 2', '"format": 1'), JSON, "has format 1 instead of 2"),
        (lambda f: edit(f / JSON, '"<u2"', '"<i2"'), JSON, "is damaged"),
        (lambda f: edit(f / JSON, '"test"', '"tost"'), JSON, "is damaged"),
        (lambda f: edit(f / JSON, '"rows": 100', '"rows": 99'), JSON, "is damaged"),
    ],
)
@pytest.mark.parametrize("verify", [True, False])
def test_damage_is_named_and_the_way_out_too(tmp_path, damage, name, words, verify):
    folder = write(tmp_path / "made")
    damage(folder)
    with pytest.raises(RunError, match=words) as error:
        open_records(folder, verify=verify)
    message = str(error.value)
    assert message.startswith(f"{folder / name} ")
    assert message.endswith(f": delete the folder {folder} to create it again.")
    assert "\n" not in message


@pytest.mark.parametrize("seed", range(10))
def test_one_altered_bit_is_noticed_where_it_is(tmp_path, seed):
    folder = write(tmp_path / "made")
    numbers = np.random.default_rng(seed)
    path = folder / numbers.choice([name for name in names(folder) if name != JSON])
    data = np.fromfile(path, np.uint8)
    data[numbers.integers(len(data))] ^= 1 << numbers.integers(8)
    data.tofile(path)
    with pytest.raises(RunError, match=f"{path} was altered"):
        open_records(folder)
    open_records(folder, verify=False)


def test_swapped_shards_are_noticed(tmp_path):
    folder = write(tmp_path / "made")
    first, second = folder / "tokens-00000.bin", folder / "tokens-00001.bin"
    change(first, lambda b: (second.read_bytes(), second.write_bytes(b))[0])
    with pytest.raises(RunError, match="tokens-00000.bin was altered"):
        open_records(folder)


@pytest.mark.parametrize("dtype", ["|O", "|S0", "no", 7])
def test_a_manifest_that_was_made_up_is_refused(tmp_path, dtype):
    folder = write(tmp_path / "made")
    manifest = json.loads((folder / JSON).read_text())
    manifest["arrays"]["tokens"]["dtype"] = dtype
    content = {key: manifest[key] for key in ("rows", "arrays", "metadata")}
    manifest["fingerprint"] = disk.json_digest(content)
    (folder / JSON).write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="manifest.json is damaged"):
        open_records(folder)


def test_no_folder_is_a_wrong_request(tmp_path):
    with pytest.raises(UsageError, match=f"{tmp_path}/nowhere is not a folder"):
        open_records(tmp_path / "nowhere")


# --- kills and concurrent writers ---------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from zoo.storage.records import RecordWriter, open_records

def write(folder):
    layout = {"x": ((5,), "u2"), "y": ((), "i8")}
    with RecordWriter(folder, layout, shard_bytes=160) as writer:
        writer.append(x=np.ones((100, 5), "u2"), y=np.arange(100))

def kill_at(moment):
    calls = iter(range(1000))
    for name in ("fsync", "rename"):
        def watched(*arguments, original=getattr(os, name)):
            for _ in "ab":  # before the call and after it
                if next(calls) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                if _ == "a":
                    original(*arguments)
        setattr(os, name, watched)

folder = Path(sys.argv[1]) / "made"
for moment in range(1000):
    child = os.fork()
    if not child:
        kill_at(moment)
        write(folder)
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = sorted(path.name.split(".tmp")[0] for path in folder.parent.iterdir())
    if folder.exists():
        assert len(open_records(folder).arrays["y"]) == 100
        assert left == ["made"], left
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        print("whole" if killed else "end")
    else:
        # At most one: each writer removes the folder of the killed one before.
        assert left == [".made"], left
        print("nothing")
    if not killed:
        break
"""


def test_a_kill_at_any_moment_leaves_all_or_nothing(tmp_path):
    *states, last = output(python(KILLED, tmp_path)).split()
    assert last == "end"
    assert states == sorted(states)  # first nothing, from some moment on everything
    # 12 shards, manifest, folder, rename, parent: nothing until the rename is done.
    assert (states.count("nothing"), states.count("whole")) == (29, 3)
    assert names(tmp_path) == []


TOGETHER = """
import sys
from pathlib import Path
import numpy as np
from zoo.storage.records import RecordWriter, open_records
folder = Path(sys.argv[1])
with RecordWriter(folder, {"x": ((5,), "u2")}, shard_bytes=100) as writer:
    for _ in range(40):
        writer.append(x=np.arange(500).reshape(100, 5))
    print("ready", flush=True)
    sys.stdin.readline()
print(open_records(folder).fingerprint)
"""


def test_processes_at_once_end_well_with_one_folder(tmp_path):
    processes = [python(TOGETHER, tmp_path / "made") for _ in range(3)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
    for process in processes:  # all have written, none has finished
        process.stdin.write("\n")
        process.stdin.flush()
    assert len({output(process) for process in processes}) == 1
    assert names(tmp_path) == ["made"]


@pytest.mark.parametrize("same", [True, False])
def test_the_second_to_end_checks_that_its_own_were_the_same(tmp_path, same):
    refusal = contextlib.nullcontext() if same else pytest.raises(RunError, match="other records")
    with refusal, RecordWriter(tmp_path / "made", LAYOUT) as second:
        second.append(**rows(seed=0))
        with RecordWriter(tmp_path / "made", LAYOUT) as first:
            first.append(**rows(seed=0 if same else 1))
    tokens = open_records(tmp_path / "made").arrays["tokens"][:]
    np.testing.assert_array_equal(tokens, rows(seed=0 if same else 1)["tokens"])
    assert names(tmp_path) == ["made"]


@pytest.mark.parametrize("moment", ["before the lock", "at the lock", "before the manifest"])
def test_a_new_folder_that_another_writer_takes_for_a_dead_one(tmp_path, monkeypatch, moment):
    folders, mkdtemp, flock = [], records.tempfile.mkdtemp, fcntl.flock

    def make(**options):
        folders.append(Path(mkdtemp(**options)))
        if moment == "before the manifest" and len(folders) == 1:
            folders[0].rmdir()
        return str(folders[-1])

    def lock(file, operation):
        if len(folders) == 1 and moment == "before the lock":
            shutil.rmtree(folders[0])
        if len(folders) == 1 and moment == "at the lock":
            raise BlockingIOError(errno.EAGAIN, "")
        flock(file, operation)

    monkeypatch.setattr(records.tempfile, "mkdtemp", make)
    monkeypatch.setattr(fcntl, "flock", lock)
    assert len(open_records(write(tmp_path / "made")).arrays["label"]) == 100
    assert len(folders) == 2


def test_what_is_there_already_is_kept_and_told_before_the_work(tmp_path):
    folder = write(tmp_path / "made")
    write(folder)
    with pytest.raises(RunError, match="already contains other records"):
        RecordWriter(folder, LAYOUT, metadata={"kind": "other"}).__enter__()
    with pytest.raises(RunError, match="already contains other records"):
        RecordWriter(folder, {"x": ((), "i4")}, metadata={"kind": "test"}).__enter__()
    (folder / SHARD).unlink()
    with pytest.raises(RunError, match=f"{SHARD} is missing: delete the folder"):
        RecordWriter(folder, LAYOUT).__enter__()
    (tmp_path / "mine").mkdir()
    write(tmp_path / "mine")  # an empty folder has no content
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    with pytest.raises(RunError, match="manifest.json is missing"):
        RecordWriter(tmp_path / "notes", LAYOUT).__enter__()
    assert names(tmp_path / "notes") == ["a.txt"]
    assert names(tmp_path) == ["made", "mine", "notes"]


def test_only_folders_of_killed_writers_are_removed(tmp_path):
    """No write goes through a link of such a name, and folders of the user stay."""
    foreign = tmp_path / "foreign"
    for folder in (foreign, tmp_path / ".made.tmp-my-notes", tmp_path / ".made.tmp-mynote"):
        folder.mkdir()
        (folder / "a.txt").touch()
    (tmp_path / ".made.tmpaaaaaaaa").symlink_to(foreign)
    (tmp_path / ".made.tmpbbbbbbbb").mkdir()
    os.mkfifo(tmp_path / ".made.tmpbbbbbbbb" / "manifest.json")
    (tmp_path / ".made.tmpcccccccc").mkdir()
    (tmp_path / ".made.tmpcccccccc" / "manifest.json").symlink_to(foreign / "new")
    (tmp_path / ".made.tmpdddddddd").mkdir()
    before = names(tmp_path)
    write(tmp_path / "made")
    assert names(foreign) == ["a.txt"]
    assert names(tmp_path) == sorted({*before, "made"} - {".made.tmpdddddddd"})
