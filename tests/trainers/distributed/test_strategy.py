"""Strategies by name, and the selection by `auto`."""

import pytest
import tensorflow as tf

from tests import toys
from trainers.distributed.strategy import local_replicas, make_strategy
from zoo.errors import UsageError


def test_auto_without_gpus(capsys, run):
    trainer = run(toys.recipe(strategy="auto", steps=1), toys.token_data())
    assert trainer.strategy is tf.distribute.get_strategy()
    lines = [line for line in capsys.readouterr().err.splitlines() if "strategy" in line]
    assert lines == ["zoo: strategy one_device, for no GPU(s)"]


def test_auto_takes_the_replicas_that_are_asked_for(collected):
    strategy = make_strategy("auto", 2)
    assert isinstance(strategy, tf.distribute.MirroredStrategy)
    assert local_replicas(strategy) == range(2)


@pytest.mark.parametrize(("gpus", "name"), [(0, "one_device"), (1, "one_device"), (2, "mirrored")])
def test_auto_by_what_is_there(gpus, name, monkeypatch, capsys):
    from trainers.distributed import strategy

    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind] * gpus)
    assert strategy._choose(0) == name
    assert strategy._choose(1) == "one_device"
    assert f"for {gpus or 'no'} GPU(s)" in capsys.readouterr().err


def test_several_workers_take_no_part_of_a_machine():
    from trainers.distributed.cluster import Cluster

    cluster = Cluster(("a:1", "b:2"), 0)
    with pytest.raises(UsageError, match="multi_worker requires trainer.replicas=0.* Received: 2"):
        make_strategy("multi_worker", 2, cluster)
    with pytest.raises(UsageError, match="only supported by `zoo train` and `Trainer`"):
        make_strategy("multi_worker")
    tf.constant(0)  # initializes TensorFlow
    with pytest.raises(UsageError, match="start a new process"):
        make_strategy("multi_worker", 0, cluster)
