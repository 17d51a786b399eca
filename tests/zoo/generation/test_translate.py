"""Translation, and scores of translations."""

import importlib.util
import json

import keras
import numpy as np
import pytest
import sacrebleu

from tests import toys
from tests.zoo.tasks.test_seq2seq import SIZES, model, numbers  # noqa: F401 (a fixture)
from trainers.config.base import optimizer
from zoo.data.text import tokenizers
from zoo.data.text.parallel import ParallelDataset
from zoo.data.text.special_tokens import END, FIRST_WORD, START
from zoo.errors import UsageError
from zoo.generation.scores.translations import scores
from zoo.generation.scores.translations import tokenizer as tokenizer_of
from zoo.generation.translate import Translator
from zoo.models import gpt
from zoo.tasks.seq2seq import SequenceToSequence

TEXTS = ["b", "a b c", "", "d d d d d", "c a", "a " * 20, "h g f e d c b a", "a b c"]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train("word", ["a b c d e f g h"], 14)


@pytest.fixture(scope="module")
def net():
    """Returns a random model that translates most sources differently and ends some texts."""
    result = model(norm_first=True, noise=0.2, seed=9)
    for weight in result.weights:
        if "cross_attention" in weight.path:
            weight.assign(4 * weight)
    return result


@pytest.fixture(scope="module")
def translator(net, tokenizer):
    return Translator(net, tokenizer)


def greedy(net, tokenizer, text, max_tokens):
    """Decodes greedily without a cache: one forward pass of the whole model per token."""
    source = np.append(tokenizer.encode(text), END)[None]
    tokens = [START]
    for place in range(max_tokens):
        target = np.array([tokens + [0] * (max_tokens - len(tokens))])
        logits = net({"source": source, "target": target}, training=False).numpy()[0, place]
        logits[[i for i in range(len(logits)) if i < FIRST_WORD and i != END]] = -np.inf
        logits[tokenizer.vocabulary_size :] = -np.inf
        tokens.append(int(logits.argmax()))
        if tokens[-1] == END:
            break
    return tokenizer.decode(tokens)


def test_one_beam_takes_the_most_probable_word(net, tokenizer, translator):
    actual = translator(TEXTS, beams=1, max_tokens=6)
    expected = [greedy(net, tokenizer, text, 6) if text else "" for text in TEXTS]
    assert actual == expected
    assert len(set(actual)) == 7, "these sources could not tell"


def test_a_translation_does_not_depend_on_the_others(translator):
    together = translator(TEXTS, beams=3)
    assert together == translator(TEXTS, beams=3, batch_size=2)
    assert together == [translator([text], beams=3)[0] for text in TEXTS]
    assert together[1] == together[-1]


def test_more_beams_find_what_is_likelier(net, tokenizer, translator):
    def log_probability(text, translation):
        source = np.append(tokenizer.encode(text), END)[None]
        ids = np.append(tokenizer.encode(translation), END)
        target = np.concatenate([[START], ids[:-1], [0]])[None]
        logits = net({"source": source, "target": target}, training=False).numpy()[0, : len(ids)]
        logits = np.delete(logits, [0, 1, START, 4, 5, *range(tokenizer.vocabulary_size, 16)], 1)
        places = np.where(ids == END, 0, ids - FIRST_WORD + 1)
        chosen = logits[np.arange(len(ids)), places]
        return (chosen - np.log(np.exp(logits).sum(-1))).sum()

    texts = [text for text in TEXTS if text]
    sums = [
        sum(map(log_probability, texts, translator(texts, beams=beams, length_penalty=0.0)))
        for beams in (1, 8)
    ]
    assert sums[1] > sums[0]


def test_a_translation_is_no_longer_than_asked(translator):
    assert max(len(text.split()) for text in translator(TEXTS, max_tokens=3)) <= 3
    longest = max(len(text.split()) for text in translator(TEXTS))
    assert longest <= 2 * 32


def test_scores_are_those_of_sacrebleu():
    references = ["The cat sat on the mat.", "It's a dog, isn't it?"]
    equal = scores(references, references)
    assert (equal["bleu"], equal["chrf"]) == pytest.approx((100, 100))
    result = scores(["the cat sat on the mat .", "It is a dog, isn't it?"], references)
    # sacrebleu 2.6: `sacrebleu reference.txt -i found.txt -m bleu chrf`
    assert (result["bleu"], result["chrf"]) == pytest.approx((73.9, 87.9), abs=0.06)
    assert result["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|")
    assert result["chrf_signature"].startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|")


@pytest.mark.parametrize(
    ("language", "text", "words"),
    [
        ("zh", "今天天气很好，我们去公园散步", "zh"),
        ("zh-TW", "今天天氣很好，我們去公園散步", "zh"),
        ("cmn", "今天天气很好，我们去公园散步", "zh"),
        ("", "今天天气很好，我们去公园散步", "zh"),
        ("en", "今天天气很好，我们去公园散步", "zh"),  # not the language of the text
        ("ja", "今日は天気がいいので公園を散歩します", "char"),
        ("", "今日は天気がいいので公園を散歩します", "char"),
        ("ko_KR", "오늘은 날씨가 좋아서 공원을 산책합니다", "char"),
        ("th", "วันนี้อากาศดีมากเราไปเดินเล่นในสวนกัน", "char"),
        ("", "วันนี้อากาศดีมากเราไปเดินเล่นในสวนกัน", "char"),
        ("km", "ថ្ងៃនេះអាកាសធាតុល្អណាស់យើងទៅដើរលេង", "char"),
        ("my", "ယနေ့ရာသီဥတုအလွန်ကောင်းမွန်သည်", "char"),
        ("jv", "ꦱꦸꦒꦼꦁꦫꦮꦸꦃꦲꦶꦁꦗꦮ", "char"),
        ("fa", "امروز هوا خوب است، به پارک می‌رویم.", "13a"),
        ("de", "Heute ist das Wetter schön, wir gehen in den Park.", "13a"),
    ],
)
def test_bleu_counts_what_the_language_has_for_words(language, text, words, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # no MeCab
    equal = scores([text], [text], language)
    assert (equal["bleu"], equal["chrf"]) == pytest.approx((100, 100))
    assert f"|tok:{words}|" in equal["bleu_signature"]
    near = scores([text[:-2] + text[-1]], [text], language)
    assert 50 < near["bleu"] < 100
    message = capsys.readouterr().err
    by_words = language[:2] in ("ja", "ko") or "は" in text
    assert ("counts characters (tok:char)" in message) == by_words


def test_the_task_scores_in_the_language_of_the_data(net, tokenizer):
    """The language of the data decides, not the script of the references."""
    task = SequenceToSequence(beams=1)
    tokens = {}
    for languages in ((), ("de", "zh")):
        data = ParallelDataset(
            "toy", {"test": {"source": np.zeros((2, 3), "int32")}}, (), "toy", tokenizer,
            pairs={"test": lambda: iter([("a b", "a b"), ("c", "c")])}, languages=languages,
        )  # fmt: skip
        metrics, samples = task.evaluate_split(net, data, "test")
        assert [sample["reference"] for sample in samples] == ["a b", "c"]
        tokens[languages] = metrics["bleu_signature"].partition("|tok:")[2].partition("|")[0]
    assert tokens == {(): "13a", ("de", "zh"): "zh"}


def test_japanese_and_korean_are_split_by_mecab_where_it_is(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    assert tokenizer_of(["今日は天気がいい"], "ja") == "ja-mecab"
    assert tokenizer_of(["오늘은 날씨가 좋아서"], "ko") == "ko-mecab"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beams": 0}, "beams must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"max_tokens": -1}, "max_tokens must be at least 0"),
        ({"max_tokens": 2**20 + 1}, "max_tokens must be at most 1,048,576. Received: 1048577"),
    ],
)
def test_a_value_out_of_range_is_refused(translator, options, words):
    with pytest.raises(UsageError, match=words):
        translator(["a"], **options)


def test_what_translates_nothing_is_refused(net, tokenizer):
    decoder = gpt.build(vocabulary_size=16, num_layers=1, hidden_dim=8, num_heads=1)
    with pytest.raises(UsageError, match="requires an encoder-decoder model"):
        Translator(decoder, tokenizer)
    with pytest.raises(UsageError, match="does not match the model: it has 262 tokens"):
        Translator(net, tokenizers.train("byte", ["a"]))


@pytest.mark.slow
def test_a_run_ends_with_bleu_and_its_translations(run, numbers, zoo_command):  # noqa: F811
    config = toys.recipe(
        "transformer_tiny", "seq2seq", steps=60, log_every=20,
        model_arguments={**SIZES, "vocabulary_size": 0},
        task_arguments={"label_smoothing": 0.1, "chunk": 0, "beams": 2, "length_penalty": 0.6},
    )  # fmt: skip
    config.optimizer = optimizer("adamw", learning_rate=0.01)
    dataset = numbers()
    path = dataset.name.removeprefix("pairs:")
    config.data.update(
        {
            "source": f"pairs:{path}", "tokenizer": "word", "vocabulary_size": 40,
            "sequence_length": 12, "packing": "best_fit",
        }
    )  # fmt: skip
    trainer = run(config, dataset)
    folder = trainer.workdir / "evaluation"
    samples = json.loads((folder / "test_samples.json").read_text())
    assert [(s["source"], s["reference"]) for s in samples] == list(dataset.pairs["test"]())
    predictions, references = ([s[k] for s in samples] for k in ("prediction", "reference"))
    bleu = sacrebleu.corpus_bleu(predictions, [references]).score
    assert trainer.metrics["bleu"] == pytest.approx(bleu)
    assert trainer.metrics["chrf"] > 0
    assert json.loads((folder / "test.json").read_text())["metrics"] == trainer.metrics
    lines = [
        json.loads(line) for line in (trainer.workdir / "metrics.jsonl").read_text().splitlines()
    ]
    assert len([line for line in lines if "val_bleu" in line]) == 1

    (folder / "test_samples.json").unlink()
    answer = zoo_command("evaluate", trainer.workdir.path, "--json")
    assert answer.status == 0, answer.err
    metrics = json.loads(answer.out)["metrics"]
    assert metrics.keys() == trainer.metrics.keys()
    for name, value in trainer.metrics.items():
        assert metrics[name] == (value if isinstance(value, str) else pytest.approx(value))
    assert "|tok:13a|" in metrics["bleu_signature"]
    assert json.loads((folder / "test_samples.json").read_text()) == samples
    assert keras.saving.load_model(trainer.workdir / "model.keras").count_params()
