"""A run stores a sample of its model at each evaluation, and the report shows the samples."""

import numpy as np
import tensorflow as tf

from tests import toys
from trainers.report.page import write_report
from trainers.run.workdir import read_metrics
from zoo import registry
from zoo.data import Dataset
from zoo.data.text import tokenizers
from zoo.generation.generate import Generator


def little_gpt():
    """Returns the config, the dataset and the tokenizer of a tiny GPT."""
    text = "to be or not to be, <b>that</b> is the question\n" * 40
    tokenizer = tokenizers.train("character", [text])
    ids = np.concatenate([[2], tokenizer.encode(text), [3]]).astype("uint16")
    rows = np.stack([ids[i : i + 13] for i in range(0, 1200, 12)])
    splits = {name: {"tokens": rows} for name in ("train", "validation")}
    facts = {"Tokenizer": {"kind": "character", "unknown_rate": 0.0}}
    data = Dataset("text", splits, (), "text", tokenizer, facts)
    tiny = registry.entry("gpt_nano").tiny
    arguments = {**tiny, "vocabulary_size": 0, "dropout": 0.0}
    config = toys.recipe("gpt_nano", "clm", model_arguments=arguments, steps=10, evaluate_every=5)
    config.data.sequence_length = 12
    return config, data, tokenizer


def test_a_sample_that_cannot_be_made_is_said_once(run, monkeypatch):
    config, data, _ = little_gpt()

    def fail(*_, **__):
        raise tf.errors.ResourceExhaustedError(None, None, "out of\nmemory")

    monkeypatch.setattr(Generator, "text", fail)
    lines = read_metrics(run(config, data).workdir.path)
    events = [(line["event"], line["step"], line["detail"]) for line in lines if "event" in line]
    warning = "no more samples are saved: out of memory"
    assert [event for event in events if event[0] in ("warning", "sample")] == [
        ("warning", 5, warning)
    ]
    assert any("val_loss" in line and line["step"] == 10 for line in lines)


def test_a_sample_an_evaluation_by_the_weights_of_then(run):
    config, data, tokenizer = little_gpt()
    trainer = run(config, data)

    lines = read_metrics(trainer.workdir.path)
    samples = [line for line in lines if line.get("event") == "sample"]
    assert [line["step"] for line in samples] == [5, 10]
    assert samples[0]["detail"] != samples[1]["detail"]
    fresh = Generator(trainer.step.net, tokenizer, jit_compile=False)
    assert samples[-1]["detail"] == fresh.text([""], 11, temperature=0.8, seed=0)[0]

    metric = next(line for line in lines if "val_loss" in line)
    bits = metric["val_loss"] / np.log(2)  # each character of this text is one byte
    assert abs(metric["val_bits_per_byte"] - bits) < 0.05 * bits
    assert metric["val_perplexity"] == np.exp(metric["val_loss"])
    assert tokenizers.load(trainer.workdir / "tokenizer.json").fingerprint == tokenizer.fingerprint

    page = write_report(trainer.workdir.path).read_text()
    assert "Samples" in page
    assert page.index("step 10") < page.index("step 5<")
    assert "unknown_rate" in page
    assert "bits per byte" in page
