"""zoo predict WORKDIR FILE ... [--checkpoint=final|best] [--json]: predictions for your own data.

The model of WORKDIR labels images or texts, answers questions, or chooses among texts. A file or a
row that cannot be read is named on stderr, the others are predicted, and the exit status is 1.

Images are converted to gray or RGB and resized to the input of the model. The digits of MNIST are
white on black: pass --invert for dark digits on light paper.

A file of texts is .txt (one text per line), .csv, .tsv, .jsonl or .parquet with the text columns of
the training data or --columns=a,b; - reads lines from standard input. The output is a table with
the texts, and the label and its probability, or the value if the model predicts numbers. Of any
number of labels, those with a probability above 0.5 are printed, separated by |.

A file of questions has the columns question and context. The output has up to five answers per
question, best first, each with its share in the probability of all answers and its place in the
context.

A decoder (task clm) chooses among continuations: --columns=prompt,a,b,c names the column of the
prompt and those of the choices. The output is the most likely choice, by log-likelihood per byte.
"""

import contextlib
import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainers.cli.common import FAILED, LOG, Flags, run
from zoo.data.text.labeled.labels import SEPARATOR
from zoo.errors import UsageError, short
from zoo.progress import progress
from zoo.storage.disk import atomic

_FLAGS = Flags()
_CHECKPOINT = _FLAGS.choice("checkpoint", "final", ["final", "best"], "Weights to load.")
_INVERT = _FLAGS.boolean("invert", False, "Invert the brightness of the images.")
_COLUMNS = _FLAGS.string("columns", None, "Text columns of the files, separated by commas.")
_OUT = _FLAGS.string("out", None, "Table to write, .csv or .tsv; default: TSV on stdout.")
_JSON = _FLAGS.boolean("json", False, "Print JSON.")


def command(argv) -> int:
    """Runs `zoo predict`; returns the exit status."""
    words, _ = _FLAGS.parse(argv, __doc__, at_least=2)
    from trainers.run.workdir import read_config

    task = read_config(words[0])["config"]["task"]["name"]
    by_task = {"text_classification": _predict_texts, "qa": _answer, "clm": _choose, "moe": _choose}
    predict = by_task.get(task, _predict_images)
    return predict(words[0], words[1:])


def _refuse_flags(flags: Iterable, unit: str) -> None:
    for flag in flags:
        if flag.present:
            raise UsageError(f"--{flag.name} is not supported for a model of {unit}.")


def _predict_images(workdir: str, files: list[str]) -> int:
    """Prints one line per image: file, label, probability."""
    from trainers.evaluation.predict import predict_images

    _refuse_flags((_COLUMNS, _OUT), "images")
    rows, errors = predict_images(
        workdir, files, checkpoint=_CHECKPOINT.value, invert=_INVERT.value
    )
    if _JSON.value:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(f"{row['file']}\t{row['label']}\t{row['probability']:.4f}")
    for error in errors:
        LOG.error(f"error: {error}")
    return FAILED if errors else 0


def _predict_texts(workdir: str, files: list[str]) -> int:
    """Writes one row per text or pair of texts: texts, label, probability."""
    from trainers.evaluation.predict_texts import TextPredictor

    _refuse_flags((_INVERT,), "texts")
    columns, out, refuse = _columns(), _out(), _Refusals()
    predictor = TextPredictor(workdir, columns, _CHECKPOINT.value)
    rows = predictor(files, refuse)
    outputs = (
        (
            [[*texts, *map(_cell, values)]],
            {"texts": texts, **dict(zip(predictor.fields, values, strict=True))},
        )
        for texts, values in rows
    )
    _write(out, [*predictor.columns, *predictor.fields], outputs, "texts")
    return refuse.status


def _answer(workdir: str, files: list[str]) -> int:
    """Writes the best answers to each question."""
    from trainers.evaluation.answer import Answerer
    from trainers.evaluation.predict_texts import chunks, read_rows
    from zoo.saved.workdir import model_path

    _refuse_flags((_INVERT, _COLUMNS), "questions")
    out, refuse = _out(), _Refusals()
    model_path(workdir, _CHECKPOINT.value)
    rows = read_rows(files, ("question", "context"), refuse)
    keys = ("text", "score", "start", "end")

    def outputs():
        answerer = None
        for pairs in chunks(rows):
            answerer = answerer or Answerer(workdir, _CHECKPOINT.value)
            for (question, _), answers in zip(pairs, answerer.answer_all(pairs), strict=True):
                lines = [[question, *(_cell(row[key]) for key in keys)] for row in answers]
                yield lines, {"question": question, "answers": answers}

    _write(out, ["question", "answer", "score", "start", "end"], outputs(), "questions")
    return refuse.status


def _choose(workdir: str, files: list[str]) -> int:
    """Writes the most likely choice after each prompt."""
    from trainers.evaluation.choose import Chooser
    from trainers.evaluation.predict_texts import read_rows

    _refuse_flags((_INVERT,), "texts")
    columns, out, refuse = _columns(), _out(), _Refusals()
    if not len(set(columns)) == len(columns) >= 3:
        raise UsageError(
            "A decoder chooses among texts: --columns must name the column of the prompt and at "
            f"least two columns of choices. Received: {_COLUMNS.value or 'none'}."
        )
    choose = Chooser(workdir, _CHECKPOINT.value)

    def outputs():
        for prompt, *choices in read_rows(files, columns, refuse):
            try:
                choice, share = choose(prompt, choices)
            except UsageError as error:
                refuse(f"{short(prompt)}: {error}")
                continue
            values = {"prompt": prompt, "choice": choice, "probability": share}
            yield [list(map(_cell, values.values()))], values

    _write(out, ["prompt", "choice", "probability"], outputs(), "prompts")
    return refuse.status


class _Refusals:
    """Logs errors; the exit status is 1 after the first one."""

    status = 0

    def __call__(self, error) -> None:
        self.status = FAILED
        LOG.error(f"error: {error}")


def _columns() -> list[str]:
    return [name.strip() for name in (_COLUMNS.value or "").split(",") if name.strip()]


def _out() -> Path | None:
    """Returns the path of the table to write, None for stdout; raises `UsageError`."""
    out = Path(_OUT.value) if _OUT.value is not None else None
    if out and (out.suffix not in (".csv", ".tsv") or out.is_dir() or not out.parent.is_dir()):
        raise UsageError(f"--out must be a .csv or .tsv file in a folder that exists: {out}.")
    if out and _JSON.value:
        raise UsageError("--json prints: set --json or --out, not both.")
    return out


def _write(out: Path | None, head: list[str], rows: Iterable[tuple], unit: str) -> None:
    """Writes predictions one by one, so that memory is bounded.

    Args:
      out: result of `_out`.
      head: names of the columns of the table.
      rows: the lines of the table and the JSON object of each prediction.
      unit: plural noun for the progress.
    """
    if out or not sys.stdout.isatty():  # a bar among printed rows would be unreadable
        rows = progress(rows, title="predict", unit=unit)
    if _JSON.value:
        _print_json(row for _, row in rows)
        return
    with atomic(out, "w") if out else contextlib.nullcontext(sys.stdout) as file:
        delimiter = "," if out and out.suffix == ".csv" else "\t"
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow(head)
        for lines, _ in rows:
            writer.writerows(lines)


def _cell(value) -> str | int | None:
    if isinstance(value, list):
        return SEPARATOR.join(map(_cell, value))
    return f"{value:.4f}" if isinstance(value, float) else value


def _print_json(rows: Iterator[dict]) -> None:
    """Prints a JSON list."""
    separator = "["
    for row in rows:
        print(f"{separator}\n  {json.dumps(row, ensure_ascii=False)}", end="")
        separator = ","
    print("[]" if separator == "[" else "\n]")


if __name__ == "__main__":
    sys.exit(run(command))
