"""zoo compare WORKDIR WORKDIR ... [--html=FILE] [--json]: runs side by side.

Prints the metrics, sizes and times of the runs, and the keys of their recipes that differ. --html
also writes the curves of all runs into one page. The command also works during training.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from trainers.cli.common import LOG, Flags, run, writes_files
from trainers.report.comparison import as_json, compare_runs, table_rows, write_comparison

_FLAGS = Flags()
_HTML = _FLAGS.string("html", None, "HTML page to write, with the curves of all runs.")
_JSON = _FLAGS.boolean("json", False, "Print JSON.")
_WIDEST = 44  # characters of a cell in the terminal


@writes_files
def command(argv: Sequence[str]) -> int:
    """Runs `zoo compare`; returns the exit status."""
    words, _ = _FLAGS.parse(argv, __doc__, at_least=2)
    comparison = compare_runs(words)
    if _HTML.value:
        write_comparison(comparison, Path(_HTML.value))
    if _JSON.value:
        print(json.dumps(as_json(comparison), indent=2))
        return 0
    print(_text([run.name for run in comparison.runs], table_rows(comparison)))
    for note in comparison.notes:
        LOG.warning(note)
    if _HTML.value:
        print(f"page: {_HTML.value}")
    return 0


def _text(names: list[str], tables: dict[str, list[list[str]]]) -> str:
    """Returns the tables as text with columns of equal width."""
    rows = [["", *names], *(row for table in tables.values() for row in table)]
    rows = [[row[0], *map(_shortened, row[1:])] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    text, start = [lines[0]], 1
    for title, table in tables.items():
        text += ["", title, *lines[start : start + len(table)]]
        start += len(table)
    return "\n".join(text)


def _shortened(cell: str) -> str:
    return cell if len(cell) <= _WIDEST else f"{cell[: _WIDEST - 1]}…"


if __name__ == "__main__":
    sys.exit(run(command))
