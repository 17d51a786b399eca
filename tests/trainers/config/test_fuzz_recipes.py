"""Arbitrary overrides, recipes and config.json files give a configuration or a one-line error.

`ZOO_FUZZ=20` generates twenty times as many inputs.
"""

import json
import os
import random
import textwrap

import pytest

from trainers.config import recipe as recipes
from trainers.config.recipe import as_dict, change, load_recipe, of_workdir, resolve
from trainers.run.workdir import read_config
from zoo.errors import RunError, UsageError
from zoo.saved.workdir import FORMAT_VERSION

TIMES = int(os.environ.get("ZOO_FUZZ", "1"))
SOURCES = ("cnn_digits:debug", "gpt_pydoc:debug", "gan_mnist", "seq2seq_multi30k", "web_text:debug")
TEXTS = (
    "", " ", "0", "1", "-1", "5", "1.5", "-0.0", "1e400", "-1e400", "1e308", "nan", "None", "True",
    "a", "a,b", "()", "(1,)", "(1.5,)", "(True,)", "(-1,)", "('a',)", "(None,)", "[[[]]]", "{}",
    "{1: 2}", "b'x'", "1j", "...", "(1,", "'", "[1] * 9", "__import__('os').getpid()", "0x10",
    "1if 1else 0", "9" * 4000, "9" * 5000, str(2**31), str(2**53), str(2**63),
    "(" * 300 + ")" * 300, "-" * 3000 + "1", "[" * 100_000, "x" * 5000, "\ud800", "\x00",
    "\x1b[2J", "~nobody_here/x", "://", "gs://b/x", "../..", "adamw", "cosine", "auto", "%s", "\n",
)  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 5, 1.5, -1.5, 1e308, float("nan"), float("inf"), 2**31, 2**64,
    10**400, "", "x", "x" * 2000, "\ud800", [], [1], [1.5], [True], ["x"], [None], [[[]]], {},
    {"name": "x"}, {"name": 1}, {"": {}},
)  # fmt: skip


def one_line(action):
    """Runs an action; checks that a UsageError or RunError has a message of one line."""
    try:
        return action()
    except (UsageError, RunError):
        return None


def test_overrides():
    """Tests 1,000 random sets of one to three overrides."""
    numbers = random.Random(0)
    accepted = 0
    loaded = {source: load_recipe(source) for source in SOURCES}
    for _ in range(1000 * TIMES):
        config = loaded[numbers.choice(SOURCES)]
        keys = recipes._keys(recipes._all_sections(config))
        known = [*keys, "trainer", "model", "nothing", "", ".", "trainer.steps.x"]
        overrides = [
            (numbers.choice(known), numbers.choice(TEXTS)) for _ in range(numbers.choice((1, 1, 3)))
        ]
        if changed := one_line(
            lambda config=config, overrides=overrides: change(config, overrides)
        ):
            json.loads(json.dumps(as_dict(changed)), parse_constant=pytest.fail)
            accepted += 1
    assert 100 * TIMES < accepted < 700 * TIMES


@pytest.mark.parametrize("key", ["trainer.steps", "data.image_size"])
@pytest.mark.parametrize("text", ["-" * 500 + "1", "1" + "+1" * 3000, "(" * 300 + ")" * 300])
def test_nested_text_is_refused_before_python_parses_it(key, text, monkeypatch):
    config = load_recipe(SOURCES[0])
    monkeypatch.setattr(recipes.ast, "literal_eval", lambda _: pytest.fail("it was parsed"))
    with pytest.raises(UsageError, match=f"{key} must be of type"):
        change(config, [(key, text)])


def mutated(value, numbers):
    """Returns a copy of a JSON value in which one part is replaced, removed or renamed."""
    if isinstance(value, dict) and value and numbers.random() < 0.9:
        key = numbers.choice(list(value))
        changed = {**value, key: mutated(value[key], numbers)}
        if numbers.random() < 0.1:
            del changed[key]
        elif numbers.random() < 0.1:
            changed["other"] = changed.pop(key)
        return changed
    if isinstance(value, list) and value and numbers.random() < 0.7:
        place = numbers.randrange(len(value))
        return [*value[:place], mutated(value[place], numbers), *value[place + 1 :]]
    return numbers.choice(VALUES)


def test_config_json(tmp_path):
    """Tests 500 files with one to three changes, and 100 files cut or with changed bytes."""
    numbers = random.Random(1)
    accepted = 0
    whole = [
        {
            "format_version": FORMAT_VERSION, "source": source, "config": as_dict(resolve(source)),
            "class_names": ["a", "b"], "data_fingerprint": "0" * 64, "tokenizer": None, "facts": {},
        }
        for source in SOURCES
    ]  # fmt: skip
    path = tmp_path / "config.json"
    for turn in range(600 * TIMES):
        saved = numbers.choice(whole)
        for _ in range(numbers.choice((1, 1, 3))):
            saved = mutated(saved, numbers)
        content = json.dumps(saved).encode()
        if turn % 6 == 0:
            place = numbers.randrange(len(content))
            content = content[:place] + numbers.randbytes(turn % 3)
        path.write_bytes(content)

        def read():
            saved_config = read_config(tmp_path)
            config = of_workdir(saved_config["config"])
            return change(config, [])

        accepted += bool(one_line(read))
    assert 10 * TIMES < accepted < 300 * TIMES


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"config":' * 100_000, "9" * 5000, "NaN"],
    ids=["lists", "objects", "digits", "nan"],
)
def test_config_json_that_is_nested_or_no_object(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunError):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("config.model = 1.0", "model must be a section. Received: 1.0"),
        ("config.optimizer = 'adam'", "optimizer must be a section. Received: 'adam'"),
        ("config.data = None", "data must be a section. Received: None"),
        ("config.compress.low_rank = ()", "compress.low_rank must be a section. Received: ()"),
        (
            "config.compress.low_rank.ranks = (5,)",
            "compress.low_rank.ranks must contain values of type",
        ),
        (
            "config.compress.prune.m_by_n = (2.0, 4)",
            "compress.prune.m_by_n must contain values of type int",
        ),
        (
            "config.compress.prune.block = (True, 1)",
            "compress.prune.block must contain values of type int",
        ),
        ("config.data.image_size = (-1, 2)", "data.image_size must be at least 0"),
        (
            "config.trainer.log_every = True",
            "trainer.log_every must be of type int. Received: True",
        ),
        ("config.trainer.log_every = 2**31", "trainer.log_every must be less than 2,147,483,648"),
        (
            "config.trainer.ema = float('nan')",
            "trainer.ema must be finite in float32. Received: nan",
        ),
        ("config.optimizer.learning_rate = -1.0", "optimizer.learning_rate must be at least 0"),
        ("config.optimizer.learning_rate = 1e39", "must be finite in float32. Received: 1e+39"),
        ("config.model.filters = (float('inf'),)", "model.filters must be finite"),
        ("config.model.hidden_dim = 2**63", "model.hidden_dim must be less than 2**63"),
        ("config.model.hidden_dim = 10**5000", "model.hidden_dim must be less than 2**63"),
        ("config.model.x = config.model", "model.x must not be nested more than 20 times"),
        ("config.model[1] = 2", "failed: "),
        ("config.model.x = object()", "an object of type object in model.x"),
        ("config.model.x = b'x'", "an object of type bytes in model.x"),
        ("f = lambda: f()\nf()", "RecursionError"),
        ("x = ()\nfor _ in range(100_000): x = (x,)\nconfig.model.x = x", ""),
        ("2.0 ** 10_000", "OverflowError"),
        ("raise MemoryError", "MemoryError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        ("class E(Exception):\n    def __str__(self): 1 / 0\nraise E", "E: an error without a"),
        ("raise ValueError('x' * 10_000)", "ValueError: xxx"),
    ],
)
def test_a_recipe_of_wrong_values_is_one_line(body, words, tmp_path):
    path = tmp_path / "mine.py"
    head = "from trainers.config.recipe import shipped_recipe\ndef get_config(arg=''):\n"
    first = (
        "config = shipped_recipe('cnn_digits', 'debug')\nconfig = type(config)(config.to_dict(), "
    )
    first += "type_safe=False)\n"
    path.write_text(head + textwrap.indent(f"{first}{body}\nreturn config\n", "    "))
    with pytest.raises(UsageError) as error:
        resolve(str(path))
    message = " ".join(str(error.value).split())
    assert words in message
    assert len(message) < 800


def test_ctrl_c_in_a_recipe_is_none_of_its_errors(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        resolve(str(path))


@pytest.mark.parametrize("text", ["raise SystemExit(0)", "f = lambda: f()\nf()"])
def test_a_module_that_ends_the_process_is_one_line(text, tmp_path, monkeypatch, zoo_command):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "module_that_ends.py").write_text(text)
    answer = zoo_command("list", "--import=module_that_ends")
    assert answer.status == 2
    assert "--import=module_that_ends failed: " in answer.one_line()
