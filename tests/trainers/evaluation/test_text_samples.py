"""Texts of a classifier's split, decoded token by token."""

import json

import numpy as np
import pytest

import zoo
from tests import toys
from trainers.evaluation.attribution import attributions
from trainers.evaluation.text_samples import pieces, text_samples
from zoo import registry
from zoo.data import Dataset
from zoo.data.text import tokenizers
from zoo.data.text.special_tokens import FIRST_WORD, SEPARATOR, START
from zoo.models.heads import add_head

TEXTS = ["a good film, really!", "فیلم خوبی بود\nو تمام", "naïve 👩‍👩‍👧 e\u0301t\u0301", "bad"]


@pytest.fixture(scope="module")
def kinds():
    sizes = {"word": 60, "wordpiece": 120, "bpe": 300, "sentencepiece": 340}
    return {
        kind: tokenizers.train(kind, TEXTS * 20, sizes.get(kind, 0)) for kind in tokenizers.KINDS
    }


@pytest.mark.parametrize("kind", tokenizers.KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up_to_the_text_and_their_scores_to_the_total(kinds, kind, text):
    tokenizer = kinds[kind]
    ids = tokenizer.encode(text)
    known = ids[ids != tokenizer.unknown_id]
    result = pieces(tokenizer, known, np.arange(len(known)) + 1.0)
    assert "".join(piece for piece, _ in result) == tokenizer.decode(known)
    assert sum(score for _, score in result) == pytest.approx(sum(range(len(known) + 1)))
    assert all(piece for piece, _ in result)


def test_bytes_of_a_character_are_one_piece(kinds):
    ids = kinds["byte"].encode("aé")
    result = pieces(kinds["byte"], ids, np.array([1.0, 2.0, 4.0]))
    assert result == [["a", 1.0], ["é", 6.0]]
    # A text that was cut inside a character ends with a replacement character.
    assert pieces(kinds["byte"], ids[:2], np.ones(2)) == [["a", 1.0], ["\ufffd", 1.0]]


def test_special_tokens_are_left_out_except_unknown_words(kinds):
    tokenizer = kinds["character"]
    ids = np.array([START, *tokenizer.encode("a☃b"), SEPARATOR, 0])
    result = pieces(tokenizer, ids, np.arange(6.0))
    assert result == [["a", 1.0], ["<unk>", 2.0], ["b", 3.0]]


def test_mistakes_come_first_with_both_texts_of_a_pair_apart(kinds):
    tokenizer = kinds["byte"]
    a, b = tokenizer.encode("ab"), tokenizer.encode("<b>")
    row = np.array([START, *a, SEPARATOR, *b, SEPARATOR, 0])
    arrays = {
        "tokens": np.tile(row, (3, 1)).astype("uint16"),
        "types": np.tile(np.uint8([0, 0, 0, 0, 1, 1, 1, 1, 0]), (3, 1)),
        "label": np.array([0, 1, 1]),
    }
    probabilities = np.array([[0.2, 0.7, 0.1], [0.1, 0.9, 0.0], [0.6, 0.4, 0.0]], np.float32)
    samples = text_samples(None, tokenizer, arrays, ("yes",), probabilities, np.array([0, 2]))
    assert [sample["example"] for sample in samples] == [0, 2, 1]
    assert [(s["label"], s["prediction"]) for s in samples] == [
        ("yes", "1"), ("1", "yes"), ("1", "1")
    ]  # fmt: skip
    assert samples[0]["probability"] == pytest.approx(0.7)
    assert samples[0]["label_probability"] == pytest.approx(0.2)
    texts = [["".join(piece for piece, _ in text) for text in s["texts"]] for s in samples]
    assert texts == [["ab", "<b>"]] * 3
    nothing = {key: array[:0] for key, array in arrays.items()}
    assert text_samples(None, tokenizer, nothing, (), probabilities[:0], np.zeros(0, int)) == []


def test_the_report_of_a_run_shows_them(run):
    task = registry.build_task("text_classification")
    arguments = {
        **registry.entry("encoder_nano").tiny,
        "vocabulary_size": 16,
        "sequence_length": 32,
    }
    model = add_head(zoo.build("encoder_nano", **arguments), 2)
    splits = {name: task.synthetic(model, 40, i) for i, name in enumerate(("train", "test"))}
    tokenizer = tokenizers.train("character", ["abcdefghi<"])
    data = Dataset("synthetic", splits, ("even", "odd"), "synthetic", tokenizer)
    config = toys.recipe(
        "encoder_nano", "text_classification", model_arguments=arguments, steps=2, log_every=2
    )
    config.optimizer.learning_rate = 1e-6  # so that there are mistakes
    trainer = run(config, data)
    samples = json.loads((trainer.workdir / "evaluation" / "test_samples.json").read_text())
    with np.load(trainer.workdir / "evaluation" / "test.npz") as arrays:
        wrong = arrays["labels"] != arrays["predictions"]
        worst = arrays["worst_index"].tolist()
    assert [s["example"] for s in samples if s["label"] != s["prediction"]] == worst
    assert len(worst) == min(36, wrong.sum()) > 0
    sample = samples[0]
    tokens = splits["test"]["tokens"][sample["example"]]
    pair = "".join(piece for text in sample["texts"] for piece, _ in text)
    assert pair == tokenizer.decode(tokens)
    inputs = {key: splits["test"][key][[sample["example"]]] for key in ("tokens", "types")}
    inputs["segments"] = np.int32(inputs["tokens"] > 0)
    prediction = np.array([("even", "odd").index(sample["prediction"])])
    (expected,) = attributions(zoo.load(trainer.workdir.path), inputs, prediction)
    actual = [score for text in sample["texts"] for _, score in text]
    tolerance = 1e-3 * np.abs(expected).max()  # the values of an untrained model are small
    np.testing.assert_allclose(actual, expected[tokens >= FIRST_WORD], atol=tolerance, rtol=0)
    page = (trainer.workdir / "report.html").read_text()
    assert "Worst mistakes, test" in page
    assert "Correct predictions, test" in page
