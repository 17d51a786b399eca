"""A gpt with the forms of attention keeps the promises of tests/contract.py."""

import pytest

from tests.contract import PROMISES, TinyModel, has_the_parameters_it_says, rows
from zoo import registry
from zoo.models import gpt

TINY = next(row.tiny for row in rows("gpt") if row.tiny)
registry.register(
    "toy_forms", gpt.build, "clm", tiny={**TINY, "attention": "chunked:5,window:4", "dropout": 0.1}
)


@pytest.fixture(scope="module")
def tiny(devices, tmp_path_factory):
    return TinyModel(registry.entry("toy_forms"), tmp_path_factory.mktemp("forms"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "promise",
    [promise for promise in PROMISES if promise is not has_the_parameters_it_says],
    ids=lambda promise: promise.__name__,
)
def test_promise(tiny, promise, cache, collected):
    promise(tiny)
