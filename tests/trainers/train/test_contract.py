"""Every model of the catalog keeps every promise of tests/contract.py, without a skip list."""

import pytest

from tests.contract import TinyModel, promises, rows
from zoo import registry
from zoo.catalog import CATALOG

FAMILIES = sorted({row.family for row in CATALOG})


@pytest.fixture(scope="module")
def tiny(devices, request, tmp_path_factory):
    return TinyModel(registry.entry(request.param), tmp_path_factory.mktemp(request.param))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tiny", "promise"),
    [
        (row.name, promise)
        for family in FAMILIES
        for row in rows(family)
        for promise in promises(row)
    ],
    ids=lambda value: getattr(value, "__name__", value),
    indirect=["tiny"],
)
def test_promise(tiny, promise, cache, collected):
    promise(tiny)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_a_tiny_variant(family):
    assert any(row.tiny for row in rows(family))
