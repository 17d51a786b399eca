"""The fit of the scaling ladder recovers the power law of synthetic losses."""

import numpy as np

from benchmarks.scaling_ladder import fit, plot


def test_fit_finds_the_law_that_made_the_numbers(tmp_path):
    parameters = np.array([5e4, 4e5, 1.3e6, 3e6])
    losses = 1.7 + (3e5 / parameters) ** 0.31
    floor, scale, exponent = fit(parameters, losses)
    assert abs(floor - 1.7) < 0.01
    assert abs(scale / 3e5 - 1) < 0.05
    assert abs(exponent - 0.31) < 0.01
    rows = [{"parameters": n, "val_loss": loss} for n, loss in zip(parameters, losses, strict=True)]
    plot(rows, (floor, scale, exponent), tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()
