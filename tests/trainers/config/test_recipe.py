"""Recipes and overrides give a checked configuration, without TensorFlow."""

import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from trainers.cli.train import split_overrides
from trainers.config.base import base, optimizer
from trainers.config.recipe import as_dict, list_recipes, load_recipe, resolve
from trainers.config.trainer import check_batch, check_examples
from zoo.data.windows import Windows
from zoo.errors import UsageError

DIGITS = "cnn_digits:debug"
CONFIGS = Path(__file__).parents[3] / "configs"


def overridden(*texts, source=DIGITS):
    """Returns the configuration with overrides, each a command-line string KEY=VALUE."""
    return resolve(source, [tuple(text.split("=", 1)) for text in texts])


def error_of(*texts, source=DIGITS):
    """Returns the one-line message of the error that the overrides raise."""
    with pytest.raises(UsageError) as error:
        overridden(*texts, source=source)
    return " ".join(str(error.value).split())


@pytest.fixture
def recipe(tmp_path):
    """Returns `recipe(body) -> path` of a user's own file; `config` is a copy of `cnn_digits`."""

    def write(body, name="mine.py"):
        head = """
            from trainers.config.recipe import shipped_recipe
            def get_config(arg=""):
                config = shipped_recipe("cnn_digits", "debug")
        """
        path = tmp_path / name
        if not body.startswith("#"):
            lines = textwrap.indent(textwrap.dedent(body), "    ")
            body = f"{textwrap.dedent(head).strip()}\n{lines}\n    return config\n"
        path.write_text(body)
        return str(path)

    return write


# --- the recipes that come with the zoo -----------------------------------------------------------


@pytest.mark.parametrize("variant", ["", ":debug"])
@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_resolves_and_says_what_it_is(name, variant):
    config = resolve(name + variant)
    assert ast.get_docstring(ast.parse((CONFIGS / f"{name}.py").read_text()))
    assert config.is_locked
    assert json.loads(json.dumps(as_dict(config))) == as_dict(config)
    check_batch(config, 1)
    by_path = resolve(str(CONFIGS / f"{name}.py{variant}"))
    assert as_dict(by_path) == as_dict(config)
    if variant:
        steps, batch = config.trainer.steps, config.trainer.global_batch_size
        assert 0 < steps * batch <= 20_000, "a debug run ends within a minute on two cores"


def test_a_users_folder_configs_is_not_imported_in_place_of_ours(tmp_path):
    (tmp_path / "configs").mkdir()
    for name in ("__init__", "cnn_digits", "cnn_mnist"):
        (tmp_path / "configs" / f"{name}.py").write_text("raise SystemExit('of the user')")
    code = (
        "from trainers.config.recipe import load_recipe\n"
        "print(load_recipe('cnn_digits').model.name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{CONFIGS.parent}"},
    )  # fmt: skip
    assert done.stdout == "cnn_classifier\n", done.stderr


def test_two_configurations_share_nothing():
    first, second = resolve(DIGITS), resolve(DIGITS)
    first.trainer.steps = 7
    assert second.trainer.steps == resolve(DIGITS).trainer.steps == 30


# --- overrides ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("trainer.seed", "7", 7),
        ("trainer.log_every", "1e4", 10_000),
        ("trainer.log_every", "1_000", 1000),
        ("optimizer.learning_rate", "1e-4", 1e-4),
        ("optimizer.learning_rate", "1", 1.0),
        ("optimizer.learning_rate", " .5 ", 0.5),
        ("schedule.final_fraction", "0", 0.0),
        ("trainer.jit_compile", "true", True),
        ("trainer.jit_compile", "True", True),
        ("trainer.jit_compile", "1", True),
        ("trainer.jit_compile", "false", False),
        ("trainer.jit_compile", "0", False),
        ("trainer.remat", "convolution_[12]", "convolution_[12]"),
        ("trainer.remat", "", ""),
        ("data.source", "npz:/a=b,c.npz", "npz:/a=b,c.npz"),
        ("data.manual_dir", "1", "1"),
        ("model.filters", "(8, 8, 8)", (8, 8, 8)),
        ("model.filters", "[8,8,8]", (8, 8, 8)),
        ("model.filters", "8,8,8", (8, 8, 8)),
        ("model.filters", "8", (8,)),
        ("trainer.callbacks", "tensorboard", ("tensorboard",)),
        ("trainer.callbacks", "a,b", ("a", "b")),
        ("trainer.callbacks", "('a','b')", ("a", "b")),
        ("trainer.callbacks", "()", ()),
        ("trainer.callbacks", "", ()),
    ],
)
def test_an_override_keeps_the_type_of_its_key(key, text, value):
    config = resolve(DIGITS, [(key, text)])
    section, _, name = key.rpartition(".")
    actual = (config[section] if section else config)[name]
    assert actual == value
    assert type(actual) is type(value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.step=5", "no key 'trainer.step'. Did you mean 'trainer.steps'"),
        ("lr=1", "no key 'lr'"),
        ("=1", "no key ''"),
        ("trainer=5", "trainer is a section; set one of its keys: callbacks, checkpoint_every"),
        ("trainer.steps.more=5", "no key 'trainer.steps.more'"),
        ("model.depth=5", "no key 'model.depth'"),
        ("trainer.log_every=ten", "of type int (now 10). Received: 'ten'"),
        ("trainer.log_every=1.5", "of type int (now 10). Received: '1.5'"),
        ("trainer.log_every=", "of type int (now 10). Received: ''"),
        ("trainer.log_every=True", "of type int"),
        ("trainer.log_every=(1,)", "of type int"),
        ("trainer.log_every=__import__('os').getpid()", "of type int"),
        ("optimizer.learning_rate=fast", "of type float"),
        ("optimizer.learning_rate=False", "of type float"),
        ("trainer.jit_compile=yes", "of type bool (now False). Received: 'yes'"),
        ("trainer.log_every=0", "trainer.log_every must be at least 1. Received: 0"),
        ("trainer.micro_batch_size=-1", "trainer.micro_batch_size must be at least 0"),
        ("trainer.ema=1.0", "trainer.ema must be in [0, 1)"),
        ("data.validation_size=-1", "data.validation_size must be at least 0"),
        ("model.name=", "The recipe must set model.name"),
        ("optimizer.name=adamv", "No optimizer is named 'adamv'. Did you mean 'adam', 'adamw'?"),
        ("schedule.name=cosin", "No schedule is named 'cosin'. Did you mean 'cosine'?"),
    ],
)
def test_a_wrong_override_is_refused(override, words):
    assert words in error_of(override)


def test_the_last_of_two_overrides_counts():
    assert overridden("trainer.seed=1", "trainer.seed=2").trainer.seed == 2


@pytest.mark.parametrize(
    ("overrides", "steps", "epochs"),
    [
        ([], 30, 0),
        (["trainer.epochs=2"], 0, 2),
        (["trainer.steps=5"], 5, 0),
        (["trainer.steps=0", "trainer.epochs=2"], 0, 2),
        (["trainer.epochs=2", "trainer.steps=0"], 0, 2),
        (["trainer.epochs=0"], 30, 0),
    ],
)
def test_steps_and_epochs_clear_each_other(overrides, steps, epochs):
    trainer = overridden(*overrides).trainer
    assert (trainer.steps, trainer.epochs) == (steps, epochs)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.steps=5", "trainer.epochs=2"], "trainer.steps=5, trainer.epochs=2"),
        (["trainer.steps=0"], "Received: trainer.steps=0, trainer.epochs=0"),
        (["trainer.steps=-5"], "trainer.steps must be at least 0. Received: -5"),
        (["trainer.epochs=-1"], "trainer.epochs must be at least 0. Received: -1"),
    ],
)
def test_a_run_has_one_length(overrides, words):
    assert words in error_of(*overrides)


def test_another_optimizer_drops_what_it_lacks_and_keeps_the_rest():
    config = overridden("optimizer.momentum=0.5", "optimizer.name=sgd")
    shared_keys = {"learning_rate": 4e-3, "weight_decay": 1e-2}
    assert config.optimizer.to_dict() == {
        **optimizer("sgd", **shared_keys).to_dict(),
        "momentum": 0.5,
    }


def test_another_schedule_drops_what_it_lacks_and_keeps_the_rest():
    config = overridden("schedule.name=constant", source="cnn_mnist")
    assert config.schedule.to_dict() == {"name": "constant", "warmup_steps": 200}
    config = overridden("schedule.name=wsd", "schedule.decay_steps=9", source="cnn_mnist")
    assert config.schedule.to_dict() == {
        "name": "wsd", "warmup_steps": 200, "decay_steps": 9, "final_fraction": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer.name=sgd", "optimizer.beta_1=0.9"],
        ["optimizer.beta_1=0.9", "optimizer.name=sgd"],
        ["schedule.name=constant", "schedule.final_fraction=0.1"],
        ["optimizer.momentum=0.9"],
    ],
)
def test_a_key_that_the_optimizer_lacks_is_refused_from_the_user(overrides):
    assert "The recipe has no key" in error_of(*overrides)


@pytest.mark.parametrize(
    ("batch", "micro", "replicas", "words"),
    [
        (64, 0, 3, "global_batch_size=64 for 3 replicas"),
        (64, 5, 1, "micro_batch_size=5 for a per-replica batch of 64"),
        (64, 64, 2, "micro_batch_size=64 for a per-replica batch of 32"),
        (64, 16, 2, None),
    ],
)
def test_batches_divide(batch, micro, replicas, words):
    config = overridden(f"trainer.global_batch_size={batch}", f"trainer.micro_batch_size={micro}")
    if words:
        with pytest.raises(UsageError, match=words):
            check_batch(config, replicas)
    else:
        check_batch(config, replicas)


# --- sections that are optional -------------------------------------------------------------------

SETTINGS = {
    "compress.prune": ("sparsity", 0.9),
    "compress.qat": ("on", True),
    "compress.cluster": ("number", 16),
    "compress.distill": ("alpha", 0.25),
    "compress.structured": ("sparsity", 0.5),
    "compress.low_rank": ("energy", 0.75),
    "compress.ptq": ("examples", 7),
    "lora": ("rank", 8),
    "prep": ("validation", 0.5),
    "prep.crawl": ("depth", 3),
    "prep.extract": ("favor", "recall"),
    "prep.clean": ("repair", False),
    "prep.language": ("keep", ("fa",)),
    "prep.address": ("blocked_domains", "a.txt"),
    "prep.gopher_quality": ("min_words", 7),
    "prep.gopher_repetition": ("max_duplicate_lines", 0.5),
    "prep.c4": ("min_sentences", 2),
    "prep.fineweb": ("short_line", 7),
    "prep.blocked_words": ("most", 7),
    "prep.toxicity": ("most", 0.5),
    "prep.dedup": ("rows", 7),
}


def sections(config, prefix=""):
    """Paths of all sections of a configuration."""
    if isinstance(config, dict):
        for name, value in config.items():
            if isinstance(value, dict):
                yield prefix + name
                yield from sections(value, f"{prefix}{name}.")


def test_a_recipe_holds_its_own_sections_only():
    config = as_dict(resolve("cnn_digits"))
    assert list(sections(config)) == ["data", "model", "optimizer", "schedule", "task", "trainer"]
    assert sum(len(v) if isinstance(v, dict) else 1 for v in config.values()) == 64
    for name in list_recipes():
        assert ("prep" in resolve(name)) == (name == "gpt_persian"), name
        assert "compress" not in resolve(name), name
    assert list(resolve("web_text:debug").prep.keys()).count("gopher_quality") == 1


def test_all_optional_sections_are_tried():
    optional = base().to_dict()
    optional = {name: optional[name] for name in ("compress", "lora", "prep")}
    assert {*sections(optional)} - {"compress"} == SETTINGS.keys()


@pytest.mark.parametrize("by", ["--config", "--params_override", "recipe"])
@pytest.mark.parametrize("path", SETTINGS)
def test_an_optional_section_appears_when_a_key_is_set(path, by, recipe):
    key, value = SETTINGS[path]
    if by == "recipe":
        config = resolve(recipe(f"config.{path}.{key} = {value!r}"))
    else:
        text = f"{path}.{key}={value}"
        config = overridden(text) if by == "--config" else resolve(DIGITS, split_overrides(text))
    expected = as_dict(resolve(DIGITS))
    actual = as_dict(config)
    top, _, name = path.partition(".")
    section = actual.pop(top)
    assert actual == expected
    own = json.loads(json.dumps(base()[top].to_dict()))
    known = {name: own.pop(name) for name in list(own) if isinstance(own[name], dict)}
    value = json.loads(json.dumps(value))
    if name:  # the section above has its own keys and no other section
        assert section == {**own, name: {**known[name], key: value}}
    else:
        assert section == {**own, key: value}
    assert config[top].is_locked


def test_a_section_of_defaults_is_left_out():
    assert as_dict(overridden("compress.prune.sparsity=0")) == as_dict(resolve(DIGITS))


def test_a_recipe_may_give_an_optional_section_as_a_dictionary(recipe):
    config = resolve(recipe("config.compress = {'prune': {'sparsity': 0.9}}"))
    assert as_dict(config) == as_dict(overridden("compress.prune.sparsity=0.9"))
    words = error_of(source=recipe("config.compress = {'prune': {'sparsty': 0.9}}"))
    assert "unknown key compress.prune.sparsty. Did you mean 'sparsity'" in words


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("compress.prun.sparsity=0.9", "Did you mean 'compress.prune.sparsity'"),
        ("compress.prune.sparsty=0.9", "Did you mean 'compress.prune.sparsity'"),
        ("compres.qat.on=1", "Did you mean 'compress.qat.on'"),
        ("prep.dedup.bands=many", "prep.dedup.bands must be of type int"),
        ("compress.qat=1", "compress.qat is a section; set one of its keys: decay, on"),
    ],
)
def test_a_wrong_key_of_an_optional_section_is_refused(override, words):
    assert words in error_of(override)


# --- names, variants and files --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("cnn_digit", "No recipe is named 'cnn_digit'. Did you mean 'cnn_digits'"),
        ("base", "No recipe is named 'base'"),
        ("cnn_digits:debgu", "no variant 'debgu'. Did you mean 'debug'?"),
        ("cnn_mnist:full", "no variant 'full'. Known: debug"),
        ("no/such/file.py", "The recipe file no/such/file.py does not exist"),
        ("", "No recipe is named ''"),
    ],
)
def test_a_wrong_source_is_refused(source, words):
    assert words in error_of(source=source)


def test_a_users_own_file_with_its_own_argument(recipe):
    path = recipe("config.trainer.steps = int(arg or 3)")
    assert resolve(path).trainer.steps == 3
    assert resolve(f"{path}:8", [("trainer.seed", "4")]).trainer.steps == 8
    assert "get_config" not in error_of("trainer.nothing=1", source=path)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("# comment\nx = 1\n", "has no function get_config(arg)"),
        ("# comment\ndef get_config(:\n", "failed: SyntaxError: invalid syntax"),
        ("# comment\nimport no_such_module\n", "line 2: ModuleNotFoundError: No module named"),
        ("# comment\ndef get_config(): pass\n", "failed: TypeError: get_config() takes 0"),
        ("# comment\nget_config = lambda arg: None\n", "must return a ConfigDict"),
        ("config.trainer.steps = 3 / 0", "line 4: ZeroDivisionError"),
        ("config.trainer.steps = 'many'", "line 4: TypeError"),
        ("config.trainer.stpes = 3", "unknown key trainer.stpes. Did you mean 'steps'"),
        ("config.optimiser = {}", "unknown key optimiser. Did you mean 'optimizer'"),
        ("config.data.validatoin_size = 3", "unknown key data.validatoin_size."),
        ("config.optimizer.momentum = 0.9", "unknown key optimizer.momentum"),
        ("config.optimizer.name = 'sgd'", "The recipe must contain optimizer.momentum"),
        ("config.optimizer = {}", "The recipe must contain optimizer.name"),
        ("config.schedule.name = 'cosin'", "Did you mean 'cosine'"),
        ("config.trainer.steps = None", "trainer.steps must be of type int. Received: None"),
        ("del config.trainer.keep", "The recipe must contain trainer.keep"),
        ("del config.schedule", "The recipe must contain schedule"),
        ("del config.task['name']", "The recipe must contain task.name"),
        ("config.model.name = ''", "The recipe must set model.name"),
        ("config.trainer.epochs = 2", "trainer.steps=30, trainer.epochs=2"),
        ("from zoo.errors import UsageError; raise UsageError('own words')", "own words"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_with_the_place(recipe, body, words):
    assert words in error_of(source=recipe(body))


def test_a_recipe_without_base_is_told_so(recipe):
    path = recipe(
        "# comment\nimport ml_collections\n"
        "def get_config(arg=''):\n    return ml_collections.ConfigDict({'model': {'name': 'x'}})\n"
    )
    with pytest.raises(
        UsageError, match="The recipe must contain data; start from trainers.config.base"
    ):
        resolve(path)


def test_a_recipe_may_give_whole_numbers_where_floats_are_meant(recipe):
    path = recipe("config.trainer.ema = 0; config.optimizer.learning_rate = 1")
    assert resolve(path, [("trainer.ema", "0.5")]).trainer.ema == 0.5


def test_a_recipe_is_not_taken_from_another_folder_by_name(tmp_path, recipe, monkeypatch):
    recipe("config.trainer.steps = 3", "cnn_mnist.py")
    monkeypatch.chdir(tmp_path)
    assert load_recipe("cnn_mnist").trainer.steps == 0
    assert load_recipe("./cnn_mnist.py").trainer.steps == 3


def test_paths_hold_in_whatever_folder_they_are_used(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    keys = ("data.manual_dir", "data.tokenizer", "task.classifier")
    # The source of `init_from` may be missing on resume; its absolute path must stay equal.
    for value in ("there", "nowhere"):
        assert resolve(DIGITS, [("init_from", value)]).init_from == str(tmp_path / value)
    for value in ("keras_hub:gpt2_base_en", "gs://bucket/run", ""):
        assert resolve(DIGITS, [("init_from", value)]).init_from == value
    for value, expected in (("there", str(tmp_path / "there")), ("nowhere", "nowhere"), ("", "")):
        config = resolve("gan_mnist", [(key, value) for key in keys])
        paths = config.data.manual_dir, config.data.tokenizer
        assert {*paths, config.task.classifier} == {expected}


def test_names_are_no_folders(tmp_path, monkeypatch):
    for name in ("imagenet", "bpe"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("vgg16_transfer").model.weights == "imagenet"
    assert resolve("gpt_pydoc", [("data.tokenizer", "bpe")]).data.tokenizer == "bpe"


def test_nobodys_home_is_one_line():
    assert "must have a home folder" in error_of("data.source=npz:~no_such_user_here/a.npz")


@pytest.mark.parametrize("key", ["distill.alhpa", "qat.onn", "low_rank.energie"])
def test_a_key_below_a_section_of_compress_that_is_none(recipe, key):
    path = recipe(f"""
        with config.unlocked():
            config.compress.{key} = 1.0
        return config
    """)
    with pytest.raises(UsageError, match=key):
        resolve(path)


# --- Model Garden's flags -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("a=1", [("a", "1")]),
        ("a.b=1,c=x", [("a.b", "1"), ("c", "x")]),
        ("a=(2,3),b=1", [("a", "(2,3)"), ("b", "1")]),
        ("a=[(1,2),(3,4)],b={1,2}", [("a", "[(1,2),(3,4)]"), ("b", "{1,2}")]),
        ("a=b=c", [("a", "b=c")]),
        ("a=", [("a", "")]),
        ("a=1, b=2", [("a", "1"), (" b", "2")]),
    ],
)
def test_params_override_splits_at_commas_outside_brackets(text, pairs):
    assert split_overrides(text) == pairs


@pytest.mark.parametrize("text", ["", "a", "a=1,,b=2", "a=1,", "a=(1,2", "a=1,b=[2", "a=1)"])
def test_params_override_that_is_no_pair_is_refused(text):
    with pytest.raises(UsageError, match="--params_override"):
        split_overrides(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.source", "text:gs://bucket/texts"),
        ("data.source", "prepared:gs://bucket/records"),
        ("data.tokenizer", "gs://bucket/run"),
        ("compress.distill.teacher", "s3://bucket/run"),
    ],
)
def test_data_are_read_from_this_machine(key, value):
    with pytest.raises(
        UsageError, match="must be a local path.*Copy the data to this machine first"
    ):
        resolve("gpt_pydoc:debug", [(key, value)])


def test_prepared_rows_set_the_length_that_the_user_does_not(tmp_path, capsys):
    about = {"packing": "best_fit", "sequence_length": 256}
    (tmp_path / "prepared.json").write_text(json.dumps(about))
    source = ("data.source", f"prepared:{tmp_path}")
    assert resolve("web_text:debug").data.sequence_length == 64
    assert resolve("web_text:debug", [source]).data.sequence_length == 256
    assert (
        f"data.sequence_length=256, from the prepared data in {tmp_path}" in capsys.readouterr().err
    )
    assert resolve("web_text", [source]).data.sequence_length == 256
    assert capsys.readouterr().err == ""
    given = [source, ("data.sequence_length", "32")]
    assert resolve("web_text:debug", given).data.sequence_length == 32
    (tmp_path / "prepared.json").write_text(json.dumps({**about, "packing": "stream"}))
    assert resolve("web_text:debug", [source]).data.sequence_length == 64


def test_too_little_text_for_a_batch_is_told_in_tokens():
    stream = np.zeros(312, "uint8")
    with pytest.raises(UsageError) as error:
        check_examples({"tokens": Windows(stream, 256)}, 64)
    assert str(error.value) == (
        "The training split has 312 tokens and fills 2 of the 64 sequences of 256 tokens that one "
        "update requires (trainer.global_batch_size, data.sequence_length): 15,818 tokens are "
        "missing. Set trainer.global_batch_size=2 or less or data.sequence_length=4 or less, or "
        "train on more text."
    )
    # The numbers in the message are correct.
    for tokens, batch, length in ((312, 2, 256), (312, 64, 4), (312 + 15_818, 64, 256)):
        check_examples({"tokens": Windows(np.zeros(tokens, "uint8"), length)}, batch)
    with pytest.raises(UsageError):
        check_examples({"tokens": Windows(np.zeros(312 + 15_817, "uint8"), 256)}, 64)
    packed = {"tokens": np.zeros((3, 17), "uint8"), "segments": np.zeros((3, 17), "uint8")}
    with pytest.raises(UsageError, match="fills 3 of the 5 .*: 32 tokens are missing"):
        check_examples(packed, 5)
    with pytest.raises(UsageError, match=r"global_batch_size \(5\) must not exceed .* \(3\)"):
        check_examples({"image": np.zeros((3, 2, 2, 1))}, 5)


def test_an_unknown_strategy_is_one_line_before_anything_starts(zoo_command, tmp_path):
    answer = zoo_command("train", "cnn_digits", f"--workdir={tmp_path}/run", "--strategy=mirored")
    assert answer.status == 2
    assert "No strategy is named 'mirored'. Did you mean 'mirrored'" in answer.one_line()


def test_columns_of_texts_are_names():
    config = resolve("linear_text", [("data.columns", "review,stars")])
    assert tuple(config.data.columns) == ("review", "stars")
    with pytest.raises(UsageError, match="data.columns"):
        resolve("linear_text", [("data.columns", "1,2")])
