"""The questions of a report."""

import json

import pytest

from tests.html_pages import EVIL
from tests.trainers.report.test_report import _page, _workdir
from trainers.report.answers import highlighted


def test_spans_are_highlighted_where_they_are():
    context = "0123456789"
    assert highlighted(context, [2, 4], [6, 7]) == [
        ("01", ""), ("23", "reference"), ("45", ""), ("6", "predicted"), ("789", "")
    ]  # fmt: skip
    assert highlighted(context, [2, 6], [4, 8])[1:4] == [
        ("23", "reference"), ("45", "both"), ("67", "predicted")
    ]  # fmt: skip
    assert highlighted(context, [0, 10], [0, 10]) == [(context, "both")]
    assert highlighted(context, None, [9, 10]) == [("012345678", ""), ("9", "predicted")]
    assert highlighted(context, None, None) == [(context, "")]
    assert highlighted("", None, None) == []


def test_long_contexts_are_cut_around_the_spans():
    context = "".join(chr(0x4E00 + i) for i in range(2000))
    pieces = highlighted(context, [500, 503], [1500, 1510])
    assert [text for text, _ in pieces].count("…") == 3
    assert pieces[0] == pieces[-1] == ("…", "")
    assert [piece for piece in pieces if piece[1]] == [
        (context[500:503], "reference"), (context[1500:1510], "predicted")
    ]  # fmt: skip
    assert sum(len(text) for text, kind in pieces if not kind) == 4 * 120 + 3
    near = highlighted(context, [500, 503], [550, 560])
    assert "".join(text for text, _ in near) == f"…{context[380:680]}…"
    assert highlighted(context, None, None) == [(context[:240], ""), ("…", "")]


def sample(f1, **changes):
    return {
        "source": f"question {f1}?", "prediction": "b", "reference": "a", "context": "a and b",
        "predicted_span": [6, 7], "reference_span": [0, 1], "f1": f1, **changes,
    }  # fmt: skip


def page(tmp_path, samples):
    workdir = _workdir(tmp_path)
    (workdir / "evaluation").mkdir(exist_ok=True)
    (workdir / "evaluation" / "test_samples.json").write_text(json.dumps(samples))
    (workdir / "evaluation" / "test.json").write_text("{}")
    return _page(workdir)


def test_the_worst_questions_come_first(tmp_path):
    evil = sample(100, source=EVIL, context=f"{EVIL} b", predicted_span=None, prediction="")
    result = page(tmp_path, [sample(50), evil, *[sample(75)] * 300, sample(0)])
    assert result.headings[0] == "Questions, test"
    rows = result.table("question", "reference", "prediction")
    assert len(rows) == 200
    assert [row[3] for row in rows[:3]] == ["0", "50", "75"]
    assert rows[0] == ["question 0?", "a", "b", "0", "a and b"]
    assert '<mark class="reference">a</mark> and <mark class="predicted">b</mark>' in result.source
    assert "Samples, test" not in result.headings
    result = page(tmp_path, [evil, {**evil, "reference": "", "reference_span": None}])
    assert "script" not in result.tags
    assert EVIL in result.words
    assert [row[1:3] for row in result.table("question")] == [
        ["a", "no answer"], ["no answer", "no answer"]
    ]  # fmt: skip
    assert ("dir", "auto") in result.attributes


@pytest.mark.parametrize(
    "damage", [{"predicted_span": ["x", 1]}, {"reference_span": 5}, {"predicted_span": [1]}]
)
def test_damaged_questions_become_a_note(tmp_path, damage):
    result = page(tmp_path, [sample(1, **damage)])
    assert "the evaluation of test could not be drawn: " in result.words
    assert result.headings == ["Config"]
