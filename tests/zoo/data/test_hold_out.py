"""Validation examples held out of the training split; classes that a split lacks."""

import dataclasses
import json

import numpy as np
import pytest

from tests import toys
from trainers.compress_jobs.loaded_run import load
from trainers.run.workdir import read_metrics
from zoo.data import Dataset
from zoo.data.classes import check_classes
from zoo.data.hold_out import evaluation_split, hold_out, with_hold_out
from zoo.errors import UsageError


def labels_of(*counts, seed=0):
    """Examples with the given count per class, shuffled."""
    label = np.repeat(np.arange(len(counts)), counts).astype("int32")
    np.random.default_rng(seed).shuffle(label)
    return {"label": label, "number": np.arange(len(label))}


def data_of(*counts, side=6, **splits):
    generator = np.random.default_rng(0)

    def split(counts):
        label = labels_of(*counts)["label"]
        image = (
            generator.uniform(0, 60, (len(label), side, side, 1)) + 60 * label[:, None, None, None]
        )
        return {"image": image.astype("uint8"), "label": label}

    names = tuple("abcdefgh"[: len(counts)])
    parts = {"train": counts, **splits}
    return Dataset("toy", {k: split(v) for k, v in parts.items()}, names, f"toy-{parts}")


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [
        ((198, 2), 20, (19, 1)),
        ((2, 198), 20, (1, 19)),
        ((12, 8), 10, (6, 4)),  # more than examples of the second class
        ((10, 10), 10, (5, 5)),
        ((10, 10), 18, (9, 9)),
        ((10, 10), 2, (1, 1)),
        ((15, 3, 2), 3, (1, 1, 1)),
        ((15, 3, 2), 17, (14, 2, 1)),
        ((100, 100, 100), 10, (4, 3, 3)),
        ((20,), 5, (5,)),
        ((0, 20), 5, (0, 5)),  # a single class
    ],
)
def test_held_out_examples_have_the_classes_of_the_whole(counts, size, expected):
    arrays = labels_of(*counts)
    training, validation = hold_out(arrays, size)
    counted = np.bincount(validation["label"], minlength=len(counts))
    assert counted.sum() == size
    if counts == (100, 100, 100):
        assert sorted(counted) == [3, 3, 4]
    else:
        assert tuple(counted) == expected
    assert sorted([*training["number"], *validation["number"]]) == [*range(sum(counts))]
    again, same = hold_out(arrays, size)
    np.testing.assert_array_equal(validation["number"], same["number"])
    np.testing.assert_array_equal(training["number"], again["number"])


@pytest.mark.parametrize(
    ("counts", "size", "line"),
    [
        ((19, 1), 5, "at least two examples of each class.*Received: one example of class 'b'"),
        ((10, 10), 1, "example of each class. Received: data.validation_size=1 of 20 .*2 classes"),
        ((10, 10), 19, "an example of each class. Received: data.validation_size=19 of 20"),
        ((10, 10), 20, "number of training examples of 'toy' .20.. Received: 20"),
        ((5, 5, 5, 5), 3, "training examples, with 4 classes"),
    ],
)
def test_what_cannot_be_stratified_is_refused(counts, size, line):
    with pytest.raises(UsageError, match=line):
        with_hold_out(data_of(*counts), size)


def test_numbers_that_are_no_classes_are_drawn_at_random():
    arrays = {"label": np.linspace(0, 1, 20), "number": np.arange(20)}
    training, validation = hold_out(arrays, 5)
    assert (len(training["number"]), len(validation["number"])) == (15, 5)


def test_the_run_says_how_its_examples_were_held_out(run, tmp_path):
    config = toys.recipe(
        "toy_norm", "image_classification", steps=2, model_arguments={"classes": 2}
    )
    config.data.validation_size = 20
    trainer = run(config, data_of(198, 2), tmp_path / "run")
    lines = read_metrics(tmp_path / "run")
    (note,) = [line["detail"] for line in lines if line.get("event") == "hold-out"]
    assert note == (
        "20 training examples, stratified by class, are held out for validation: 'b' 1 of 2, "
        "'a' 19 of 198"
    )
    (warning,) = [line["detail"] for line in lines if line.get("event") == "warning"]
    assert warning.startswith("the validation split: 95.0% of the examples are of class 'a'")
    # The report has its classes, and the result names its split.
    assert np.bincount(np.load(tmp_path / "run/evaluation/validation.npz")["labels"]).tolist() == [
        19, 1,
    ]  # fmt: skip
    saved = json.loads((tmp_path / "run/evaluation/validation.json").read_text())
    assert (saved["split"], saved["weights"], saved["examples"]) == ("validation", "final", 20)
    assert saved["metrics"] == trainer.metrics
    assert str(trainer.result).startswith("validation (final weights, step 2): loss ")
    # Compression uses the same examples.
    loaded = load(tmp_path / "run", with_hold_out(data_of(198, 2), 20)[0])
    assert loaded.split == "validation"


@pytest.fixture
def train(tmp_path, zoo_command):
    """Returns `train(*words) -> (work directory, answer)` of a command on two classes."""
    arrays = data_of(30, 10, side=28).splits["train"]
    np.savez(tmp_path / "mine.npz", **{f"train_{key}": value for key, value in arrays.items()})
    workdir = tmp_path / "run"
    return lambda *words: (
        workdir,
        zoo_command(
            "train", "cnn_digits:debug", f"--workdir={workdir}",
            f"--config.data.source=npz:{tmp_path / 'mine.npz'}",
            "--config.model.filters=(4,4,4)", "--config.model.num_classes=2",
            "--config.trainer.global_batch_size=16", "--config.trainer.steps=2",
            "--config.schedule.warmup_steps=0", *words,
        ),
    )  # fmt: skip


def test_means_of_training_are_no_result_of_a_split(train):
    workdir, answer = train("--config.data.validation_size=0", "--config.trainer.log_every=2")
    assert answer.status == 0, answer.err
    assert answer.out.startswith("training (current weights, step 2): loss ")
    assert "means over the last training updates. Set data.validation_size=N" in answer.err
    assert not list((workdir / "evaluation").glob("*"))


def test_evaluate_judges_by_the_best_split_there_is(train, zoo_command):
    workdir, answer = train("--config.data.validation_size=8")
    assert answer.status == 0, answer.err
    result, report = answer.out.splitlines()
    assert result.startswith("validation (final averaged weights, step 2): loss ")
    assert report == f"report: {workdir / 'report.html'}"
    for words in ([], ["--split=validation"]):
        assert zoo_command("evaluate", workdir, *words).out == f"{result}\n"
    saved = json.loads(zoo_command("evaluate", workdir, "--json").out)
    assert (saved["split"], saved["weights"], saved["step"]) == ("validation", "final averaged", 2)


@pytest.mark.parametrize(
    ("counts", "split", "line"),
    [
        ((9, 9), (9, 9), ""),
        ((9, 9, 9), (5, 5, 0), "the test split: no example of class 'c', which its metrics"),
        ((9, 9), (95, 5), "the test split: 95.0% of the examples are of class 'a': always"),
        ((9, 0), (5, 0), ""),  # a single class needs no warning
    ],
)
def test_a_split_that_judges_badly_is_named(counts, split, line):
    warning = check_classes(data_of(*counts, test=split), "test")
    assert warning == line or line and warning.startswith(line)


def test_a_validation_split_of_one_class_is_refused(run):
    config = toys.recipe(
        "toy_norm", "image_classification", steps=2, model_arguments={"classes": 2}
    )
    data = data_of(9, 9, validation=(5, 0))
    with pytest.raises(UsageError, match="only class 'a' of 2.*validation_size"):
        run(config, data)
    unnamed = dataclasses.replace(data, class_names=())
    with pytest.raises(UsageError, match="only class 0 of 2"):
        check_classes(unnamed, "validation")


def test_the_split_that_judges():
    assert evaluation_split({"train": 0, "validation": 0, "test": 0}) == "test"
    assert (
        evaluation_split({"train": 0, "validation": 0, "test": 0}, read_test=False) == "validation"
    )
    assert evaluation_split({"train": 0}) == ""
