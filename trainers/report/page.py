"""Writes the report of a run from its work directory; imports neither TensorFlow nor Keras."""

from collections.abc import Callable
from pathlib import Path

from trainers.report import answers, figures, sections
from trainers.report.read import Evaluation, read_run
from zoo.errors import short
from zoo.pages.render import write_page


def write_report(workdir: str | Path) -> Path:
    """Writes `WORKDIR/report.html` and returns its path.

    Raises:
      UsageError: if `workdir` has no config.json and is therefore not a work directory.
    """
    run = read_run(Path(workdir))
    path = Path(workdir) / "report.html"
    evaluations = run.evaluations
    splits = [_drawn(sections.classification, e, run.notes) for e in evaluations]
    questions = {e.split: _drawn(answers.question_table, e, run.notes) for e in evaluations}
    write_page(
        path,
        "trainers.report",
        "report.html",
        run=run,
        tiles=sections.tiles(run),
        evaluation=sections.evaluation_table(evaluations),
        curves=sections.curves(run.records),
        splits=[split for split in splits if split],
        questions={split: table for split, table in questions.items() if table},
        depths_by_loops={e.split: sections.depths_by_loops(e) for e in evaluations},
        translations={e.split: sections.translations(e) for e in evaluations},
        texts=sections.texts(run),
        events=sections.events(run),
        pairs=sections.pairs,
        png=figures.png,
    )
    return path


def _drawn(section: Callable, evaluation: Evaluation, notes: list[str]) -> dict | None:
    """Returns `section(evaluation)`; None, adding a note, for damaged files."""
    try:
        return section(evaluation)
    except Exception as error:  # NumPy and Pillow raise many types for arrays that are not images
        notes.append(f"the evaluation of {evaluation.split} could not be drawn: {short(error)}")
        return None
