"""zoo predict WORKDIR FILE ... [--checkpoint=final|best] [--json]: labels of your own data.

The model of WORKDIR labels images or texts, whatever it was trained on. A file or a row that cannot
be read is named on stderr, the others are predicted, and the exit status is 1.

Images are converted to gray or RGB and resized to the input of the model. The digits of MNIST are
white on black: pass --invert for dark digits on light paper.

A file of texts is .txt (one text per line), .csv, .tsv, .jsonl or .parquet with the text columns of
the training data or --columns=a,b; - reads lines from standard input. The output is a table with
the texts, and the label and its probability, or the value if the model predicts numbers. Of any
number of labels, those with a probability above 0.5 are printed, separated by |.
"""

import contextlib
import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from trainers.cli.common import FAILED, LOG, Flags, run
from zoo.data.text.labeled.labels import SEPARATOR
from zoo.errors import UsageError
from zoo.progress import progress
from zoo.storage.disk import atomic

_FLAGS = Flags()
_CHECKPOINT = _FLAGS.choice("checkpoint", "final", ["final", "best"], "Weights to load.")
_INVERT = _FLAGS.boolean("invert", False, "Invert the brightness of the images.")
_COLUMNS = _FLAGS.string("columns", None, "Text columns of the files, separated by commas.")
_OUT = _FLAGS.string("out", None, "Table of texts to write, .csv or .tsv; default: TSV on stdout.")
_JSON = _FLAGS.boolean("json", False, "Print JSON.")


def command(argv) -> int:
    """Runs `zoo predict`; returns the exit status."""
    words, _ = _FLAGS.parse(argv, __doc__, at_least=2)
    from trainers.run.workdir import read_config

    is_of_texts = read_config(words[0])["config"]["task"]["name"] == "text_classification"
    return (_predict_texts if is_of_texts else _predict_images)(words[0], words[1:])


def _refuse_flags(flags, kind: str) -> None:
    for flag in flags:
        if flag.present:
            raise UsageError(f"The model labels {kind}: --{flag.name} is not supported.")


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
    out = Path(_OUT.value) if _OUT.value is not None else None
    if out and (out.suffix not in (".csv", ".tsv") or out.is_dir() or not out.parent.is_dir()):
        raise UsageError(f"--out must be a .csv or .tsv file in a folder that exists: {out}.")
    if out and _JSON.value:
        raise UsageError("--json prints: set --json or --out, not both.")
    columns = [name.strip() for name in (_COLUMNS.value or "").split(",") if name.strip()]
    predictor = TextPredictor(workdir, columns, _CHECKPOINT.value)
    status = 0

    def refuse(error):
        nonlocal status
        status = FAILED
        LOG.error(f"error: {error}")

    rows = predictor(files, refuse)
    if out or not sys.stdout.isatty():  # a bar among printed rows would be unreadable
        rows = progress(rows, title="predict", unit="texts")
    if _JSON.value:
        _print_json(predictor, rows)
    else:
        with atomic(out, "w") if out else contextlib.nullcontext(sys.stdout) as file:
            _write_table(predictor, rows, file, "," if out and out.suffix == ".csv" else "\t")
    return status


def _write_table(predictor, rows: Iterable, file, delimiter: str) -> None:
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerow([*predictor.columns, *predictor.fields])
    for texts, values in rows:
        writer.writerow([*texts, *map(_cell, values)])


def _cell(value) -> str:
    if isinstance(value, list):
        return SEPARATOR.join(map(_cell, value))
    return value if isinstance(value, str) else f"{value:.4f}"


def _print_json(predictor, rows: Iterable) -> None:
    """Prints a JSON list row by row, so that memory is bounded."""
    separator = "["
    for texts, values in rows:
        row = {"texts": texts, **dict(zip(predictor.fields, values, strict=True))}
        print(f"{separator}\n  {json.dumps(row, ensure_ascii=False)}", end="")
        separator = ","
    print("[]" if separator == "[" else "\n]")


if __name__ == "__main__":
    sys.exit(run(command))
