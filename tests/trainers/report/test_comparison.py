"""Comparisons of runs show the values of their files."""

import json

import pytest

from tests.html_pages import EVIL, Page
from tests.trainers.report.test_report import _workdir
from trainers.report import figures
from trainers.report.comparison import as_json, compare_runs, table_rows, write_comparison
from zoo import registry
from zoo.errors import UsageError
from zoo.tasks.directions import better

_OVERLAY = figures.overlay


def config(rate, length=0, batch=8):
    return {
        "model": {"name": "cnn_mnist"},
        "optimizer": {"learning_rate": rate},
        "data": {"sequence_length": length},
        "trainer": {"steps": 40, "global_batch_size": batch},
    }


def make_run(path, rate, accuracy, **options):
    lines = [
        {"step": 0, "event": "started", "detail": ""},
        {"step": 20, "loss": 2.0, "seconds": 30.0, "samples_per_second": 5.0},
        {"step": 20, "val_loss": 1.5, "val_accuracy": accuracy + 0.1},
        {"step": 40, "loss": 1.0, "seconds": 90.0, "samples_per_second": 5.0},
        {"step": 40, "val_loss": 1.75, "val_accuracy": accuracy},
    ]
    _workdir(path, lines, config(rate, **options), environment={"cpu": path.name, "cores": 2})
    (path / "best").mkdir()
    best = {"step": 20, "val_loss": 1.5, "val_accuracy": accuracy + 0.1}
    (path / "best" / "metrics.json").write_text(json.dumps(best))
    (path / "evaluation").mkdir()
    test = {"split": "test", "metrics": {"accuracy": accuracy, "warmth": 3, "scoring": "words"}}
    (path / "evaluation" / "test.json").write_text(json.dumps(test))
    return path


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / "x" / "a", 0.1, 0.5), make_run(tmp_path / "y" / "b", 0.2, 0.75)]


@pytest.fixture(autouse=True)
def folders(tmp_path):
    for name in ("x", "y"):
        (tmp_path / name).mkdir()


def test_rows_hold_best_last_and_evaluated_metrics(runs):
    tables = table_rows(compare_runs(runs))
    assert tables["Metrics"] == [
        ["accuracy (test, higher is better)", "0.5", "0.75 *"],
        ["warmth (test)", "3", "3"],
        ["loss (validation, best, lower is better)", "1.5 *", "1.5 *"],
        ["accuracy (validation, best, higher is better)", "0.6", "0.85 *"],
        ["loss (validation, last, lower is better)", "1.75 *", "1.75 *"],
        ["accuracy (validation, last, higher is better)", "0.5", "0.75 *"],
        ["loss (training, last, lower is better)", "1 *", "1 *"],
    ]
    assert tables["Config"] == [["optimizer.learning_rate", "0.1", "0.2"]]
    assert tables["Machine"] == [["cpu", "a", "b"]]
    assert ["steps", "40 of 40", "40 of 40"] in tables["Runs"]
    assert ["wall time", "1 min 30 s", "1 min 30 s"] in tables["Runs"]


def test_json_holds_the_same_values(runs):
    values = json.loads(json.dumps(as_json(compare_runs(runs))))
    assert values["runs"] == [str(run) for run in runs]
    assert values["config"] == {"optimizer.learning_rate": ["0.1", "0.2"]}
    metric = next(m for m in values["metrics"] if m["split"] == "validation, best")
    assert metric == {
        "name": "loss", "split": "validation, best", "better": "lower", "values": [1.5, 1.5]
    }  # fmt: skip


def test_lower_is_better_where_it_is(tmp_path, runs):
    (runs[1] / "evaluation" / "test.json").write_text('{"metrics": {"loss": 2, "accuracy": "?"}}')
    (runs[0] / "evaluation" / "test.json").write_text('{"metrics": {"loss": 3}}')
    rows = table_rows(compare_runs(runs))["Metrics"]
    assert rows[0] == ["loss (test, lower is better)", "3", "2 *"]
    assert not any("accuracy (test" in row[0] for row in rows)


def test_curves_have_three_axes_and_the_page_escapes(tmp_path, runs, monkeypatch):
    drawn = {}

    def overlay(lines, x_label, name):
        drawn[name] = lines
        return _OVERLAY(lines, x_label, name)

    monkeypatch.setattr(figures, "overlay", overlay)
    saved = json.loads((runs[0] / "config.json").read_text())
    (runs[0] / "config.json").write_text(json.dumps({**saved, "source": EVIL}))
    page = tmp_path / "page.html"
    write_comparison(compare_runs(runs), page)
    assert drawn["loss over step"] == [([20.0, 40.0], [2.0, 1.0])] * 2
    assert drawn["val_loss over minutes"] == [([0.5, 1.5], [1.5, 1.75])] * 2
    assert drawn["val_accuracy over examples"][1] == ([160.0, 320.0], [0.85, 0.75])
    page = Page(page)
    assert page.headings == ["Runs", "Metrics", "Config", "Machine", "Curves"]
    assert "script" not in page.tags
    assert EVIL in page.words
    # Three axes for each of the three metrics.
    assert page.classes.count("axis-minutes") == len(drawn) / 3 == 3


def test_texts_are_compared_over_tokens(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        figures, "overlay", lambda lines, x, name: drawn.setdefault(name, lines) and "<svg></svg>"
    )
    runs = [make_run(tmp_path / name, 0.1, 0.5, length=size) for name, size in (("a", 4), ("b", 2))]
    write_comparison(compare_runs(runs), tmp_path / "page.html")
    assert [x for x, _ in drawn["loss over tokens"]] == [[640.0, 1280.0], [320.0, 640.0]]
    assert not any("examples" in name for name in drawn)


def test_other_data_and_damaged_files_become_notes(runs):
    saved = json.loads((runs[0] / "config.json").read_text())
    (runs[0] / "config.json").write_text(json.dumps({**saved, "data_fingerprint": "other"}))
    (runs[1] / "best" / "metrics.json").write_text("{")
    notes = compare_runs(runs).notes
    assert len(notes) == 2
    assert "b: best/metrics.json could not be read" in notes[0]
    assert "different data" in notes[1]


def test_equal_folder_names_are_told_apart(tmp_path):
    runs = [make_run(tmp_path / name / "run", 0.1, 0.5) for name in ("x", "y")]
    assert [run.name for run in compare_runs(runs).runs] == ["x/run", "y/run"]


def test_wrong_requests(tmp_path, runs):
    with pytest.raises(UsageError, match="must be given once"):
        compare_runs([runs[0], runs[0]])
    with pytest.raises(UsageError, match="2 to 24 runs"):
        compare_runs(runs[:1])
    with pytest.raises(UsageError, match="config.json"):
        compare_runs([runs[0], tmp_path])


def test_directions_agree_with_the_tasks():
    for name in ("image_classification", "clm", "qa", "mlm", "nsp", "electra", "seq2seq", "gan"):
        task = registry.build_task(name)
        if direction := better(task.monitor):
            assert direction == {"max": "higher", "min": "lower"}[task.monitor_mode], name
        else:
            assert not task.keeps_best, name
    assert better("val_loss") == better("bits_per_byte") == better("perplexity") == "lower"
    assert better("accuracy") == better("val_window_f1") == better("bleu") == "higher"
    assert better("top_probability") == ""
