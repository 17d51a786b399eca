"""Every model of the catalog keeps every promise of tests/contract.py. There is no skip list."""

import functools
import json
import subprocess
import sys

import pytest

from tests.contract import promises, rows
from zoo.catalog import CATALOG

FAMILIES = sorted({row.family for row in CATALOG})


@functools.cache
def kept(family: str) -> dict[str, str]:
    """Runs a family's promises in a process of their own, once."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.contract", family], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "promise"),
    [
        (row.name, promise)
        for family in FAMILIES
        for row in rows(family)
        for promise in promises(row)
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_promise(name, promise):
    family = next(row.family for row in CATALOG if row.name == name)
    assert not kept(family)[f"{name}/{promise.__name__}"]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_a_tiny_variant(family):
    assert any(row.tiny for row in rows(family))
