"""Runs on text files: evaluation, resuming, and further training with the run's tokenizer."""

import json
import shutil

import pytest

from tests import commands
from trainers.cli.main import main
from trainers.run.workdir import read_config
from zoo.data.text import tokenizers

# Six updates of a model with a few thousand weights.
RECIPE = """
from trainers.config.recipe import shipped_recipe


def get_config(arg=""):
    config = shipped_recipe("gpt_shakespeare", "debug")
    config.model.hidden_dim, config.model.num_heads = 16, 2
    config.data.sequence_length = 16
    config.trainer.steps = config.trainer.evaluate_every = 6
    config.trainer.global_batch_size = 8
    return config
"""


@pytest.fixture
def recipe(tmp_path, cache):
    (tmp_path / "recipe.py").write_text(RECIPE)
    return tmp_path / "recipe.py"


@pytest.fixture
def book(tmp_path):
    path = tmp_path / "book.txt"
    write_book(path)
    return path


def write_book(path):
    path.write_text("".join(f"the {i}th line says {i * i}.\n" for i in range(300)))


def command_words(folder, recipe, source, *more):
    # A `data.source` on the command line overrides the earlier one.
    return "train", recipe, f"--config.data.source={source}", f"--workdir={folder}", *more


@pytest.fixture
def train(recipe, book, zoo_command):
    def command(folder, *more, source=f"text:{book}"):
        return zoo_command(*command_words(folder, recipe, source, *more))

    return command


@pytest.fixture(scope="module")
def trained_on_book(devices, tmp_path_factory):
    """Returns a folder with a recipe, a book, a run on the book, and its cache."""
    folder = tmp_path_factory.mktemp("trained_on_book")
    (folder / "recipe.py").write_text(RECIPE)
    write_book(folder / "book.txt")
    command = command_words(folder / "one", folder / "recipe.py", f"text:{folder / 'book.txt'}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZOO_CACHE_DIR", str(folder / "cache"))
        assert main(["zoo", *map(str, command)]) == 0
    return folder


@pytest.fixture
def one(trained_on_book, train, tmp_path):
    """Returns a copy of the run on the book, as if `train(tmp_path / "one")` had trained it."""
    for name in ("one", "cache"):
        shutil.copytree(trained_on_book / name, tmp_path / name)
    config = tmp_path / "one" / "config.json"
    config.write_text(config.read_text().replace(str(trained_on_book), str(tmp_path)))
    return tmp_path / "one"


def test_a_changed_text_is_evaluated_by_the_runs_own_tokenizer(one, book, zoo_command):
    evaluate = ["evaluate", one, "--split=validation", "--json"]
    before = json.loads(zoo_command(*evaluate).out)["metrics"]["loss"]
    # With one letter fewer, all later letters would have other token ids.
    book.write_text(book.read_text().replace("a", ""))
    answer = zoo_command(*evaluate)
    assert "contains other data than in training" in answer.err
    assert json.loads(answer.out)["metrics"]["loss"] == pytest.approx(before, abs=0.1)
    tokenizers.train("byte", ["another"]).save(one / "tokenizer.json")
    answer = zoo_command(*evaluate)
    assert answer.status == 2
    assert "is not the tokenizer that the model was trained with" in answer.one_line()


@pytest.mark.slow
def test_going_on_with_other_text_takes_the_tokenizer_along(one, train, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("eighth lines, tenth lines\n" * 100)
    more = [f"--config.init_from={one}"]
    answer = train(tmp_path / "two", *more, source=f"text:{other}")
    assert answer.status == 2
    assert f"Set data.tokenizer={one}" in answer.one_line()
    more.append(f"--config.data.tokenizer={one}")
    answer = train(tmp_path / "two", *more, source=f"text:{other}")
    assert answer.status == 0
    assert "init_from: 27 of 27 weights" in answer.err
    first, second = (read_config(folder)["tokenizer"] for folder in (one, tmp_path / "two"))
    assert first == second


def test_a_changed_recipe_is_refused_by_its_key(one, train):
    before = commands.content(one)
    answer = train(one, "--config.data.sequence_length=8")
    assert answer.status == 2
    assert "data.sequence_length: 16 -> 8" in answer.one_line()
    assert commands.content(one) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.sequence_length=300"], "must not exceed the model's 256 positions"),
        (["data.validation_size=2"], "data.validation_size must be 0"),
        (["data.sequence_length=1"], "data.sequence_length must be at least 2"),
        (["data.tokenizer=bpee"], "data.tokenizer must be one of character"),
        (["model.hidden_dim=18", "model.num_heads=2"], "an even hidden_dim / num_heads"),
        (["model.num_heads=-1"], "num_heads must be of type int from 0"),
        (["data.source=multi30k"], "with pairs of sentences, which task.name=seq2seq"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_contradicts_itself_is_one_line(train, tmp_path, words, message):
    if "multi30k" in words[0]:
        pairs = tmp_path / "pairs.tsv"
        pairs.write_text("a\tb\nc\td\n")
        words = [f"data.source=pairs:{pairs}"]
    answer = train(tmp_path / "run", *(f"--config.{word}" for word in words))
    assert answer.status == 2
    assert message in answer.one_line()
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_users_own_model_writes_no_samples(recipe, book, tmp_path):
    """A custom model without a decoder is trained, but writes no samples."""
    (tmp_path / "own.py").write_text('''
import keras, zoo

def build(vocabulary_size=0, hidden_dim=8):
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = keras.layers.Embedding(vocabulary_size, hidden_dim)(tokens)
    x = keras.layers.GRU(hidden_dim, return_sequences=True)(x)
    logits = keras.layers.Dense(vocabulary_size, dtype="float32", name="logits")(x)
    return keras.Model({"tokens": tokens}, logits)

zoo.register("own_gru", build, task="clm")
''')  # fmt: skip
    own = tmp_path / "own_recipe.py"
    own.write_text(
        RECIPE.replace(
            "    return config",
            '    config.model = {"name": "own_gru", "vocabulary_size": 0, "hidden_dim": 8}\n'
            "    return config",
        ).replace("    config.model.hidden_dim, config.model.num_heads = 16, 2\n", "")
    )
    answer = commands.zoo_process(
        "train", own, "--import=own", f"--workdir={tmp_path / 'run'}",
        f"--config.data.source=text:{book}", cwd=tmp_path,
        env={"ZOO_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert answer.status == 0, answer.err
    assert "sample" not in (tmp_path / "run" / "metrics.jsonl").read_text().replace("samples", "")


@pytest.mark.slow
def test_a_damaged_report_of_the_tokenizer_is_made_again(one, train, tmp_path):
    (report,) = (tmp_path / "cache" / "tokenizers").glob("*-report.json")
    whole = report.read_text()
    report.write_text(whole[:5])
    assert train(tmp_path / "two").status == 0
    assert report.read_text() == whole


@pytest.mark.slow
def test_the_same_text_elsewhere_is_the_same_data(one, train, book, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    book.rename(tmp_path / "elsewhere" / "book.txt")
    shutil.rmtree(tmp_path / "cache")
    answer = train(tmp_path / "two", source=f"text:{tmp_path}/elsewhere/book.txt")
    assert answer.status == 0
    first, second = (read_config(folder) for folder in (one, tmp_path / "two"))
    assert first["data_fingerprint"] == second["data_fingerprint"]


def accuracy_of(folder):
    result = json.loads((folder / "evaluation" / "test.json").read_text())
    return result["metrics"]["accuracy"]


@pytest.mark.slow
def test_a_reformer_learns_to_repeat_symbols(cache, zoo_command, tmp_path):
    """Guesses have an accuracy of 1/127, and so has the first copy, which does not count."""
    folder = tmp_path / "run"
    assert zoo_command("train", "reformer_duplication:debug", f"--workdir={folder}").status == 0
    assert accuracy_of(folder) > 0.99
