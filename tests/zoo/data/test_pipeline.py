"""The order of the data is a function of (seed, epoch, index)."""

import itertools

import numpy as np
import pytest

from zoo.data import pipeline
from zoo.data import rows as stored_rows
from zoo.data.hold_out import hold_out


def batches(
    replicas=1, first=0, last=10, seed=0, size=16, examples=70, prepare=None, local=None,
    lengths=None,
):  # fmt: skip
    arrays = {"number": np.arange(examples)}
    batches = pipeline.training_batches(
        arrays, prepare or (lambda batch, uniform, training: batch), batch_size=size,
        replicas=replicas, seed=seed, first_step=first, last_step=last, local_replicas=local,
        lengths=lengths,
    )  # fmt: skip
    return [{k: v.numpy() for k, v in batch.items()} for batch in batches]


def rows(batches):
    return np.concatenate([b["number"][b["weight"] > 0] for b in batches])


@pytest.mark.parametrize("examples", [1, 2, 70, 1000])
def test_every_epoch_is_another_permutation(examples):
    places = np.arange(examples)
    orders = [pipeline.epoch_order(places, epoch, 3, examples).numpy() for epoch in range(3)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), places)
    if examples > 10:
        assert (orders[0] != orders[1]).any()
        assert (orders[1] != orders[2]).any()
        other_seed = pipeline.epoch_order(places, 0, 4, examples).numpy()
        assert (orders[0] != other_seed).any()


def test_an_epoch_sees_every_example_once_and_pads_its_last_batch():
    epoch = batches(last=5)
    np.testing.assert_array_equal(np.sort(rows(epoch)), np.arange(70))
    assert [int(b["weight"].sum()) for b in epoch] == [16, 16, 16, 16, 6]
    assert all(b["number"].shape == (16,) for b in epoch)


def test_resume_continues_the_same_order():
    whole = batches()
    for first in (1, 5, 7):
        for a, b in zip(whole[first:], batches(first=first), strict=True):
            np.testing.assert_array_equal(a["number"], b["number"])


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_share_the_batch_of_one(replicas):
    """Rows and their augmentation do not depend on the number of replicas and workers."""

    def prepare(batch, uniform, training):
        return {**batch, "random": uniform(3)}

    whole, shares = batches(prepare=prepare), batches(replicas, prepare=prepare)
    assert len(shares) == 10 * replicas
    for step, batch in enumerate(whole):
        parts = shares[step * replicas : (step + 1) * replicas]
        for key in ("number", "weight", "random"):
            joined = np.concatenate([part[key] for part in parts])
            np.testing.assert_array_equal(batch[key], joined)
    assert (whole[0]["random"] != whole[1]["random"]).all()


def _of_workers(whole, replicas, mine):
    """Selects the elements of one worker."""
    return [element for i, element in enumerate(whole) if i % replicas in mine]


@pytest.mark.parametrize("mine", [range(1), range(2, 3), range(2, 4)])
def test_a_worker_reads_its_replicas_shares(mine):
    def prepare(batch, uniform, training):
        return {**batch, "random": uniform(3)}

    def evaluation(**arguments):
        batches = pipeline.evaluation_batches(
            {"number": np.arange(70)}, prepare, batch_size=16, replicas=4, **arguments
        )
        return [{k: v.numpy() for k, v in batch.items()} for batch in batches]

    for whole, shares in (
        (batches(4, prepare=prepare), batches(4, prepare=prepare, local=mine)),
        (batches(4, prepare=prepare)[12:], batches(4, first=3, prepare=prepare, local=mine)),
        (evaluation(), evaluation(local_replicas=mine)),
    ):
        for one, other in zip(_of_workers(whole, 4, mine), shares, strict=True):
            for key in ("number", "weight", "random"):
                np.testing.assert_array_equal(one[key], other[key])


def test_grouped_batches_have_examples_of_similar_length(monkeypatch):
    monkeypatch.setattr(pipeline, "GROUPED_BATCHES", 3)
    lengths = np.random.default_rng(0).permutation(70)
    grouped = batches(lengths=lengths)
    orders = []
    for epoch in (grouped[:5], grouped[5:]):
        np.testing.assert_array_equal(np.sort(rows(epoch)), np.arange(70))
        orders.append([])
        for group in (epoch[:3], epoch[3:]):
            # All of a batch are shorter than all of the next longer one.
            by_length = sorted((lengths[rows([b])] for b in group), key=min)
            assert all(a.max() < b.min() for a, b in itertools.pairwise(by_length))
            orders[-1] += [lengths[rows([b])].max() for b in group]
        assert len(by_length[-1]) == 6  # padding is in the batch of the longest examples
    assert any(order[:3] != sorted(order[:3]) for order in orders)  # batches are shuffled
    assert orders[0] != orders[1]


def test_grouped_batches_do_not_depend_on_replicas_and_resumes():
    lengths = np.random.default_rng(0).integers(1, 50, 70)
    whole = batches(lengths=lengths)
    for first in (1, 7):
        for a, b in zip(whole[first:], batches(first=first, lengths=lengths), strict=True):
            np.testing.assert_array_equal(a["number"], b["number"])
    shares = batches(4, lengths=lengths)
    for step, batch in enumerate(whole):
        parts = shares[4 * step : 4 * step + 4]
        np.testing.assert_array_equal(batch["number"], np.concatenate([p["number"] for p in parts]))
        np.testing.assert_array_equal(batch["weight"], np.concatenate([p["weight"] for p in parts]))


def test_evaluation_reads_all_in_order_and_pads():
    def prepare(batch, uniform, training):
        assert not training
        return {**batch, "random": uniform(3)}

    def read(replicas):
        arrays = {"number": np.arange(21)}
        batches = pipeline.evaluation_batches(arrays, prepare, batch_size=8, replicas=replicas)
        return [{k: v.numpy() for k, v in batch.items()} for batch in batches]

    first, again = read(2), read(1)
    assert (len(first), len(again)) == (6, 3)
    np.testing.assert_array_equal(rows(first), np.arange(21))
    # The random numbers of an example are equal in every evaluation and for any number of replicas.
    for key in ("number", "random"):
        one, two = (np.concatenate([batch[key] for batch in epoch]) for epoch in (first, again))
        np.testing.assert_array_equal(one, two)


def test_what_an_evaluation_draws_does_not_depend_on_its_batches():
    arrays = {"number": np.arange(21)}

    def random_numbers(size):
        def prepare(batch, uniform, training):
            return {**batch, "random": uniform(3), "more": uniform(2)}

        batches = pipeline.evaluation_batches(arrays, prepare, batch_size=size, replicas=1)
        return {k: np.concatenate([b[k] for b in batches])[:21] for k in ("random", "more")}

    one, other = random_numbers(4), random_numbers(16)
    for key in one:
        np.testing.assert_array_equal(one[key], other[key])
    assert len(np.unique(one["random"])) == 63


@pytest.mark.parametrize("training", [True, False])
def test_no_two_draws_are_the_same(training):
    def prepare(batch, uniform, training):
        return {**batch, "one": uniform(4), "two": uniform(4)}

    arrays = {"number": np.arange(8)}
    if training:
        (batch,) = batches(last=1, size=8, examples=8, prepare=prepare)
    else:
        (batch,) = pipeline.evaluation_batches(arrays, prepare, batch_size=8, replicas=1)
    assert not set(np.ravel(batch["one"])) & set(np.ravel(batch["two"]))


def test_holding_out_leaves_on_the_disk_what_is_large(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.arange(300).reshape(100, 3))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    plain, out = hold_out({"image": mapped, "number": np.arange(100)}, 10)
    monkeypatch.setattr(stored_rows, "MAX_IN_MEMORY", 1000)
    train, validation = hold_out({"image": mapped, "number": np.arange(100)}, 10)
    for some, same in ((train, plain), (validation, out)):
        assert isinstance(some["image"], stored_rows.SelectedRows)
        assert (some["image"].shape, some["image"].dtype) == (same["image"].shape, mapped.dtype)
        np.testing.assert_array_equal(some["image"], same["image"])
        np.testing.assert_array_equal(some["image"][np.array([3, 1])], same["image"][[3, 1]])
        batches = pipeline.evaluation_batches(
            some, lambda batch, *_: batch, batch_size=7, replicas=1
        )  # fmt: skip
        read = np.concatenate([b["image"] for b in batches])[: len(some["image"])]
        np.testing.assert_array_equal(read, same["image"])


def test_held_out_examples_are_the_same_in_every_run_and_not_trained_on():
    arrays = {"number": np.arange(100)}
    train, validation = hold_out(arrays, 10)
    again, same = hold_out(arrays, 10)
    np.testing.assert_array_equal(validation["number"], same["number"])
    assert len(train["number"]) == 90
    assert not set(train["number"]) & set(validation["number"])
    assert hold_out(arrays, 0) == (arrays, None)


def test_affine_changes_move_as_they_say():
    """A shift moves a bright pixel by whole pixels; limits of 0 are the identity."""
    from zoo.data.arrays.affine import random_affine

    image = np.zeros((2, 9, 9, 1), np.float32)
    image[:, 4, 4] = 1
    none = {"rotation": 0.0, "shift": 0.0, "zoom": 0.0, "shear": 0.0}

    def change(numbers, **limits):
        rows = np.tile(np.float32(numbers), (2, 1))
        return random_affine(image, lambda count: rows, **{**none, **limits}).numpy()

    np.testing.assert_allclose(change([0.9] * 6), image, atol=1e-6)
    # The last two numbers shift: 0.75 reads from 2 pixels right and below.
    shifted = change([0.5, 0.5, 0.5, 0.5, 0.75, 0.75], shift=4.0)
    assert shifted[0, 2, 2, 0] == pytest.approx(1.0)
    # Rotation, shear and zoom keep the center.
    turned = change([0.9, 0.8, 0.7, 0.2, 0.5, 0.5], rotation=40.0, shear=20.0, zoom=0.2)
    assert turned[0, 4, 4, 0] == pytest.approx(1.0, abs=1e-3)
    image = np.zeros((2, 9, 9, 1), np.float32)
    image[:, 4, 7] = 1
    turned = change([1.0, 0.5, 0.5, 0.5, 0.5, 0.5], rotation=90.0)
    assert turned[0].sum() == pytest.approx(1.0, abs=1e-3)
    assert turned[0, 1, 4, 0] + turned[0, 7, 4, 0] == pytest.approx(1.0, abs=1e-3)
