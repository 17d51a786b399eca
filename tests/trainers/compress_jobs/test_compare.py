"""Tests of `zoo compress compare`, which loads no TensorFlow, and of latency measurements."""

import json

import numpy as np
import pytest

from tests import toys
from tests.html_pages import EVIL, Page
from trainers.compress_jobs import latency
from trainers.compress_jobs.page import write_comparison, write_page
from trainers.compress_jobs.table import rows, table
from trainers.config.recipe import as_dict, resolve
from zoo.saved.workdir import FORMAT_VERSION


def side(accuracy=0.9, gzip_bytes=1000, ms=1.0, **more):
    return {
        "parameters": 500, "nonzeros": 400, "file": "litert", "bytes": 2 * gzip_bytes,
        "gzip_bytes": gzip_bytes, "milliseconds": ms and {"1": ms, "2": ms / 2}, "remark": "",
        "test": {"loss": 1 - accuracy, "accuracy": accuracy}, **more,
    }  # fmt: skip


def folder(path, after, *, method="prune", before=None, **more):
    """Writes a work directory with the summary of `zoo compress`."""
    path.mkdir()
    config = as_dict(resolve("cnn_digits"))
    saved = {
        "format_version": FORMAT_VERSION,
        "source": "",
        "class_names": [],
        "data_fingerprint": "one",
    }
    (path / "config.json").write_text(json.dumps({**saved, "config": config, "tokenizer": None}))
    summary = {
        "method": method, "from": "/runs/whole", "task": "image_classification", "data": "one",
        "split": "test", "metric": "accuracy", "mode": "max", "before": before or side(),
        "after": after, **more,
    }  # fmt: skip
    (path / "compression.json").write_text(json.dumps(summary))
    return path


def test_the_comparison_marks_the_pareto_front(tmp_path, zoo_command):
    """The front has the models that no other model dominates, among them the original model."""
    good = folder(tmp_path / "good", side(0.89, 300, 0.8))
    small = folder(tmp_path / "small", side(0.80, 100, 0.9), method="prune+ptq")
    worse = folder(tmp_path / "worse", side(0.88, 310, 0.9))
    silent = folder(tmp_path / "silent", side(0.895, 900, None, remark="no runtime file: why"))
    page = tmp_path / "pages" / "front.html"
    words = ("compress", "compare", good, small, worse, silent)
    answer = zoo_command(*words, f"--out={page}", "--json")
    assert answer.status == 0, answer.err
    comparison = json.loads(answer.out)
    names = ["/runs/whole", "good (prune)", "small (prune+ptq)", "worse (prune)", "silent (prune)"]
    assert [model["name"] for model in comparison["models"]] == names
    assert [model["front"] for model in comparison["models"]] == [True, True, True, False, True]
    speeds = [1, 1.25, pytest.approx(1 / 0.9), pytest.approx(1 / 0.9), None]
    assert [model["speed"] for model in comparison["models"]] == speeds
    text = page.read_text()
    assert text.count("<svg") == 2
    assert "small (prune+ptq) ★" in text
    assert "worse (prune) ★" not in text
    lines = zoo_command(*words).out.splitlines()
    assert [line[0] for line in lines[1:6]] == ["*", "*", "*", " ", "*"]
    assert lines[2].split()[-1] == "1.25x"
    assert lines[5].split()[-2:] == ["–", "–"]


def test_pages_escape_text_of_files(tmp_path):
    name = f"$x^{{${EVIL}"  # matplotlib must not parse it as math
    measured = side(remark=EVIL, test={name: 0.9})
    summary = {
        "method": EVIL, "from": f"/{EVIL}", "task": EVIL, "split": EVIL, "metric": name,
        "before": side(test={name: 0.95}), "after": measured,
    }  # fmt: skip
    write_page(summary, tmp_path / "one.html")
    page = Page(tmp_path / "one.html")
    assert "script" not in page.tags
    assert page.words.count(EVIL) == 9
    model = {**measured, "name": EVIL, "metric": 0.9, "speed": None, "front": True}
    summary |= {"models": [model, {**model, "metric": 0.8, "front": False}]}
    write_comparison(summary, tmp_path / "several.html")
    page = Page(tmp_path / "several.html")
    assert "script" not in page.tags
    assert page.words.count(EVIL) == 9


def test_a_lower_loss_is_better(tmp_path, zoo_command):
    more = {"metric": "loss", "mode": "min"}
    one = folder(tmp_path / "one", side(0.95, 300), **more)
    two = folder(tmp_path / "two", side(0.85, 300), **more)
    comparison = json.loads(zoo_command("compress", "compare", one, two, "--json").out)
    assert [model["front"] for model in comparison["models"]] == [False, True, False]


def test_what_cannot_be_compared_is_one_line(tmp_path, zoo_command):
    one = folder(tmp_path / "one", side())
    task = folder(tmp_path / "task", side(), task="clm")
    data = folder(tmp_path / "data", side(), data="another")
    bare = folder(tmp_path / "bare", side())
    (bare / "compression.json").unlink()
    cases = [
        ((one, task), "requires models of the same task"),
        ((one, task), "Received: clm in "),
        ((one, data), "requires models of the same dataset"),
        ((one, bare), "has no compression.json"),
        ((one, tmp_path), "is not a work directory"),
        ((one, "--config.trainer.steps=3"), "does not support overrides"),
        ((one, f"--out={tmp_path}/page"), "must end in .html"),
    ]
    for words, message in cases:
        answer = zoo_command("compress", "compare", *words)
        assert answer.status == 2, answer.err
        assert message in answer.one_line()


def test_a_row_tells_how_before_and_after_compare():
    summary = {"before": side(0.9, 1000, 2.0), "after": side(0.85, 250, 4.0, nonzeros=400)}
    notes = {name: note for name, _, _, note in rows(summary)}
    assert notes["gzip_bytes"] == "4.00x smaller"
    assert notes["nonzeros"] == ""
    assert notes["ms, 1 thread"] == "0.50x the speed"
    assert notes["accuracy"] == "-0.05"
    summary["after"] |= {"milliseconds": None, "remark": "no runtime file: it loops"}
    text = table({**summary, "split": "test"})
    assert text.startswith("metrics: test split ")
    assert text.splitlines()[-1] == "after: no runtime file: it loops"
    assert next(line for line in text.splitlines() if "2 threads" in line).split()[-1] == "–"


def test_files_take_turns(monkeypatch):
    """Calls alternate between the files, on the same example; medians ignore one slow call."""
    calls, now = [], [0.0]

    class File:
        def __init__(self, path, threads):
            self.path, self.threads = path, threads
            # Only the fast model has the input `segments`.
            self.inputs = {"x": (), "segments": ()} if path == "fast" else {"x": ()}

        def run_example(self, inputs):
            assert inputs.keys() == self.inputs.keys()
            calls.append((self.path, self.threads, int(inputs["x"][0])))
            now[0] += 1.0 if len(calls) == 9 else 0.004 if self.path == "slow" else 0.001

    monkeypatch.setattr(latency, "LiteRTFile", File)
    monkeypatch.setattr(latency, "time", toys.Clock(lambda: now[0]))
    latencies = latency.measure_latencies(
        {"fast": "fast", "slow": "slow"},
        {"x": np.arange(3), "segments": np.ones(3)},
    )
    for threads in ("1", "2"):
        assert latencies["slow"][threads] == pytest.approx(4)
        assert latencies["fast"][threads] == pytest.approx(1)
    one = [call for call in calls if call[1] == 1][2:]  # without the first call of each file
    assert [path for path, _, _ in one[:4]] == ["fast", "slow"] * 2
    assert [x for _, _, x in one[:8]] == [0, 0, 1, 1, 2, 2, 0, 0]
