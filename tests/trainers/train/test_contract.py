"""Every model of the catalog keeps every promise of tests/contract.py, without a skip list."""

import functools

import pytest

from tests.contract import TinyModel, promises, rows
from zoo import registry
from zoo.catalog import CATALOG

FAMILIES = sorted({row.family for row in CATALOG})


@pytest.fixture(scope="module")
def tiny(devices, tmp_path_factory):
    """Returns `tiny(name) -> TinyModel`, whose runs the promises of a model share.

    A fixture with the name as its indirect parameter would be made anew for each test: beside a
    direct parameter, pytest gives it the scope of a function.
    """

    @functools.lru_cache(1)  # the tests of a model follow each other
    def tiny_model(name):
        return TinyModel(registry.entry(name), tmp_path_factory.mktemp(name))

    return tiny_model


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
def test_promise(tiny, name, promise, cache, collected):
    promise(tiny(name))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_has_a_tiny_variant(family):
    assert any(row.tiny for row in rows(family))
