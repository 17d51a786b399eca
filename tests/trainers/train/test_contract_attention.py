"""A gpt with the forms of attention keeps the promises of tests/contract.py."""

import pytest

from tests import toys
from tests.contract import PROMISES, TinyModel, has_the_parameters_it_says, rows
from zoo import registry
from zoo.models import gpt

TINY = next(row.tiny for row in rows("gpt") if row.tiny)
# LSH sees all pairs, because a chunk is longer than the sequence: hash functions differ by replica.
FORMS = "chunked:5,window:4,lsh:2:16"
registry.register("toy_forms", gpt.build, "clm", tiny={**TINY, "num_layers": 3, "attention": FORMS})


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


@pytest.mark.slow
def test_recomputed_blocks_use_the_same_dropout_masks(tiny, cache, collected):
    """Also in gradients that are written by hand."""
    nets = []
    for remat in ("", "block_.*"):
        config = tiny.recipe(remat=remat)
        config.model.dropout = 0.5
        nets.append(tiny.train(f"dropout{remat and '_remat'}", config).step.net)
    assert toys.difference(*nets) <= 1e-6
    assert toys.difference(nets[0], tiny.plain.step.net) > 1e-3
