"""Tests of `zoo generate`: prompts, options and output."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests import commands
from tests.zoo.generation.test_generate import with_large_weights
from trainers.config.recipe import as_dict, resolve
from trainers.run.workdir import save_model
from zoo import registry
from zoo.data.text import tokenizers
from zoo.data.text.special_tokens import END, FIRST_WORD, MASK, SEPARATOR, START
from zoo.generation.choices import score_choices
from zoo.generation.generate import Generator
from zoo.generation.translate import Translator
from zoo.saved.workdir import FORMAT_VERSION
from zoo.storage.disk import write_json

SIZES = {
    "vocabulary_size": 262, "num_layers": 1, "hidden_dim": 8, "num_heads": 1, "sequence_length": 64,
}  # fmt: skip


def work_directory(path, model, tokenizer, task="clm", packing="stream", **arguments):
    """Writes the work directory of a text model that was trained on 50 positions."""
    path.mkdir()
    config = {
        "format_version": FORMAT_VERSION, "source": "made", "class_names": [],
        "data_fingerprint": "", "tokenizer": tokenizer and tokenizer.fingerprint,
        "config": as_dict(resolve("gpt_pydoc:debug")),
    }  # fmt: skip
    config["config"] |= {"model": {"name": "gpt_nano", **arguments}, "task": {"name": task}}
    config["config"]["data"] |= {"sequence_length": 50, "packing": packing}
    write_json(path / "config.json", config)
    if tokenizer is not None:
        tokenizer.save(path / "tokenizer.json")
    save_model(model, path / "model.keras")
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train("byte", ["text"])


@pytest.fixture(scope="module")
def model():
    return with_large_weights(registry.build("gpt_nano", **SIZES, rotary_base=100.0))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, model, tokenizer):
    return work_directory(tmp_path_factory.mktemp("text") / "run", model, tokenizer, **SIZES)


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    """Disables XLA, whose compilation is slow; the test of a real process uses XLA."""
    defaults = {**Generator.__init__.__kwdefaults__, "jit_compile": False}
    monkeypatch.setattr(Generator.__init__, "__kwdefaults__", defaults)


@pytest.fixture(scope="module")
def generator(model, tokenizer):
    return Generator(model, tokenizer, sequence_length=64, jit_compile=False)


def test_a_process_streams_what_the_model_writes(workdir, generator):
    words = ["generate", workdir, "--prompt=Hé", "--max_tokens=20", "--temperature=0"]
    process = subprocess.Popen(
        [sys.executable, "-c", commands.ZOO, *words],
        cwd=commands.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err.decode()) == (0, "")
    assert out.decode() == "Hé" + generator.text(["Hé"], 20, temperature=0.0)[0] + "\n"


class Terminal(io.StringIO):
    """Records the output length at each flush."""

    def __init__(self):
        super().__init__()
        self.flushed = []

    def flush(self):
        self.flushed.append(self.getvalue())


def test_one_prompt_is_shown_as_it_comes(workdir, generator, monkeypatch):
    from trainers.cli.main import main

    monkeypatch.setattr("zoo.generation.generate.CHUNK", 4)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    words = ["--prompt=abc", "--max_tokens=30", "--seed=4"]
    assert main(["zoo", "generate", str(workdir), *words]) == 0
    text = generator.text(["abc"], 30, temperature=0.8, seed=4)[0]
    assert terminal.getvalue() == f"abc{text}\n"
    assert terminal.flushed[0] == "abc", "the prompt comes first, before the model has done a step"
    assert len(set(terminal.flushed)) > 4


def test_no_prompt_begins_a_text(workdir, generator, zoo_command):
    answer = zoo_command("generate", workdir, "--max_tokens=12")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out == generator.text([""], 12, temperature=0.8)[0] + "\n"


def test_options_reach_the_model(workdir, generator, zoo_command):
    words = ["--temperature=1.5", "--top_k=9", "--top_p=0.9", "--seed=3"]
    answer = zoo_command("generate", workdir, "--prompt=x", "--max_tokens=12", *words)
    expected = generator.text(["x"], 12, temperature=1.5, top_k=9, top_p=0.9, seed=3)[0]
    assert answer.out == f"x{expected}\n"
    answer = zoo_command("generate", workdir, "--prompt=x", "--max_tokens=8", "--beams=3")
    assert answer.out == "x" + generator.text(["x"], 8, beams=3)[0] + "\n"


def test_attention_sinks_continue_beyond_the_trained_length(workdir, model, tokenizer, zoo_command):
    generator = Generator(
        model, tokenizer, trained_length=50, attention_sinks=4, jit_compile=False
    )  # fmt: skip
    words = ["--prompt=abc", "--max_tokens=100", "--seed=4", "--attention_sinks=4"]
    answer = zoo_command("generate", workdir, *words)
    expected = generator.text(["abc"], 100, temperature=0.8, seed=4)[0]
    assert len(tokenizer.encode(expected)) > 64, "more than the model's positions"
    assert (answer.status, answer.err, answer.out) == (0, "", f"abc{expected}\n")


def test_prompts_of_a_file(workdir, generator, zoo_command, tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.cli.generate._BATCH", 2)
    prompts = ["one", "the second", "سلام"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n\n", encoding="utf-8")
    words = ["generate", workdir, "--max_tokens=10", "--seed=7"]
    answer = zoo_command(*words, f"--prompts={tmp_path / 'prompts.txt'}")
    texts = generator.text(prompts, 10, temperature=0.8, seed=7)
    expected_texts = [
        f"--- {number} ---\n{prompt}{text}\n"
        for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True), 1)
    ]
    assert answer.out == "\n".join(expected_texts) + "\n"

    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(prompts)))
    answer = zoo_command(*words, "--prompts=-", "--json")
    rows = json.loads(answer.out)
    assert [(row["prompt"], row["text"]) for row in rows] == list(zip(prompts, texts, strict=True))
    assert all(set(row) == {"prompt", "text", "tokens", "tokens_per_second"} for row in rows)
    assert all(0 <= row["tokens"] <= 10 < row["tokens_per_second"] * 100 for row in rows)


def test_the_context_ends_the_text_and_says_so(workdir, zoo_command):
    answer = zoo_command("generate", workdir, f"--prompt={'x' * 60}", "--temperature=0")
    assert answer.status == 0
    untrained, end = answer.err.splitlines()
    assert untrained.startswith("zoo: the text exceeds the 50 positions used in training")
    assert end == (
        "zoo: the text ends at the model's limit of 64 positions, which includes the prompt"
    )


def test_a_prompt_is_taken_as_it_is(workdir, generator, zoo_command):
    """White space is kept; bytes of a prompt that are not UTF-8 become U+FFFD."""
    for prompt, printed_prompt in (("\n", "\n"), (" ", " "), ("a\udcffb", "a\ufffdb")):
        answer = zoo_command("generate", workdir, f"--prompt={prompt}", "--max_tokens=12")
        text = generator.text([printed_prompt], 12, temperature=0.8)[0]
        assert (answer.status, answer.out) == (0, f"{printed_prompt}{text}\n")


def test_documents_that_were_packed_whole_begin_with_the_start(
    tmp_path, model, tokenizer, generator, zoo_command
):
    work_directory(tmp_path / "run", model, tokenizer, packing="best_fit", **SIZES)
    answer = zoo_command("generate", tmp_path / "run", "--prompt=ab", "--max_tokens=9")
    ids = generator.tokens([[START, *tokenizer.encode("ab")]], 9, temperature=0.8)[0]
    assert answer.out == f"ab{generator.decode(ids, 'ab')}\n"


def test_what_the_tokenizer_does_not_know_is_said(tmp_path, zoo_command):
    sizes = {**SIZES, "vocabulary_size": 20}
    model = registry.build("gpt_nano", **sizes)
    tokenizer = tokenizers.train("character", ["abc "])
    work_directory(tmp_path / "run", model, tokenizer, **sizes)
    words = "generate", tmp_path / "run", "--max_tokens=2"
    for prompt, count in (("a b", 0), ("a é", 1), ("a XY", 2)):
        line = (
            f"zoo: {count} of the prompt's tokens {'is' if count == 1 else 'are'} unknown to the "
        )
        answer = zoo_command(*words, f"--prompt={prompt}")
        assert answer.err == (f"{line}tokenizer and become <unk>\n" if count else "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([f"--prompt={'x' * 64}"], "Received: 64 tokens"),
        (["--max_tokens=0"], "max_tokens must be from 1 to 1,048,576. Received: 0"),
        (["--prompt=a", "--prompts=-"], "Set --prompt or --prompts, not both"),
        (["--beams=2", "--temperature=1"], "set --beams or --temperature, not both"),
        (["--beams=2", "--attention_sinks=4"], "does not support --attention_sinks"),
        (["--attention_sinks=50"], "used in training, 50; 0 disables them. Received: 50"),
        (["--checkpoint=best"], "contains no best model"),
        (["--top_p=2"], "top_p must be more than 0 and at most 1. Received: 2.0"),
    ],
    ids=lambda value: value[-1][:20] if isinstance(value, list) else "",
)  # fmt: skip
def test_wrong_use_is_one_line(workdir, zoo_command, words, message):
    answer = zoo_command("generate", workdir, *words)
    assert (answer.status, answer.out) == (2, "")
    assert message in answer.one_line()


def test_files_without_prompts(workdir, zoo_command, tmp_path):
    (tmp_path / "empty").write_text("\n \n")
    answer = zoo_command("generate", workdir, f"--prompts={tmp_path / 'empty'}")
    assert answer.status == 2
    assert "--prompts must contain a prompt" in answer.one_line()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    answer = zoo_command("generate", workdir, f"--prompts={tmp_path / 'binary'}")
    assert answer.status == 1
    assert "must be UTF-8 text" in answer.one_line()
    answer = zoo_command("generate", workdir, f"--prompts={tmp_path / 'nowhere'}")
    assert answer.status == 1
    assert "nowhere" in answer.one_line()


def test_another_tokenizer_is_refused(tmp_path, model, tokenizer, zoo_command):
    path = work_directory(tmp_path / "run", model, tokenizer, **SIZES)
    tokenizers.train("byte", ["other"], normalization="NFKC").save(path / "tokenizer.json")
    answer = zoo_command("generate", path)
    assert answer.status == 2
    assert "is not the tokenizer that the model was trained with" in answer.one_line()
    answer = zoo_command("export", path, "--format=keras", f"--out={tmp_path / 'model.keras'}")
    assert answer.status != 0
    assert "is not the tokenizer that the model was trained with" in answer.one_line()
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    (path / "tokenizer.json").unlink()
    answer = zoo_command("generate", path)
    assert answer.status == 2
    assert "tokenizer.json" in answer.one_line()


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path, tokenizer, zoo_command):
    small = registry.build("gpt_nano", **{**SIZES, "vocabulary_size": 100})
    path = work_directory(tmp_path / "run", small, tokenizer, **SIZES)
    answer = zoo_command("generate", path)
    assert answer.status == 2
    assert "it has 262 tokens, but the model supports 100" in answer.one_line()


def test_a_task_that_generates_no_text(tmp_path, model, tokenizer, zoo_command):
    path = work_directory(tmp_path / "digits", model, None, task="image_classification")
    answer = zoo_command("generate", path)
    assert answer.status == 2
    assert "contains a model of the task 'image_classification'" in answer.one_line()
    encoder = registry.build("cnn_classifier")  # a classifier with a tokenizer cannot generate text
    path = work_directory(tmp_path / "encoder", encoder, tokenizer, task="mlm")
    answer = zoo_command("generate", path)
    assert answer.status == 2
    assert "Text generation requires a decoder" in answer.one_line()


def test_no_work_directory(tmp_path, zoo_command):
    answer = zoo_command("generate", tmp_path)
    assert answer.status == 2
    assert "is not a work directory" in answer.one_line()


# --- models that are not decoders -----------------------------------------------------------------


@pytest.fixture(scope="module")
def translating(tmp_path_factory, tokenizer):
    sizes = {**registry.entry("transformer_tiny").tiny, "vocabulary_size": 262}
    model = with_large_weights(registry.build("transformer_tiny", **sizes))
    folder = tmp_path_factory.mktemp("translating") / "run"
    work_directory(folder, model, tokenizer, "seq2seq", name="transformer_tiny", **sizes)
    return folder, model


def test_an_encoder_decoder_translates(translating, tokenizer, zoo_command, tmp_path):
    folder, model = translating
    translator = Translator(model, tokenizer)
    expected = translator(["one", "two words"], beams=1, max_tokens=8)
    assert all(expected)
    (tmp_path / "prompts").write_text("one\n\ntwo words\n")
    words = [f"--prompts={tmp_path / 'prompts'}", "--max_tokens=8"]
    answer = zoo_command("generate", folder, *words)
    assert (answer.status, answer.out) == (0, f"{expected[0]}\n\n{expected[1]}\n")
    answer = zoo_command("generate", folder, *words, "--json", "--beams=3")
    expected = translator(["one", "two words"], beams=3, max_tokens=8)
    assert [row["text"] for row in json.loads(answer.out)] == [expected[0], "", expected[1]]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "requires --prompt or --prompts"),
        (["--prompt=a", "--temperature=1"], "--temperature is not supported"),
        (["--prompt=a", "--seed=1"], "--seed is not supported"),
        (["--prompt=a", "--attention_sinks=4"], "rotary positions: --attention_sinks is not"),
    ],
)
def test_a_translation_that_is_none(translating, zoo_command, words, message):
    answer = zoo_command("generate", translating[0], *words)
    assert (answer.status, answer.out) == (2, "")
    assert message in answer.one_line()


@pytest.mark.parametrize("pairs", [True, False])
def test_an_encoder_fills_masks(tmp_path, pairs, tokenizer, zoo_command):
    sizes = {**registry.entry("bert_tiny").tiny, "vocabulary_size": 270, "next_sentence": pairs}
    model = with_large_weights(registry.build("bert_tiny", **sizes))
    task = "nsp" if pairs else "mlm"
    work_directory(tmp_path / "run", model, tokenizer, task, name="bert_tiny", **sizes)
    prompt = "a[MASK]cd[MASK]"
    a, c, d = (tokenizer.encode(letter)[0] for letter in "acd")
    row = np.int32([[START, a, MASK, c, d, MASK, SEPARATOR if pairs else END]])
    inputs = {"tokens": row, "segments": np.ones_like(row), "masked": np.int32([[2, 5]])}
    if pairs:
        inputs["types"] = np.zeros_like(row)
    logits = np.array(model(inputs)["mlm"])[0][:, FIRST_WORD:262]
    best = [bytes([i]).decode("utf-8", "replace").strip() for i in logits.argmax(-1)]
    answer = zoo_command("generate", tmp_path / "run", f"--prompt={prompt}", "--json")
    (result,) = json.loads(answer.out)
    assert result["text"] == f"a{best[0]}cd{best[1]}"
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for words, chance in zip(result["words"], chances, strict=True):
        expected = np.sort(chance)[::-1][:5]
        np.testing.assert_allclose([w["probability"] for w in words], expected, atol=1e-4)
    answer = zoo_command("generate", tmp_path / "run", f"--prompt={prompt}")
    assert answer.out == result["text"] + "\n"
    for words, message in (
        (["--prompt=text"], "must contain [MASK] at least once"),
        (["--prompt=[MASK]" + 20 * "a"], "the model supports 12 positions"),
        (["--prompt=[MASK]", "--beams=2"], "--beams is not supported"),
    ):
        answer = zoo_command("generate", tmp_path / "run", *words)
        assert (answer.status, answer.out) == (2, "")
        assert message in answer.one_line()


@pytest.mark.slow
def test_a_language_model_of_pixels_draws_a_grid(tmp_path, zoo_command):
    sizes = {
        "sequence_length": 12, "columns": 6, "num_outer_layers": 2, "num_inner_layers": 1,
        "hidden_dim": 8, "num_heads": 1,
    }  # fmt: skip
    model = registry.build("axial_image_nano", **sizes)
    workdir = work_directory(tmp_path / "run", model, None, **sizes)
    config = json.loads((workdir / "config.json").read_text())
    config["config"]["data"] |= {"tokenizer": "pixels", "sequence_length": 12}
    write_json(workdir / "config.json", config)
    answer = zoo_command("generate", workdir, "--count=3")
    assert answer.out.strip() == str(workdir / "generated.png")
    # Two by two images of 2 x 2 pixels, one pixel apart.
    assert np.asarray(Image.open(workdir / "generated.png")).shape == (5, 5, 3)


def test_the_most_likely_choice_is_predicted(workdir, model, tokenizer, tmp_path, zoo_command):
    path = tmp_path / "questions.csv"
    path.write_text("q,a,b\nIs it,yes,no\nEnd ,x, zz\n,x,y\n" + 70 * "long" + ",x,y\n")
    columns = "--columns=q,a,b"
    answer = zoo_command("predict", workdir, path, columns)
    head, *rows = [line.split("\t") for line in answer.out.splitlines()]
    assert head == ["prompt", "choice", "probability"]
    wanted = []
    for prompt, choices in (("Is it", [" yes", " no"]), ("End ", ["x", " zz"])):
        scores = score_choices(model, tokenizer, prompt, choices)
        shares = np.exp(scores) / np.exp(scores).sum()
        wanted.append([prompt, choices[shares.argmax()].strip(), f"{shares.max():.4f}"])
    assert [[q.rstrip(), a.strip(), p] for q, a, p in rows] == [
        [q.rstrip(), a, p] for q, a, p in wanted
    ]
    assert answer.status == 1
    assert "at most 65 tokens" in answer.err
    assert answer.err.count("\n") == 2


@pytest.mark.parametrize("columns", [(), ("--columns=q,a",), ("--columns=q,a,a",)])
def test_choices_need_their_columns(workdir, tmp_path, zoo_command, columns):
    (tmp_path / "questions.csv").write_text("q,a,b\nIs it,yes,no\n")
    answer = zoo_command("predict", workdir, tmp_path / "questions.csv", *columns)
    assert (answer.status, answer.out) == (2, "")
    assert "--columns must name the column of the prompt" in answer.err
