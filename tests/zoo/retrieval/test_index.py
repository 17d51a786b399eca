"""Tests of documents, rows, leaks, and the build and search of an index."""

import json
import os
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests import commands
from zoo import registry
from zoo.data.text import packing, tokenizers
from zoo.data.text.special_tokens import END, START
from zoo.data.windows import Windows
from zoo.errors import RunError, UsageError
from zoo.retrieval import build as build_module
from zoo.retrieval.build import build, delete
from zoo.retrieval.documents import read_texts
from zoo.retrieval.encoders import Decoder, MeanStates, Passages, TokenStates, weights_digest
from zoo.retrieval.index import Index
from zoo.retrieval.knn_lm import KnnLanguageModel, neighbor_probabilities
from zoo.retrieval.leaks import own_documents
from zoo.retrieval.rows import Rows

LENGTH = 16
SIZES = {
    "vocabulary_size": 262, "num_layers": 1, "hidden_dim": 8, "num_heads": 1,
    "sequence_length": LENGTH,
}  # fmt: skip
WORDS = np.array(
    ["amber", "basin", "cedar", "delta", "ember", "fjord", "grove", "harbor", "island", "jungle"]
    + ["kelp", "lagoon", "meadow", "north", "ocean", "prairie", "quarry", "river", "summit"]
)


def make_texts(count: int, seed: int, words: int = 30) -> list[str]:
    """Returns random texts of few words, so that contexts occur again."""
    generator = np.random.default_rng(seed)
    return [" ".join(WORDS[generator.integers(0, len(WORDS), words)]) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train("byte", ["text"])


@pytest.fixture(scope="module")
def model(tokenizer):
    """A model that has learned how often each letter follows another."""
    keras.utils.set_random_seed(0)
    model = registry.build("gpt_nano", **SIZES)
    rows = Rows(read_texts(tokenizer, make_texts(20, seed=1)), LENGTH, "stream").take(0, 10**6)[0]
    rows = rows[:-1].astype("int32")
    inputs = {"tokens": rows[:, :-1], "segments": np.ones_like(rows[:, :-1])}
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss=loss)
    model.fit(inputs, rows[:, 1:], batch_size=32, epochs=8, verbose=0)
    return model


@pytest.fixture(scope="module")
def decoder(model, tokenizer):
    task = registry.build_task("clm").bind(model, None, SIZES)
    task.tokenizer = tokenizer
    return Decoder(model, task)


@pytest.fixture(scope="module")
def build_index(decoder, model, tokenizer):
    """Returns `build_index(folder, texts, ...)` for an index of states."""

    def make(folder, texts, add=False, name="made", packing="stream"):
        settings = {"length": LENGTH, "packing": packing}
        return build(
            folder, method="states", settings=settings, tokenizer=tokenizer,
            weights=weights_digest(model), model="gpt_nano",
            source={"source": name, "split": "train", "fingerprint": name, "max_tokens": 0},
            texts=lambda: iter(texts),
            make_entries=lambda documents: TokenStates(decoder, documents, **settings), add=add,
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, "SHARD_ENTRIES", 64 * LENGTH)
        yield


@pytest.fixture(scope="module")
def built(build_index, small_shards, tmp_path_factory):
    """Returns the folder of an index of 20 documents in several shards."""
    folder = tmp_path_factory.mktemp("index") / "index"
    build_index(folder, make_texts(20, seed=1))
    return folder


@pytest.fixture
def copied(built, tmp_path):
    return shutil.copytree(built, tmp_path / "copied")


# --- documents and rows ---------------------------------------------------------------------------


def test_rows_of_a_stream_are_the_windows_of_training(tokenizer):
    texts = make_texts(5, seed=3, words=7)
    rows = Rows(read_texts(tokenizer, texts), LENGTH, "stream")
    stream = packing.stream(map(tokenizer.encode, texts), start_id=START, end_id=END)
    windows = Windows(np.concatenate(list(stream)), LENGTH)
    tokens, documents, positions = rows.take(0, len(rows))
    np.testing.assert_array_equal(tokens, windows[:])
    np.testing.assert_array_equal(rows.take(2, 4)[0], windows[2:4])
    ids = [tokenizer.encode(text) for text in texts]
    for token, document, position in zip(tokens.flat, documents.flat, positions.flat, strict=True):
        if token not in (-1, START, END):
            assert ids[document][position] == token


def test_rows_of_best_fit_are_the_pieces_of_training(tokenizer):
    texts = make_texts(5, seed=3, words=7)
    rows = Rows(read_texts(tokenizer, texts), LENGTH, "best_fit")
    tokens, documents, _ = rows.take(0, len(rows))
    blocks = packing.best_fit(
        map(tokenizer.encode, texts), LENGTH + 1, start_id=START, end_id=END
    )  # fmt: skip
    pieces = [
        tuple(row[segments == k].tolist())
        for tokens_of_block, segments_of_block in blocks
        for row, segments in zip(tokens_of_block, segments_of_block, strict=True)
        for k in range(1, segments.max() + 1)
    ]
    assert sorted(pieces) == sorted(tuple(row[row >= 0].tolist()) for row in tokens)
    assert all(len(set(row[row >= 0].tolist())) == 1 for row in documents)


def test_near_duplicates_of_a_query_are_its_own_documents(tokenizer):
    texts = make_texts(12, seed=5, words=60)
    words = texts[7].split()
    words[30] = "changed"
    queries = read_texts(tokenizer, [texts[3], " ".join(words), make_texts(1, seed=99)[0]])
    own = own_documents(queries, read_texts(tokenizer, texts), tokenizer)
    assert [x.tolist() for x in own] == [[3], [7], []]


# --- search ---------------------------------------------------------------------------------------


def test_search_finds_what_the_reference_finds(built, decoder):
    index = Index(built)
    assert len(index._shards) > 2, "the test requires several shards"
    rows = Rows(index.documents, LENGTH, "stream")
    states = decoder.targets(rows.take(0, 4)[0])["states"]
    for excluded in ([], [0, 5]):
        distances, entries = index.search(states, 5, probes=10**6, excluded=excluded)
        expected = index.search_exactly(states, 5, excluded=excluded)
        np.testing.assert_allclose(distances, expected[0], rtol=1e-3, atol=1e-4)
        assert np.mean(entries == expected[1]) > 0.95, "ties aside"
        assert not np.isin(index.places(entries)[0], excluded).any()
    one_cluster, _ = index.search(states, 5, probes=1, excluded=[0, 5])
    assert (one_cluster >= distances - 1e-4).all()
    assert (one_cluster > distances).any()


def test_an_entry_holds_the_token_after_its_context(built, tokenizer):
    index = Index(built)
    entries = np.arange(len(index))
    documents, positions = index.places(entries)
    for entry in range(0, len(index), 37):
        document, position = int(documents[entry]), int(positions[entry])
        token = index.documents.piece(document, position, position + 1)
        assert index.values[entry] == (token[0] if len(token) else END)
    text = make_texts(20, seed=1)[4]
    assert index.passage(4, 6, 12) == {
        "document": 4, "source": "made", "bytes": [6, 12], "text": text[6:12],
    }  # fmt: skip


def test_documents_added_later_are_found_and_deleted_ones_are_not(
    copied, build_index, small_shards, decoder
):
    texts = make_texts(4, seed=77)
    with pytest.raises(UsageError, match="Set --add to add"):
        build_index(copied, texts, name="more")
    manifest = build_index(copied, texts, add=True, name="more")
    assert [part["documents"] for part in manifest["parts"]] == [20, 4]
    index = Index(copied)
    states = decoder.targets(
        Rows(read_texts(index.tokenizer, texts), LENGTH, "stream").take(0, 4)[0]
    )
    states = states["states"]
    distances, entries = index.search(states, 1, probes=10**6)
    assert distances.max() < 1e-3, "the key of the added document itself"
    assert (index.places(entries)[0] >= 20).mean() > 0.6, "ties aside"
    assert index.passage(21, 0, 5)["source"] == "more"
    delete(copied, [20, 21, 22, 23])
    index = Index(copied)
    _, entries = index.search(states, 1, probes=10**6)
    assert (index.places(entries)[0] < 20).all()
    with pytest.raises(UsageError, match="from 0 to 23 that are not deleted yet. Received: 20"):
        delete(copied, [20])
    with pytest.raises(UsageError, match="already contains these documents"):
        build_index(copied, texts, add=True, name="more")


@pytest.mark.parametrize("encoder", ["decoder", "encoder", "bm25"])
def test_passages_find_themselves(tmp_path, model, tokenizer, encoder):
    method, pool = "bm25", None
    if encoder != "bm25":
        tiny = {**registry.entry("encoder_nano").tiny, "vocabulary_size": 262}
        pool = MeanStates(model if encoder == "decoder" else registry.build("encoder_nano", **tiny))
        method = "pooled"
    texts = make_texts(6, seed=8)

    def make_entries(documents):
        return Passages(documents, LENGTH, pool)

    build(
        tmp_path / "index", method=method, settings={"length": LENGTH}, tokenizer=tokenizer,
        weights="w" * bool(pool), model="gpt_nano",
        source={"source": "made", "split": "train", "fingerprint": "", "max_tokens": 0},
        texts=lambda: iter(texts), make_entries=make_entries, add=False,
    )  # fmt: skip
    index = Index(tmp_path / "index")
    queries = np.stack([index.documents.piece(d, LENGTH, 2 * LENGTH) for d in range(6)])
    keys = pool(queries) if pool else queries
    _, entries = index.search(keys, 1, probes=100)
    documents, positions = index.places(entries[:, 0])
    assert documents.tolist() == list(range(6))
    assert set(positions.tolist()) == {LENGTH}
    _, entries = index.search(keys, 1, probes=100, excluded=[2])
    assert not (index.places(entries[:, 0])[0] == 2).any()


# --- kNN language model ---------------------------------------------------------------------------


def test_weights_of_neighbors_are_a_softmax():
    distances = np.array([[0.0, 2.0, np.inf], [np.inf] * 3, [4e4, 4e4, 4e4]], np.float32)
    weights = neighbor_probabilities(distances, 2.0)
    np.testing.assert_allclose(weights[0], [0.731059, 0.268941, 0.0], rtol=1e-5)
    assert weights[1].sum() == 0
    np.testing.assert_allclose(weights[2], 1 / 3, rtol=1e-6)


def test_neighbors_help_and_shuffled_ones_do_not(built, decoder, model, tokenizer):
    documents = read_texts(tokenizer, make_texts(4, seed=11))
    language_model = KnnLanguageModel(decoder, Index(built), neighbors=16)
    share, temperature = language_model.tune(documents)
    assert share > 0
    metrics = language_model.evaluate(documents, share, temperature)
    assert metrics["bits_per_byte"] < 0.9 * metrics["bits_per_byte_without_index"]
    plain = language_model.evaluate(documents, 0.0, temperature)
    assert plain["loss"] == pytest.approx(metrics["loss_without_index"], rel=1e-6)
    # What the task itself computes.
    rows = Rows(documents, LENGTH, "stream").take(0, 10**6)[0]
    task = decoder.task
    batch = task.prepare({"tokens": rows, "weight": np.ones(len(rows), np.float32)}, None, False)
    forward = task.forward(model, batch, False)
    bits, size = forward.statistics["bits_per_byte"]
    assert metrics["bits_per_byte_without_index"] == pytest.approx(float(bits / size), rel=1e-5)
    values = language_model.index.values
    language_model.index.values = np.random.default_rng(0).permutation(values)
    share, temperature = language_model.tune(documents)
    shuffled = language_model.evaluate(documents, share, temperature)
    assert shuffled["bits_per_byte"] > 0.99 * metrics["bits_per_byte_without_index"]


def test_a_planted_duplicate_is_never_a_neighbor(copied, build_index, decoder, tokenizer):
    text = make_texts(1, seed=12, words=60)[0]
    documents = read_texts(tokenizer, [text])
    settings = {"share": 0.5, "temperature": 0.1}
    without = KnnLanguageModel(decoder, Index(copied), 8, 10**6).evaluate(documents, **settings)
    copies = [text, f"{text} end", text.replace("river", "stream", 1)]
    build_index(copied, copies, add=True, name="planted")
    planted = KnnLanguageModel(decoder, Index(copied), 8, 10**6)
    assert planted.evaluate(documents, **settings)["loss"] == pytest.approx(
        without["loss"], rel=1e-4
    )
    planted.index.documents.bands = np.zeros_like(planted.index.documents.bands)  # no duplicates
    assert planted.evaluate(documents, **settings)["loss"] < 0.8 * without["loss"]


# --- kills, damage and wrong requests -------------------------------------------------------------

# Does not import TensorFlow, which takes seconds.
BUILD = """
import sys
import numpy as np
from zoo.data.text import tokenizers
from zoo.retrieval import build as module

module.SHARD_ENTRIES = 40

class Entries:
    dim, entries_per_step = 4, 1

    def __len__(self):
        return 160

    def encode(self, first, last):
        print(first, flush=True)
        if first == 120 and sys.argv[2] == "stop":
            sys.stdin.read()
        steps = np.arange(first, min(last, 160))
        keys = np.sin(np.outer(steps, [1, 2, 3, 4])).astype("float32")
        return keys, {"document": np.uint32(steps // 8), "position": np.uint32(steps % 8)}

module.build(
    sys.argv[1], method="pooled", settings={}, tokenizer=tokenizers.train("byte", ["a"]),
    weights="", model="",
    source={"source": "made", "split": "train", "fingerprint": "", "max_tokens": 0},
    texts=lambda: iter([f"document {i} of twenty" for i in range(20)]),
    make_entries=lambda documents: Entries(), add=False,
)
"""


def test_a_killed_build_continues(tmp_path):
    folder, whole = tmp_path / "index", commands.started(BUILD, tmp_path / "whole", "go")
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder), "stop"], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(commands.ROOT)},
    )  # fmt: skip
    assert any(line.strip() == "120" for line in process.stdout), "it ended before the last shard"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with pytest.raises(UsageError, match="is not finished. Run the same `zoo index` to continue"):
        Index(folder)
    done = commands.output(commands.started(BUILD, folder, "go"))
    assert done.split() == ["120"], "neither the clusters nor complete shards are computed again"
    commands.output(whole)
    assert commands.content(folder) == commands.content(tmp_path / "whole")
    assert len(Index(folder)) == 160


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda x: (x / "part-00000/shard-00001/index.faiss").write_bytes(b""), "truncated"),
        (lambda x: _cut(x / "part-00000/shard-00001/index.faiss"), "truncated or altered"),
        (lambda x: _cut(x / "part-00000/shard-00000/entries/value-00000.bin"), "bytes instead of"),
        (lambda x: _cut(x / "part-00000/tokens/token-00000.bin"), "bytes instead of"),
        (lambda x: shutil.rmtree(x / "part-00000/shard-00001"), "index.faiss is missing"),
        (lambda x: (x / "trained.faiss").unlink(), "trained.faiss is missing"),
        (lambda x: _cut(x / "manifest.json"), "manifest.json"),
        (lambda x: _edit(x / "manifest.json", deleted=[1]), "its checksum differs"),
        (lambda x: _edit(x / "manifest.json", format=9), "must have format 1. Received: 9"),
        (lambda x: (x / "manifest.json").unlink(), "must be an index written by `zoo index`"),
        (lambda x: tokenizers.train("byte", ["é"], 0, "NFKC").save(x / "tokenizer.json"),
         "built with another tokenizer"),
    ],
)  # fmt: skip
def test_damaged_indexes_are_refused(copied, damage, message):
    damage(copied)
    with pytest.raises((RunError, UsageError), match=message):
        Index(copied)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1] if path.suffix != ".json" else b"{")


def _edit(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_wrong_requests_are_refused(copied, build_index, decoder, tmp_path):
    index = Index(copied)
    with pytest.raises(UsageError, match=f"from 1 to {len(index):,}, the number of entries"):
        KnnLanguageModel(decoder, index, neighbors=len(index) + 1)
    with pytest.raises(UsageError, match="probes must be at least 1"):
        KnnLanguageModel(decoder, index, probes=0)
    with pytest.raises(UsageError, match=r"another encoder \(model 'gpt_nano'\)"):
        index.check_encoder(weights="0" * 64)
    with pytest.raises(UsageError, match="another tokenizer"):
        index.check_encoder(tokenizer="0" * 64)
    with pytest.raises(UsageError, match="The settings of .* must be"):
        build_index(copied, ["text"], packing="best_fit")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("text")
    with pytest.raises(UsageError, match="must be a new folder or an index"):
        build_index(tmp_path / "notes", ["text"])
    with pytest.raises(RunError, match="no documents with tokens"):
        build_index(tmp_path / "empty", [""])


def test_bm25_does_not_start_jax():
    code = (
        "import sys; import jax; import zoo.retrieval.bm25; from jax._src import xla_bridge; "
        "assert sys.modules['jax'] is jax; sys.exit(bool(xla_bridge._backends))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
