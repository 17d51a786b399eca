"""Damaged and hostile files: readers return a value or raise an error of one line.

Inputs are valid files with random changes, drawn by a seed: bytes anywhere, values inside JSON
(signed again where the format has a checksum), and content inside archives. No input may hang,
write outside its folder or raise anything else.

    ZOO_FUZZ=100 pytest tests/zoo/storage/test_fuzz_readers.py    # 100 times as many inputs
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import signal
import zipfile

import keras
import numpy as np
import pytest

from trainers.config.recipe import as_dict, resolve
from trainers.report import page as report
from trainers.run import checkpoint, workdir
from zoo.data import sources
from zoo.data.arrays import images, npz
from zoo.data.text import corpora, tokenizers
from zoo.errors import RunError, UsageError
from zoo.models.convert import published as convert
from zoo.models.convert import safetensors as convert_safetensors
from zoo.saved.model import open_model
from zoo.storage import disk, records

SECONDS = 10  # for one input, on a busy machine
TIMES = int(os.environ.get("ZOO_FUZZ", "1"))

ODD = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, -(10**30), 0.5, 1e308, float("nan"),
    float("inf"), "", "x", "../x", "/etc/passwd", "\x00", "\ud800", "a\nb", "x" * 5000, "O", "|O8",
    "V", "<U0", [], [[]], {}, {"a": []}, [1, 2], [None], [2**40], [-1], [0], [True], [1.5], ["a"],
]  # fmt: skip


# --- changes --------------------------------------------------------------------------------------


def bytes_changed(draw: random.Random, data: bytes) -> bytes:
    data = bytearray(data)
    for _ in range(draw.choice([1, 1, 2, 8])):
        place = draw.randrange(len(data) + 1)
        length = draw.choice([1, 1, 2, 4, 8, 64])
        match draw.randrange(6):
            case 0:
                del data[place:]
            case 1:
                del data[place : place + length]
            case 2:
                data[place:place] = draw.randbytes(length)
            case 3:
                data[place : place + length] = draw.choice([b"\x00", b"\xff", b"["]) * length
            case 4:
                data[place:place] = data[place : place + 64]
            case _:
                for at in range(place, min(place + length, len(data))):
                    data[at] ^= 1 << draw.randrange(8)
    return bytes(data)


def value_changed(draw: random.Random, value):
    """Replaces or removes a part of a JSON value."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        value, key = dict(value), draw.choice(sorted(value))
        if draw.random() < 0.15:
            del value[key]
        elif draw.random() < 0.1:
            value[draw.choice(["..", "", "x/y", "\x00"])] = value.pop(key)
        else:
            value[key] = value_changed(draw, value[key])
        return value
    if isinstance(value, list) and value and draw.random() < 0.8:
        value, place = list(value), draw.randrange(len(value))
        value[place] = value_changed(draw, value[place])
        return value
    return draw.choice(ODD)


def json_changed(draw: random.Random, data: bytes) -> bytes:
    if draw.random() < 0.05:
        return b"[" * 100_000
    return json.dumps(value_changed(draw, json.loads(data))).encode()


def lines_changed(draw: random.Random, data: bytes) -> bytes:
    lines = data.splitlines()
    place = draw.randrange(len(lines))
    lines[place] = json_changed(draw, lines[place])
    return b"\n".join(lines)


def signed(draw: random.Random, data: bytes) -> bytes:
    """A changed manifest or tokenizer with a valid hash of itself."""
    value = value_changed(draw, json.loads(data))
    if isinstance(value, dict) and "rows" in value:
        content = {key: value.get(key) for key in ("rows", "arrays", "metadata")}
        value["fingerprint"] = disk.json_digest(content)
    elif isinstance(value, dict) and "checksum" in value:
        del value["checksum"]
        value["checksum"] = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    return json.dumps(value).encode()


def member_changed(draw: random.Random, data: bytes) -> bytes:
    """A zip archive with a changed member and a valid CRC."""
    output = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(output, "w") as changed:
        names = archive.namelist()
        one = draw.choice(names)
        for name in names:
            content = archive.read(name)
            if name == one and name.endswith(".json"):
                content = json_changed(draw, content)
            elif name == one:
                # The header of an array lies in the first bytes.
                head = draw.choice([64, 128, len(content)])
                content = bytes_changed(draw, content[:head]) + content[head:]
            with contextlib.suppress(UserWarning):
                changed.writestr(name, content)
    return output.getvalue()


# --- readers --------------------------------------------------------------------------------------


def read_corpus(form):
    def read(path):
        corpus = corpora.load_corpus(f"{form}{path}")
        return [list(split()) for split in corpus.splits.values()]

    return read


def read_records(path):
    opened = records.open_records(path.parent)
    return [array[:2] for array in opened.arrays.values()]


def read_tensors(path):
    tensors = convert_safetensors.open_folder(path.parent)
    return [tensors[name] for name in tensors]


def read_tokenizer(path):
    tokenizer = tokenizers.load(path)
    return tokenizer.decode(tokenizer.encode("some text"))


def read_image(path):
    try:
        return images.decode(path, (4, 4, 3))
    except images.Unreadable as error:
        raise RunError(str(error)) from None


def read_run(path):
    return workdir.read_config(path.parent), workdir.read_metrics(path.parent)


def go_on(path):
    directory = workdir.WorkDirectory(path.parent).open()
    try:
        directory.start_metrics(3)
    finally:
        directory.close()


def read_report(path):
    folder = path.parent.parent if path.parent.name == "evaluation" else path.parent
    return report.write_report(folder)


def read_dataset(path):
    return npz.load("a", path)


BYTES = (bytes_changed,)
# Name -> (valid file, reader, changes, number of inputs).
READERS = {
    "config": ("run/config.json", read_run, (bytes_changed, json_changed), 120),
    "metrics": ("run/metrics.jsonl", read_run, (bytes_changed, lines_changed), 60),
    "go_on": ("run/metrics.jsonl", go_on, (bytes_changed, lines_changed), 60),
    "model": ("model.keras", open_model, (bytes_changed, member_changed), 60),
    "report_config": ("run/config.json", read_report, (json_changed,), 10),
    "report_metrics": ("run/metrics.jsonl", read_report, (bytes_changed, lines_changed), 8),
    "report_json": ("run/evaluation/test.json", read_report, (json_changed,), 8),
    "report_samples": ("run/evaluation/test_samples.json", read_report, (json_changed,), 12),
    "report_npz": ("run/evaluation/test.npz", read_report, (bytes_changed, member_changed), 8),
    "tokenizer": ("tokenizer.json", read_tokenizer, (bytes_changed, json_changed, signed), 90),
    "manifest": ("records/manifest.json", read_records, (bytes_changed, signed, signed), 120),
    "shard": ("records/a-00000.bin", read_records, BYTES, 20),
    "npz": ("a.npz", read_dataset, (bytes_changed, member_changed), 120),
    "checkpoint": ("step.npz", checkpoint.read, (bytes_changed, member_changed), 100),
    "text": ("a.txt", read_corpus("text:"), BYTES, 40),
    "gzip": ("a.txt.gz", read_corpus("text:"), BYTES, 40),
    "jsonl": ("a.jsonl", read_corpus("text:"), (bytes_changed, lines_changed), 60),
    "pairs": ("a.tsv", read_corpus("pairs:"), BYTES, 30),
    "png": ("a.png", read_image, BYTES, 60),
    "jpeg": ("a.jpg", read_image, BYTES, 30),
    "safetensors": ("gpt/model.safetensors", read_tensors, BYTES, 100),
    "transformers": ("gpt/config.json", lambda path: convert._read_config(path),
                     (bytes_changed, json_changed), 80),
}  # fmt: skip


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """A folder with a small valid file of each kind."""
    folder = tmp_path_factory.mktemp("valid")
    _run(folder / "run")
    tokenizer = tokenizers.train("bpe", ["some text of some words " * 50], 280, "none")
    tokenizer.save(folder / "tokenizer.json")
    with records.RecordWriter(folder / "records", {"a": ((2,), "<u2")}, shard_bytes=8) as writer:
        writer.append(a=np.arange(12, dtype="<u2").reshape(6, 2))
    images = np.arange(6 * 16, dtype=np.uint8).reshape(6, 4, 4, 1)
    labels = np.arange(6) % 2
    np.savez_compressed(
        folder / "a.npz", train_image=images, train_label=labels, test_image=images,
        test_label=labels,
    )  # fmt: skip
    header = json.dumps({"step": 7, "counters": {"epoch": 1}, "paths": ["a", "b"]}).encode()
    np.savez(
        folder / "step.npz",
        **{"header": np.frombuffer(header, np.uint8), "00000": np.ones((2, 3), "f4"),
           "00001": np.int64(7)},
    )  # fmt: skip
    text = "".join(f"Sentence {number} of a text.\n" for number in range(30))
    (folder / "a.txt").write_text(text)
    (folder / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    lines = [json.dumps({"text": line}) for line in text.splitlines()]
    (folder / "a.jsonl").write_text("\n".join(lines))
    (folder / "a.tsv").write_text("".join(f"{n} one\t{n} eins\n" for n in range(30)))
    from PIL import Image

    pixels = np.arange(12 * 12 * 3, dtype=np.uint8).reshape(12, 12, 3)
    for name in ("a.png", "a.jpg"):
        Image.fromarray(pixels).save(folder / name)
    inputs = keras.Input((3,))
    keras.Model(inputs, keras.layers.Dense(2, name="d")(inputs)).save(folder / "model.keras")
    (folder / "gpt").mkdir()
    _gpt2(folder / "gpt")
    return folder


def _run(folder):
    (folder / "evaluation").mkdir(parents=True)
    config = as_dict(resolve("cnn_digits:debug", [("compress.qat.on", "True")]))
    saved = {
        "format_version": 2, "source": "cnn_digits", "config": config, "class_names": ["a", "b"],
        "data_fingerprint": "0", "tokenizer": None, "facts": {"Data": {"train": 3}},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(saved))
    lines = [{"step": 0, "event": "started", "detail": "now", "time": 1.5}]
    lines += [{"step": n, "loss": 1 / n, "seconds": n, "val_loss": 2.0} for n in range(1, 6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "evaluation" / "test.json").write_text(
        json.dumps({"split": "test", "checkpoint": "final", "weights": "final", "step": 5,
                    "examples": 4, "metrics": {"accuracy": 0.5, "loss": 1.0}})
    )  # fmt: skip
    text = {"example": 2, "label": "a", "prediction": "b", "label_probability": 0.1,
            "probability": 0.9, "texts": [[["one", 0.5], [" two", -0.25]]]}  # fmt: skip
    question = {"source": "who?", "prediction": "b", "reference": "a", "context": "a and b",
                "predicted_span": [6, 7], "reference_span": [0, 1], "f1": 0.0}  # fmt: skip
    (folder / "evaluation" / "test_samples.json").write_text(json.dumps([text, question]))
    np.savez_compressed(
        folder / "evaluation" / "test.npz", labels=np.array([0, 1, 0, 1]),
        predictions=np.array([0, 1, 1, 1]), confidences=np.full(4, 0.5, "f4"),
        class_names=np.array(["a", "b"]), worst_index=np.array([2]),
        worst_inputs=np.zeros((1, 4, 4, 1), "u1"), worst_probabilities=np.full((1, 2), 0.5, "f4"),
    )  # fmt: skip


def _gpt2(folder):
    config = {
        "model_type": "gpt2", "vocab_size": 11, "n_positions": 8, "n_embd": 4, "n_layer": 1,
        "n_head": 2, "n_inner": None, "activation_function": "gelu_new", "resid_pdrop": 0.1,
        "embd_pdrop": 0.1, "attn_pdrop": 0.1, "layer_norm_epsilon": 1e-5, "initializer_range": 0.02,
        "tie_word_embeddings": True,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    convert_safetensors.write(
        folder / "model.safetensors",
        {name: ((2, 3), lambda: np.ones((2, 3), "f4")) for name in ("wte.weight", "ln_f.bias")},
    )


@contextlib.contextmanager
def limited(seconds: int):
    """Interrupts a slow reader, even inside a system call."""

    def ring(*_):
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def outcome(read, path) -> str:
    """Reads a file; returns the message of the error, or ""."""
    with limited(SECONDS):
        try:
            read(path)
        except (UsageError, RunError) as error:
            message = str(error)
            assert message
            assert len(message.splitlines()) == 1
            assert len(message) <= 2000
            return message
    return ""


def tree(folder) -> dict:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


@pytest.fixture
def nothing_is_written(tmp_path, cache, monkeypatch):
    """Checks that no files are created but report.html."""
    outside = tmp_path / "outside"
    outside.mkdir()
    monkeypatch.chdir(outside)
    yield
    assert not list(outside.iterdir())
    assert not (tmp_path / "cache").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_changed_files(name, valid, tmp_path, nothing_is_written):
    file, read, changes, count = READERS[name]
    shutil.copytree(valid, tmp_path / "inputs")
    path = tmp_path / "inputs" / file
    data = path.read_bytes()
    before = tree(tmp_path / "inputs")
    assert not outcome(read, path), "the valid file was refused"
    refused_count = 0
    for number in range(count * TIMES):
        draw = random.Random(f"{name} {number}")
        change = changes[number % len(changes)]
        path.write_bytes(change(draw, data))
        try:
            refused_count += bool(outcome(read, path))
        except (Exception, AssertionError) as error:
            error.add_note(f"input {number} of {name!r}: {path.read_bytes()[:500]!r}")
            raise
    path.write_bytes(data)
    after = tree(tmp_path / "inputs")
    for changed in ("run/report.html", "run/metrics.jsonl", "run/.lock"):  # written on purpose
        before.pop(changed, None)
        after.pop(changed, None)
    assert after == before
    assert refused_count or "report" in name or path.suffix in (".jsonl", ".txt")


KINDS = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "device": lambda path: os.symlink("/dev/zero", path),
    "loop": lambda path: os.symlink(path.name, path),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", READERS)
def test_what_is_no_file(name, kind, valid, tmp_path, nothing_is_written):
    file, read, _, _ = READERS[name]
    shutil.copytree(valid, tmp_path / "inputs")
    path = tmp_path / "inputs" / file
    path.unlink()
    KINDS[kind](path)
    message = outcome(read, path)
    # The report notes unreadable files. A run may have no metrics.
    assert message or "report" in name or path.name == "metrics.jsonl", "it was read"


def test_folders_of_images_and_text_leave_out_what_is_no_file(valid, tmp_path, cache, capsys):
    for name in ("one", "two"):
        (tmp_path / "images" / name).mkdir(parents=True)
        shutil.copy(valid / "a.png", tmp_path / "images" / name)
        shutil.copy(valid / "a.txt", tmp_path / "images" / name)
        for kind, make in KINDS.items():
            make(tmp_path / "images" / name / f"{kind}.png")
            make(tmp_path / "images" / name / f"{kind}.txt")
    with limited(SECONDS):
        dataset = sources.load(f"folder:{tmp_path}/images", image_size=(4, 4))
        corpora.load_corpus(f"text:{tmp_path}/images")
    assert len(dataset.splits["train"]["label"]) == 2
