"""Work directories open in a new process without imports of their layers, with equal outputs."""

import functools
import subprocess
import sys

import numpy as np
import pytest

from tests.contract import TinyModel, rows
from tests.trainers.cli.test_cli_generate import work_directory
from trainers.optimization.precision import precision
from zoo import registry
from zoo.catalog import CATALOG

# Writes the outputs of the models of some folders. Only `zoo` is imported before the models
# are loaded.
SCRIPT = """
import sys, zoo
models = [zoo.load(folder) for folder in sys.argv[1:]]
from tests.zoo.saved.test_load import write_outputs
for folder, model in zip(sys.argv[1:], models):
    write_outputs(folder, model, "outputs")
"""


@functools.lru_cache(1)  # the folders of a row follow each other
def tiny_model(name):
    return TinyModel(registry.entry(name))


def write_outputs(folder, model, name):
    row_name = str(folder).rpartition("/")[2].rpartition("-")[0]
    outputs = tiny_model(row_name).outputs(model)
    np.savez(f"{folder}/{name}.npz", *(np.asarray(x, "float32") for x in outputs))


@pytest.mark.slow
def test_every_family_opens_in_another_process(tmp_path):
    """In float32 and in mixed precision."""
    folders = []
    for family in sorted({row.family for row in CATALOG}):
        row = next(row for row in rows(family) if row.tiny)
        for name in ("float32", "mixed_bfloat16"):
            with precision(name):
                model = registry.build(row.name, **row.tiny)
            folder = work_directory(tmp_path / f"{row.name}-{name}", model, None, row.task)
            write_outputs(folder, model, "expected")
            folders.append(folder)
    command = [sys.executable, "-c", SCRIPT, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for folder in folders:
        with np.load(folder / "expected.npz") as a, np.load(folder / "outputs.npz") as b:
            assert a.files == b.files
            for name in a.files:
                np.testing.assert_array_equal(a[name], b[name], err_msg=str(folder))
