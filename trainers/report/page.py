"""Writes the report of a run from its work directory; imports neither TensorFlow nor Keras."""

from pathlib import Path

from trainers.report import figures, sections
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
    splits = [_classification(evaluation, run.notes) for evaluation in run.evaluations]
    write_page(
        path,
        "trainers.report",
        "report.html",
        run=run,
        tiles=sections.tiles(run),
        evaluation=sections.evaluation_table(run.evaluations),
        curves=sections.curves(run.records),
        splits=[split for split in splits if split],
        translations={e.split: sections.translations(e) for e in run.evaluations},
        texts=sections.texts(run),
        events=sections.events(run),
        pairs=sections.pairs,
        png=figures.png,
    )
    return path


def _classification(evaluation: Evaluation, notes: list[str]) -> dict | None:
    try:
        return sections.classification(evaluation)
    except Exception as error:  # NumPy and Pillow raise many types for arrays that are not images
        notes.append(f"the evaluation of {evaluation.split} could not be drawn: {short(error)}")
        return None
