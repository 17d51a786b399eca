"""`zoo train finetune`: model, tokenizer and stop tokens come from a folder of transformers."""

import json
import shutil

import numpy as np
import pytest

from tests.zoo.data.published_folders import END, make_tokenizer, write_tokenizer
from trainers.run.workdir import read_config
from zoo.data.text import tokenizers
from zoo.data.text.published.folder import read_folder
from zoo.models import llama
from zoo.models.convert.published import to_transformers

LINES = [f"the {i}th line says {i * i}.\n" for i in range(200)]
SIZES = {
    "num_layers": 2, "hidden_dim": 16, "num_heads": 2, "intermediate_dim": 24,
    "rotary_scaling": "llama3:4:1:4:32",
}  # fmt: skip
SETTINGS = (
    "--config.data.sequence_length=24", "--config.trainer.steps=4",
    "--config.trainer.global_batch_size=8", "--config.trainer.micro_batch_size=0",
    "--config.trainer.precision=float32", "--config.schedule.warmup_steps=1",
)  # fmt: skip


def make_folder(folder, kind="llama3"):
    """Writes a Llama with random weights, and a tokenizer trained on LINES."""
    tokenizer = make_tokenizer(kind, LINES, 320)
    end = tokenizer.token_to_id(END[kind])
    model = llama.build(vocabulary_size=tokenizer.get_vocab_size() + 8, **SIZES)
    to_transformers(model, folder, sequence_length=64, eos_token_id=end)
    write_tokenizer(folder, kind, tokenizer)
    return folder


@pytest.fixture
def folder(tmp_path, cache):
    return make_folder(tmp_path / "folder")


@pytest.fixture
def train(tmp_path, zoo_command):
    (tmp_path / "book.txt").write_text("".join(LINES))

    def command(workdir, init_from, *more):
        return zoo_command(
            "train", "finetune", f"--workdir={tmp_path / workdir}",
            f"--config.init_from={init_from}", f"--config.data.source=text:{tmp_path / 'book.txt'}",
            *SETTINGS, *more,
        )  # fmt: skip

    return command


def test_from_a_folder_to_a_text(folder, train, zoo_command, tmp_path):
    assert (answer := train("run", folder)).status == 0, answer.err
    saved = read_config(tmp_path / "run")
    model = saved["config"]["model"]
    assert model["rotary_scaling"] == SIZES["rotary_scaling"]
    assert model["sequence_length"] == 64
    assert saved["config"]["data"]["tokenizer"] == str(folder)
    tokenizer = tokenizers.load(tmp_path / "run" / "tokenizer.json")
    assert tokenizer.fingerprint == read_folder(folder).fingerprint == saved["tokenizer"]
    assert model["vocabulary_size"] == tokenizer.vocabulary_size + 8

    assert (answer := train("run", folder)).status == 0, answer.err
    assert "already finished" in answer.err
    shutil.rmtree(folder)  # the work directory has everything
    words = ("--prompt=the 1", "--max_tokens=8", "--temperature=0", "--json")
    answer = zoo_command("generate", tmp_path / "run", *words)
    assert answer.status == 0, answer.err
    (row,) = json.loads(answer.out)
    assert row["tokens"] > 0

    # A run is a source, too.
    assert (answer := train("again", tmp_path / "run")).status == 0, answer.err
    assert read_config(tmp_path / "again")["config"]["model"] == model
    assert read_config(tmp_path / "again")["tokenizer"] == saved["tokenizer"]


def test_stop_tokens_and_special_tokens_in_generation(folder):
    from zoo.generation.generate import Generator
    from zoo.generation.generate_options import Options
    from zoo.models.convert.published import from_transformers

    tokenizer, model = read_folder(folder), from_transformers(folder)
    embeddings = model.get_layer("embedding").embeddings
    generator = Generator(model, tokenizer, sequence_length=64, start=True, jit_compile=False)
    assert generator.encode("the")[0] == tokenizer.start_id
    forbidden = np.flatnonzero(generator._forbidden.numpy()).tolist()
    unknown_to_tokenizer = range(tokenizer.vocabulary_size, tokenizer.vocabulary_size + 8)
    control = tokenizer.special.control - {tokenizer.end_id}
    assert forbidden == sorted([*control, *unknown_to_tokenizer])
    # A second stop token ends a text as the first one does.
    expected = generator.tokens([[9]], 20, temperature=0.0)[0]
    stop = int(expected[3])
    where = expected.tolist().index(stop)
    stopped = generator.tokens([[9]], 20, temperature=0.0, end_id=(1, stop))[0]
    assert stopped.tolist() == expected[:where].tolist()
    options = Options(20, temperature=0.0, end_id=(1, stop))
    run = generator._start_run([[9]], options)
    generator._advance(run, 21, options)
    assert run.position == where + 1  # the loop ends there, too
    # The tokenizer's own stop token is allowed, and ends a text.
    values = embeddings.numpy()
    values[tokenizer.end_id] = 100 * np.sign(model.get_layer("final_norm").scale.numpy())
    embeddings.assign(values)
    assert all(len(x) < 20 for x in generator.tokens([[9], [10], [11]], 20, temperature=1.0))


def test_documents_of_a_tokenizer_without_a_start(cache, tmp_path, train):
    folder = make_folder(tmp_path / "qwen", "qwen")
    answer = train("run", folder, "--config.data.packing=stream")
    assert answer.status == 0, answer.err
    from zoo.tasks.text import documents

    tokenizer = read_folder(folder)
    end = tokenizer.end_id
    _, segments = documents({"tokens": np.array([[7, end, 8, end, 9]])}, False, tokenizer)
    assert segments.numpy().tolist() == [[1, 1, 2, 2, 3]]


def test_refused(folder, train, tmp_path, zoo_command):
    assert "init_from, which is empty" in train("a", "").one_line()
    assert "must be a folder of transformers or a work" in train("a", "keras_hub:x").one_line()
    assert "has another tokenizer" in train("a", folder, "--config.data.tokenizer=byte").one_line()
    small = tmp_path / "small"
    shutil.copytree(folder, small)
    write_tokenizer(small, "llama3", make_tokenizer("llama3", LINES, 400))
    assert "but the model supports" in train("a", small).one_line()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.X"}}))
    assert "auto_map names code" in train("a", folder).one_line()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "loading a pickle can run code" in train("a", folder).one_line()
    (folder / "pytorch_model.bin").unlink()
    assert "contains neither model.safetensors" in train("a", folder).one_line()
    assert not (tmp_path / "a").exists()
    answer = zoo_command("bench", "finetune")
    assert "requires model.name" in answer.one_line()


@pytest.mark.parametrize("recipe", ["encoder_wiki", "bert_wiki"])
def test_only_language_models_take_such_a_tokenizer(recipe, cache, tmp_path, zoo_command):
    folder = make_folder(tmp_path / "folder", "qwen")  # without a token before a document
    (tmp_path / "book.txt").write_text("".join(LINES))
    answer = zoo_command(
        "train", f"{recipe}:debug", f"--workdir={tmp_path / 'run'}",
        f"--config.data.tokenizer={folder}", f"--config.data.source=text:{tmp_path / 'book.txt'}",
    )  # fmt: skip
    assert "Only task.name=clm supports the tokenizer of a published" in answer.one_line()
