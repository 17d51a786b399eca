"""Tests of rows with neighbors and of the task that reads them."""

import json

import numpy as np
import pytest

from tests.zoo.retrieval.test_index import WORDS, make_texts
from zoo import registry
from zoo.data.text.tokenizers import load
from zoo.errors import UsageError
from zoo.storage.records import open_records

LENGTH, SIZE = 16, 8
TASK = {"name": "retro", "index": "", "neighbors": 2, "chunk_size": SIZE}


@pytest.fixture
def data(tmp_path, cache):
    """Returns the section `data` of a corpus in which each document but one has two versions."""
    texts = make_texts(20, seed=4, words=40)
    near = [text.replace(WORDS[0], WORDS[1], 1) + " end" for text in texts[:19]]
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts + near))
    return {
        "source": f"text:{path}", "manual_dir": "", "languages": (), "tokenizer": "word",
        "vocabulary_size": 100, "normalization": "NFC", "packing": "stream",
        "sequence_length": LENGTH,
    }  # fmt: skip


def test_neighbors_are_passages_of_other_documents(data, cache):
    dataset = registry.load_data(data, TASK)
    (folder,) = (cache / "indexes").glob("[!.]*")
    tokenizer = load(folder / "tokenizer.json")
    part = folder / "part-00000"
    tokens = np.asarray(open_records(part / "tokens").arrays["token"])
    lengths = np.asarray(open_records(part / "documents").arrays["length"])
    documents = np.split(tokens, np.cumsum(lengths)[:-1])
    passages = {
        tuple(np.pad(x[i : i + 2 * SIZE], (0, max(0, 2 * SIZE - len(x[i:])))).tolist()): number
        for number, x in enumerate(documents)
        for i in range(0, len(x), SIZE)
    }
    sets = [set(zip(x, x[1:], x[2:], x[3:], x[4:], strict=False)) for x in map(tuple, documents)]
    seen = 0
    for split, arrays in dataset.splits.items():
        assert arrays["neighbors"].shape[1:] == (LENGTH // SIZE, 2, 2 * SIZE)
        for row, neighbors in zip(arrays["tokens"][:], arrays["neighbors"][:], strict=True):
            ids = tuple(row[row >= 0].tolist())
            grams = set(zip(ids, ids[1:], ids[2:], ids[3:], ids[4:], strict=False))
            for passage in neighbors.reshape(-1, 2 * SIZE):
                if not passage.any():
                    continue
                document = passages[tuple(passage.tolist())]
                assert not grams & sets[document], (split, tokenizer.decode(passage))
                seen += 1
    assert seen > 200
    again = registry.load_data(data, TASK)
    assert again.fingerprint == dataset.fingerprint


def test_neighbors_share_words_with_their_chunk(data):
    arrays = registry.load_data(data, TASK).splits["train"]
    chunks = arrays["tokens"][:][:, :LENGTH].reshape(-1, SIZE)
    first = arrays["neighbors"][:].reshape(len(chunks), 2, -1)[:, 0, :SIZE]
    shared = np.mean([len(set(a) & set(b)) for a, b in zip(chunks, first, strict=True)])
    others = np.roll(first, 11, axis=0)
    assert shared > np.mean([len(set(a) & set(b)) for a, b in zip(chunks, others, strict=True)]) + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_length": 20}, "must be a multiple of task.chunk_size"),
        ({"packing": "best_fit"}, "data.packing must be one of stream"),
        ({"index": "/no/such"}, "must be an index written by `zoo index`"),
        ({"neighbors": 10**6}, "neighbors must be from 1 to"),
    ],
)
def test_wrong_requests_are_refused(data, changes, message):
    task = {key: changes.get(key, value) for key, value in TASK.items()}
    with pytest.raises(UsageError, match=message):
        registry.load_data({key: changes.get(key, value) for key, value in data.items()}, task)


def test_model_and_task_must_agree(data):
    dataset = registry.load_data(data, TASK)
    arguments = {k: v for k, v in TASK.items() if k != "name"}
    task = registry.build_task("retro", **arguments)
    with pytest.raises(UsageError, match=r"model.chunk_size must equal task.chunk_size=8.*=16"):
        task.check_arguments({"neighbors": 2, "chunk_size": 16}, dataset)
    task.check_arguments({"neighbors": 0, "chunk_size": 16}, dataset)
    with pytest.raises(UsageError, match="task.chunk_size must be at least 2"):
        registry.build_task("retro", chunk_size=1)
    sizes = {"vocabulary_size": 100, "num_layers": 1, "hidden_dim": 8, "num_heads": 1}
    model = registry.build("retro_nano", **sizes, neighbors=0)
    task.bind(model, dataset).check(model, dataset)
    other = registry.build_task("retro", **{**arguments, "neighbors": 1}).bind(model, dataset)
    with pytest.raises(UsageError, match=r"neighbors of the shape \(2, 1, 16\)"):
        other.check(model, dataset)
