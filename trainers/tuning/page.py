"""HTML pages of `zoo tune`."""

from pathlib import Path

from trainers.report import figures
from trainers.tuning.rate import RateTest
from zoo.formatting import number
from zoo.pages.render import write_page
from zoo.tasks.directions import better


def write_rate_page(result: RateTest, path: Path, source: str) -> None:
    """Writes the page of a range test."""
    drawing = figures.range_test(result.rates, result.losses, result.averages, "range test")
    tiles = [
        ("suggested learning rate", f"{result.suggested:.2g}", "peak of the schedule"),
        ("steepest fall", f"{result.steepest:.2g}", "of the averaged loss"),
        ("lowest loss", f"{result.lowest:.2g}", "a tenth of it is the usual peak"),
    ]
    write_page(
        path, "trainers.tuning", "rate.html", source=source, tiles=tiles, drawing=drawing,
        diverged=result.diverged,
    )  # fmt: skip


def write_sweep_page(sweep, path: Path) -> None:
    """Writes the page of a `trainers.tuning.sweep.Sweep`."""
    outcomes = sweep.outcomes()
    complete = [trial for trial in outcomes if trial.state == "complete"]
    best = sweep.best() if complete else None
    sign = 1 if sweep.direction == "maximize" else -1
    ranked = sorted(
        outcomes, key=lambda t: (t.state != "complete", -sign * (t.value or 0), t.number)
    )
    keys = [item.key for item in sweep.ranges]
    rows = [
        [
            str(trial.number),
            trial.state,
            "–" if trial.value is None else number(trial.value),
            *(_shown(trial.overrides.get(key, "–")) for key in keys),
        ]
        for trial in ranked
    ]
    states = ", ".join(
        f"{count} {state}" for state in dict.fromkeys(t.state for t in outcomes)
        if (count := sum(t.state == state for t in outcomes))
    )  # fmt: skip
    tiles = [
        (
            f"best {sweep.metric}",
            number(best.value) if best else "–",
            f"{better(sweep.metric)} is better",
        ),
        ("trials", str(len(outcomes)), states),
    ]
    lines = [(list(t.curve), list(t.curve.values())) for t in ranked if t.curve]
    write_page(
        path, "trainers.tuning", "sweep.html", sweep=sweep, best=best, tiles=tiles,
        head=["trial", "state", sweep.metric, *keys], rows=rows,
        coordinates=figures.parallel(*_coordinates(sweep, complete), "parallel coordinates")
        if len(complete) > 1 else None,
        importance=_importance(sweep, complete),
        curves=figures.overlay(lines, "step", "trials") if lines else None,
    )  # fmt: skip


def _shown(text: str) -> str:
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text


def _coordinates(sweep, complete) -> tuple[list[str], list[list[float]], list[list[str]]]:
    """Returns the names of the axes, the values of each trial, and the ticks of axes of choices."""
    names, ticks = [item.key for item in sweep.ranges] + [sweep.metric], []
    for item in sweep.ranges:
        ticks.append(list(item.choices))
    rows = []
    for trial in sorted(complete, key=lambda t: t.value, reverse=sweep.direction == "minimize"):
        row = [
            float(item.choices.index(trial.overrides[item.key])) if item.choices
            else float(trial.overrides[item.key])
            for item in sweep.ranges
        ]  # fmt: skip
        rows.append([*row, trial.value])
    logarithmic = [item.kind == "log" for item in sweep.ranges] + [False]
    return names, rows, [*ticks, []], logarithmic


def _importance(sweep, complete) -> str | None:
    """Draws the share of the variance that each key explains (fANOVA); None for few trials."""
    if len(complete) < 4 or len({trial.value for trial in complete}) == 1:
        return None
    import optuna

    values = optuna.importance.get_param_importances(sweep.study)
    return figures.bars(dict(values), "importance", line=None)
