"""The HTML report shows the values of the run's files."""

import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.html_pages import EVIL, Page
from trainers.cli import report as report_cli
from trainers.cli.common import run
from trainers.config.recipe import as_dict, resolve
from trainers.report import figures
from trainers.report import page as report
from trainers.report import sections as report_sections
from trainers.report.read import read_run
from trainers.run.workdir import WorkDirectory
from zoo.errors import UsageError

_CONFIG = {
    "model": {"name": "cnn_mnist", "filters": [32, 64]},
    "data": {"augment": {"shift": 2}},
    "trainer": {"steps": 40, "epochs": None},
}
# Read before the fixture `without_curves` replaces them.
_LINE_PLOT, _CALIBRATION = figures.line_plot, figures.calibration
_GROUP_PLOT = figures.group_plot


@pytest.fixture(autouse=True)
def curves(monkeypatch):
    """Draws the plots of reports."""
    monkeypatch.setattr(figures, "line_plot", _LINE_PLOT)
    monkeypatch.setattr(figures, "calibration", _CALIBRATION)
    monkeypatch.setattr(figures, "group_plot", _GROUP_PLOT)


def _workdir(path, lines=(), config=None, **files):
    path.mkdir(exist_ok=True)
    resolved = {
        "format_version": 2, "config": config or _CONFIG, "source": "cnn_mnist:debug",
        "class_names": [], "data_fingerprint": "",
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(resolved))
    if lines:
        text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
        (path / "metrics.jsonl").write_text(text)
    for name, values in files.items():
        (path / f"{name}.json").write_text(json.dumps(values))
    return path


def _evaluation(path, labels, predictions, names, split="test", **more):
    folder = path / "evaluation"
    folder.mkdir(exist_ok=True)
    labels, predictions = np.array(labels, np.int64), np.array(predictions, np.int64)
    confidences = np.full(len(labels), 0.9, np.float32)
    np.savez(
        folder / f"{split}.npz", labels=labels, predictions=predictions,
        confidences=confidences, class_names=np.array(names), **more,
    )  # fmt: skip
    right = labels == predictions
    summary = {
        "split": split, "weights": "final", "step": 40, "examples": len(labels),
        "metrics": {"loss": 0.5, "accuracy": int(right.sum()) / max(right.size, 1)},
    }  # fmt: skip
    (folder / f"{split}.json").write_text(json.dumps(summary))


def _training(step, **more):
    values = {"epoch": step / 20, "loss": 2.0 / step, "accuracy": 1 - 1 / step}
    rates = {"learning_rate": 1e-3, "samples_per_second": 100.0 + step, "seconds": step / 10}
    return {"step": step, **values, **rates, **more}


def _page(workdir):
    return Page(report.write_report(workdir))


LABELS = [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
PREDICTIONS = [0, 0, 1, 2, 1, 1, 0, 2, 2, 2]
NAMES = ["cat", "dog", "owl"]


def test_a_full_work_directory_gives_every_section(tmp_path):
    workdir = _workdir(
        tmp_path,
        [
            _training(10), {"step": 10, "val_loss": 0.25, "val_accuracy": 0.7},
            {"step": 10, "event": "resumed", "detail": "from step 10"},
            _training(20), _training(40),
        ],
        environment={"cores": 2, "devices": ["CPU:0"], "command": "zoo train x"},
    )  # fmt: skip
    _evaluation(
        workdir, LABELS, PREDICTIONS, NAMES,
        worst_index=np.array([2, 6]), worst_inputs=np.zeros((2, 4, 4, 1), np.uint8),
        worst_probabilities=np.array([[0.1, 0.7, 0.2], [0.8, 0.15, 0.05]], np.float32),
    )  # fmt: skip
    page = _page(workdir)
    assert page.headings == [
        "Evaluation", "Curves", "Confusion matrix, test", "Classes, test", "Calibration, test",
        "Worst mistakes, test", "Events", "Config", "Environment",
    ]  # fmt: skip
    assert page.tags.count("svg") == 5  # loss, accuracy, learning rate, throughput, calibration
    assert page.table("split") == [["test", "final", "40", "10", "0.5000", "0.7000"]]
    assert page.table("step") == [["10", "resumed", "from step 10"]]
    assert "notes" not in page.classes
    for tile in ("test accuracy0.7000final weights, 10 examples", "steps40of 40, epoch 2",
                 "wall time4.0 sresumes: 1", "throughput120.00samples / s, median"):  # fmt: skip
        assert tile in page.words
    for pair in (["filters", "[32, 64]"], ["augment.shift", "2"], ["devices", '["CPU:0"]']):
        assert any(pair in table for table in page.tables)


def test_the_page_needs_nothing_from_outside(tmp_path):
    workdir = _workdir(tmp_path, [_training(10), _training(20)])
    labels = np.arange(30)
    _evaluation(
        workdir, labels, labels[::-1], [f"c{i}" for i in labels],
        worst_index=np.array([0]), worst_inputs=np.zeros((1, 300, 300, 3), np.float32),
        worst_probabilities=np.full((1, 30), 1 / 30, np.float32),
    )  # fmt: skip
    page = _page(workdir)
    references = [value for key, value in page.attributes if key.split(":")[-1] in ("src", "href")]
    assert references
    assert all(value.startswith(("data:", "#")) for value in references)
    assert all(value.startswith("url(#") for value in re.findall(r"url\([^)]*", page.source))
    assert not re.search(r"https?://|@import", page.source)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    identities = [value for key, value in page.attributes if key == "id"]
    assert len(identities) == len(set(identities))


def test_colors_of_plots_follow_the_page(tmp_path):
    source = _page(_workdir(tmp_path, [_training(10, learning_rate=1e-7), _training(20)])).source
    plots = "".join(re.findall(r"<svg.*?</svg>", source, flags=re.S))
    assert "var(--training)" in plots
    texts = re.findall(r"<text[^>]*>", plots)
    assert texts
    assert all("fill: var(--ink)" in text for text in texts)
    assert not re.findall(r"#[0-9a-f]{6}\b", plots)


def test_confusion_matrix_holds_the_counts_with_the_true_class_in_rows(tmp_path):
    workdir = _workdir(tmp_path)
    _evaluation(workdir, LABELS, PREDICTIONS, NAMES)
    page = _page(workdir)
    assert page.table("true \\ predicted", *NAMES) == [
        ["cat", "2", "1", "1"], ["dog", "1", "2", "0"], ["owl", "0", "0", "3"],
    ]  # fmt: skip
    titles = [value for key, value in page.attributes if key == "title"]
    assert titles == [f"{s} of the row" for s in
                      ("50.0%", "25.0%", "25.0%", "33.3%", "66.7%", "100.0%")]  # fmt: skip


def test_accuracy_and_calibration_have_their_uncertainty(tmp_path):
    workdir = _workdir(tmp_path)
    _evaluation(workdir, LABELS, PREDICTIONS, NAMES)
    page = _page(workdir)
    assert "Accuracy 70.00%, 95 % bootstrap interval 40.00% to 100.00% (1,000 res" in page.words
    assert "Expected calibration error 20.00%" in page.words  # all confidences are 0.9
    for confidences in (np.full(10, np.nan, np.float32), None):
        arrays = {"labels": LABELS, "predictions": PREDICTIONS, "class_names": NAMES}
        arrays |= {} if confidences is None else {"confidences": confidences}
        np.savez(workdir / "evaluation" / "test.npz", **arrays)
        page = _page(workdir)
        assert "Calibration, test" not in page.headings
        assert "Confusion matrix, test" in page.headings


def _text_sample(label, prediction, *texts, example=2):
    return {
        "example": example, "label": label, "prediction": prediction, "label_probability": 0.1,
        "probability": 0.85, "texts": texts,
    }  # fmt: skip


def _text_page(tmp_path, samples):
    workdir = _workdir(tmp_path)
    _evaluation(workdir, LABELS, PREDICTIONS, NAMES)
    (workdir / "evaluation" / "test_samples.json").write_text(json.dumps(samples))
    return _page(workdir)


def test_texts_show_the_color_of_each_token(tmp_path):
    evil = f"{EVIL} "
    samples = [
        _text_sample("cat", "dog", [["a ", 0.0], [evil, -2.0], ["ت", 1.0]], [["b", 0.05]]),
        _text_sample("owl", "owl", [["c", 0.0]], example=7),
    ]
    page = _text_page(tmp_path, samples)
    assert "script" not in page.tags
    (mistakes,) = [t for t in page.tables if t[0] == ["true", "predicted", "text"] and len(t) == 2
                   and t[1][0].startswith("cat")]  # fmt: skip
    assert mistakes[1] == ["cat10.0%", "dog85.0%", f"a {evil}تbexample 2"]
    assert page.headings[4:6] == ["Worst mistakes, test", "Correct predictions, test"]
    assert "owl10.0%owl85.0%cexample 7" in page.words
    # A weak token and one without any attribution have no color.
    spans = re.findall(r'<span class="(\w+)" style="--share: ([\d.]+)">([^<]*)</span>', page.source)
    assert [(kind, share) for kind, share, _ in spans] == [("wrong", "0.60"), ("right", "0.30")]
    assert ">a <span" in page.source  # no white space is added
    assert [value for key, value in page.attributes if key == "dir"] == ["auto"] * 3


@pytest.mark.parametrize(
    "damage",
    [{"texts": 5}, {"texts": [[5]]}, {"texts": [[["a", "b"]]]}, {"texts": [[["a", None]]]}],
)
def test_damaged_texts_become_a_note(tmp_path, damage):
    page = _text_page(tmp_path, [{**_text_sample("cat", "dog", []), **damage}])
    assert "evaluation of test could not be drawn: " in page.words


def test_class_table_equals_scores_made_by_hand(tmp_path):
    workdir = _workdir(tmp_path)
    _evaluation(workdir, LABELS, PREDICTIONS, [*NAMES, "emu"])
    assert _page(workdir).table("class", "precision", "recall", "F1", "support") == [
        ["cat", "0.6667", "0.5000", "0.5714", "4"],
        ["dog", "0.6667", "0.6667", "0.6667", "3"],
        ["owl", "0.7500", "1.0000", "0.8571", "3"],
        ["emu", "–", "–", "–", "0"],
    ]


def test_many_classes_become_an_image_and_a_table_with_the_worst_first(tmp_path):
    workdir = _workdir(tmp_path)
    labels = np.repeat(np.arange(25), 4)
    predictions = labels.copy()
    predictions[28:31] = 3  # three of the four of class 7
    _evaluation(workdir, labels, predictions, [f"c{i}" for i in range(25)])
    page = _page(workdir)
    assert page.table("class")[0] == ["7 · c7", "1.0000", "0.2500", "0.4000", "4"]
    assert page.table("class")[1][0] == "3 · c3"
    assert not [table for table in page.tables if table[0][0].startswith("true")]
    assert "25 classes by number; 97.00% of the examples lie on the diagonal." in page.words
    assert page.source.count('href="data:image/png;base64,') == 1


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1), (4, 4, 3), (7,)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_worst_mistakes_show_both_labels_with_their_probabilities(tmp_path, shape, dtype):
    workdir = _workdir(tmp_path)
    _evaluation(
        workdir, LABELS, PREDICTIONS, NAMES,
        worst_index=np.array([3, 6]), worst_inputs=np.ones((2, *shape), dtype),
        worst_probabilities=np.array([[0.1, 0.2, 0.7], [0.8, 0.15, 0.05]], np.float32),
    )  # fmt: skip
    page = _page(workdir)
    assert "true cat 10.0%predicted owl 70.0%example 3" in page.words
    assert "true dog 15.0%predicted cat 80.0%example 6" in page.words
    assert page.words.index("example 3") < page.words.index("example 6")
    assert page.tags.count("img") == (2 if len(shape) > 1 else 0)


def test_a_page_shows_a_bounded_number_of_mistakes(tmp_path):
    workdir = _workdir(tmp_path)
    _evaluation(
        workdir, LABELS, PREDICTIONS, NAMES,
        worst_index=np.full(100, 3), worst_inputs=np.ones((100, 4, 4, 1), np.uint8),
        worst_probabilities=np.tile(np.float32([0.1, 0.2, 0.7]), (100, 1)),
    )  # fmt: skip
    assert _page(workdir).tags.count("img") == 36


def test_images_keep_their_brightness():
    for pixels in (np.full((4, 4, 1), 51, np.uint8), np.full((4, 4, 3), 0.2, np.float32)):
        assert _decoded(pixels).max() == 51
    broken = np.array([[np.nan, -1.0], [2.0, 0.2]], np.float32)
    assert _decoded(broken).tolist() == [[0, 0], [255, 51]]
    assert _decoded(np.zeros((900, 300, 3), np.uint8)).shape == (256, 85, 3)


def _decoded(pixels):
    import base64
    import io

    from PIL import Image

    data = figures.image(pixels).partition("base64,")[2]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_text_from_files_is_escaped_everywhere(tmp_path):
    workdir = _workdir(
        tmp_path,
        [{"step": 1, EVIL: 1.0, "$x^{": 2.0, "loss": EVIL, "val_$": 1.0},
         {"step": 1, "event": EVIL, "detail": EVIL}],
        config={"model": {"name": EVIL, EVIL: EVIL}, EVIL: {"a": [EVIL]}},
        environment={EVIL: {"nested": EVIL}},
    )  # fmt: skip
    _evaluation(
        workdir, LABELS, PREDICTIONS, [EVIL, "dog", '"><b onload=x>'], split="te<b>st",
        worst_index=np.array([2]), worst_inputs=np.zeros((1, 4, 4, 1), np.uint8),
        worst_probabilities=np.full((1, 3), 1 / 3, np.float32),
    )  # fmt: skip
    summary = {"metrics": {EVIL: EVIL}, "weights": EVIL, "step": EVIL, "examples": EVIL}
    (workdir / "evaluation" / "train.json").write_text(json.dumps(summary))
    (workdir / "evaluation" / "<i>.json").write_text("{")
    page = _page(workdir)
    assert not {"script", "i"} & set(page.tags)
    assert "onload" not in [key for key, _ in page.attributes]
    assert page.words.count(EVIL) > 15


def test_translations_stand_beside_their_references(tmp_path):
    workdir = _workdir(tmp_path, [_training(10, tokens_per_second=5e3)])
    (workdir / "evaluation").mkdir()
    summary = {"split": "test", "metrics": {"loss": 1.0, "bleu": 30.0}, "examples": 2}
    (workdir / "evaluation" / "test.json").write_text(json.dumps(summary))
    rows = [{"source": "a <b>", "prediction": "c", "reference": "d"}] * 300
    (workdir / "evaluation" / "test_samples.json").write_text(json.dumps(rows))
    page = _page(workdir)
    assert "notes" not in page.classes
    assert page.table("source", "prediction", "reference") == [["a <b>", "c", "d"]] * 200
    assert "100 more samples: see evaluation/" in page.words
    assert "tokens / s, median" in page.words
    (workdir / "evaluation" / "test_samples.json").write_text("[1")
    assert "test_samples.json could not be read" in report.write_report(workdir).read_text()


def test_only_a_recipe_is_enough(tmp_path):
    page = _page(_workdir(tmp_path))
    assert page.headings == ["Config"]
    assert "stopped" in page.words
    assert "notes" not in page.classes


def test_the_distance_of_a_gan_stands_above_its_losses(tmp_path):
    workdir = _workdir(tmp_path, [_training(40)])
    summary = {"split": "test", "metrics": {"generator": 0.7, "frechet_distance": 2.5}}
    (workdir / "evaluation").mkdir()
    (workdir / "evaluation" / "test.json").write_text(json.dumps(summary))
    assert "test frechet_distance2.5000" in _page(workdir).words


def test_an_empty_evaluation_is_left_out(tmp_path):
    workdir = _workdir(tmp_path)
    _evaluation(workdir, [], [], NAMES)
    assert "Classes, test" not in _page(workdir).headings


def test_a_folder_without_a_recipe_is_refused(tmp_path, capsys):
    with pytest.raises(UsageError, match=r"no config\.json"):
        report.write_report(tmp_path)
    assert run(report_cli.command, ["report", str(tmp_path)]) == 2
    assert "no config.json" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [[], ["a", "b"]])
def test_the_command_wants_one_directory(words):
    with pytest.raises(UsageError, match="Usage: zoo report WORKDIR"):
        report_cli.command(["report", *words])


def test_the_command_prints_the_path(tmp_path, capsys):
    assert report_cli.command(["report", str(_workdir(tmp_path))]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"


def test_a_half_written_last_line_is_no_damage_but_one_before_it_is(tmp_path):
    page = _page(_workdir(tmp_path, [_training(10), _training(20), '{"step": 3']))
    assert "steps20of 40" in page.words
    assert "notes" not in page.classes
    lines = [_training(10), "nonsense\n", "[1]\n", '{"loss": 1}\n', _training(20)]
    page = _page(_workdir(tmp_path, lines))
    assert "metrics.jsonl: 3 of 5 lines could not be read" in page.words
    assert "steps20of 40" in page.words


@pytest.mark.parametrize(
    "name",
    ["config.json", "environment.json", "metrics.jsonl", "evaluation/test.json",
     "evaluation/test.npz"],
)  # fmt: skip
@pytest.mark.parametrize("keep", [0, 0.5, 0.95])
def test_a_file_cut_short_becomes_a_note_and_the_rest_stands(tmp_path, name, keep):
    workdir = _workdir(tmp_path, [{"step": 10, "loss": 1.0}], environment={"cores": 2})
    _evaluation(workdir, LABELS, PREDICTIONS, NAMES)
    content = (workdir / name).read_bytes()
    (workdir / name).write_bytes(content[: int(keep * len(content))])
    page = _page(workdir)
    assert ("notes" in page.classes) == (name != "metrics.jsonl")
    if name != "metrics.jsonl":
        assert page.words.count(f"{os.path.basename(name)} could not be read: ") == 1
    assert len(page.headings) == {"evaluation/test.npz": 4}.get(name, 6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"labels": np.array([0, 1])}, "must have the shape of predictions"),
        ({"labels": np.array([9] * 10)}, "must be from 0 to "),
        ({"predictions": np.array([-1] * 10)}, "must be from 0 to "),
        ({"predictions": np.zeros(10)}, "must be integers"),
        ({"worst_index": np.array([10])}, "must be from 0 to "),
        ({"worst_probabilities": np.zeros((1, 2))}, "must match the 3 classes"),
        ({"confidences": np.zeros(9)}, "must have the shape of labels"),
        ({"class_names": np.array(["a", None], dtype=object)}, "pickle"),
        ({"class_names": np.arange(2001).astype(str)}, "2,001 classes"),
        ({"class_names": np.frombuffer(b"\xff" * 12, "<U1")}, "maximum character"),
    ],
)
def test_arrays_that_do_not_fit_become_a_note(tmp_path, wrong, message):
    workdir = _workdir(tmp_path)
    _evaluation(workdir, LABELS, PREDICTIONS, NAMES)
    good = {"labels": LABELS, "predictions": PREDICTIONS, "class_names": NAMES}
    np.savez(workdir / "evaluation" / "test.npz", **{**good, **wrong})
    page = _page(workdir)
    assert re.search(f"test.npz could not be read: .*{message}", page.words)
    assert "Classes, test" not in page.headings


def test_images_without_a_pixel_become_a_note(tmp_path):
    workdir = _workdir(tmp_path)
    worst = {"worst_index": np.array([2]), "worst_inputs": np.zeros((1, 0, 4, 1), np.uint8)}
    worst["worst_probabilities"] = np.full((1, 3), 0.3)
    _evaluation(workdir, LABELS, PREDICTIONS, NAMES, **worst)
    assert "evaluation of test could not be drawn: cannot write empty image" in _page(workdir).words


def test_what_is_not_finite_is_told_and_breaks_nothing(tmp_path):
    lines = [_training(10), _training(20, loss=float("nan")), _training(30, loss=float("inf"))]
    lines += [_training(40, loss=10**400, accuracy=True, samples_per_second=None)]
    page = _page(_workdir(tmp_path, lines))
    assert "last NaN, lowest 0.2000 at step 10, highest 0.2000 at step 10" in page.words
    assert "not finite in 3 of 4 records, first at step 20" in page.words
    assert "throughput120.00" in page.words
    page = _page(_workdir(tmp_path, [_training(10, loss=float("nan"))]))
    assert "not finite in 1 of 1 records" in page.words


def test_integers_larger_than_any_float_are_shown(tmp_path):
    large = 10**400
    lines = [{"step": 1, "loss": large, "samples_per_second": large, "seconds": large}]
    workdir = _workdir(tmp_path, lines)
    _evaluation(workdir, LABELS, PREDICTIONS, NAMES)
    summary = {"metrics": {"accuracy": large}, "step": large, "examples": large}
    (workdir / "evaluation" / "test.json").write_text(json.dumps(summary))
    assert "inf" in _page(workdir).words


def test_plots_of_many_metrics_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(report_sections, "_MAX_PLOTS", 3)
    values = {f"metric_{i}": 1.0 for i in range(8)} | {f"x{i}_per_second": 1.0 for i in range(5)}
    page = _page(_workdir(tmp_path, [{"step": step, **values} for step in (1, 2)]))
    assert page.source.count("<svg") == 6
    assert "7 more plots: see metrics.jsonl." in page.words


def test_training_and_validation_share_a_plot(tmp_path):
    lines = [_training(10), {"step": 10, "val_loss": 0.75}, _training(20)]
    page = _page(_workdir(tmp_path, lines))
    assert "training last 0.1000, lowest 0.1000 at step 20, highest 0.2000" in page.words
    assert "validation last 0.7500" in page.words
    assert "var(--validation)" in page.source.split("</svg>")[0].split("<svg")[1]


def test_skipped_steps_are_drawn_only_where_there_were_any(tmp_path):
    for skipped in (0, 3):
        lines = [_training(10, skipped_steps=0), _training(20, skipped_steps=skipped)]
        words = _page(_workdir(tmp_path, lines)).words
        assert ("skipped steps" in words) == bool(skipped)


def test_state_tells_finished_going_and_stopped_apart(tmp_path):
    config = as_dict(resolve("cnn_digits", [("trainer.steps", "40"), ("trainer.epochs", "0")]))
    workdir = _workdir(tmp_path, [_training(20)], config)
    assert read_run(workdir).state == "stopped"
    training = WorkDirectory(workdir).open()
    assert read_run(workdir).state == "running"
    training.close()
    assert read_run(workdir).state == "stopped"
    (workdir / "model.keras").touch()
    assert read_run(workdir).state == "finished"
    (workdir / "model.keras").unlink()  # a kill may come after the last update
    assert read_run(_workdir(tmp_path, [_training(40)], config)).state == "stopped"


def test_long_times_are_readable(tmp_path):
    for seconds, text in ((125, "2 min 5 s"), (7380, "2 h 3 min"), (59.97, "1 min 0 s")):
        lines = [_training(20, seconds=seconds)]
        assert f"wall time{text}" in _page(_workdir(tmp_path, lines)).words


def test_writing_is_atomic(tmp_path, monkeypatch):
    workdir = _workdir(tmp_path)
    path = report.write_report(workdir)
    assert sorted(os.listdir(workdir)) == ["config.json", "report.html"]
    path.write_text("the old page")

    def broken_disk(descriptor):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", broken_disk)
    with pytest.raises(OSError, match="disk full"):
        report.write_report(workdir)
    assert path.read_text() == "the old page"
    assert sorted(os.listdir(workdir)) == ["config.json", "report.html"]


def test_text_that_is_no_unicode_is_written_all_the_same(tmp_path):
    page = _page(_workdir(tmp_path, [{"step": 1, "event": "\ud800"}]))
    assert page.table("step") == [["1", "?", ""]]


@pytest.mark.alone
def test_neither_tensorflow_nor_keras_is_loaded_and_it_is_quick(tmp_path):
    workdir = _workdir(tmp_path, [_training(step) for step in range(1, 2000)])
    _evaluation(workdir, LABELS, PREDICTIONS, NAMES)
    code = (
        "import sys; from trainers.cli.report import command; command(sys.argv);"
        "assert 'sklearn' in sys.modules;"
        "sys.exit(str([m for m in ('tensorflow', 'keras') if m in sys.modules]))"
    )
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", code, str(workdir)], capture_output=True, text=True, check=False
    )
    assert result.stderr == "[]\n"
    assert time.monotonic() - began < 10  # takes 2.5 s on two idle cores


def test_members_of_a_group_share_a_plot_and_are_in_no_table(tmp_path):
    """The loads of 40 experts in two blocks are two plots, drawn once each."""
    names = [f"load/{block}/{expert}" for block in range(2) for expert in range(40)]
    lines = [{"step": step, "loss": 1.0, **dict.fromkeys(names, 0.5 * step)} for step in (1, 2, 3)]
    lines[-1]["load/1/7"] = 9.0
    path = _workdir(tmp_path / "run", lines)
    _evaluation(path, [0, 1], [0, 1], ["a", "b"])
    summary = json.loads((path / "evaluation" / "test.json").read_text())
    summary["metrics"].update(dict.fromkeys(names, 1.0))
    (path / "evaluation" / "test.json").write_text(json.dumps(summary))
    run_of_files = read_run(path)
    plots = report_sections.curves(run_of_files.records)["plots"]
    assert [plot["title"] for plot in plots] == ["loss", "load 0", "load 1"]
    assert plots[1]["captions"] == [("", "40 lines, last 1.5000 to 1.5000")]
    assert plots[2]["captions"] == [("", "40 lines, last 1.5000 to 9.0000")]
    assert plots[2]["drawing"].count("<path") > 40
    head = report_sections.evaluation_table(run_of_files.evaluations)["head"]
    assert not [name for name in head if "/" in name]
