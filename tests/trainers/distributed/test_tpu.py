"""Strategy tpu without a TPU: CPU devices replace the cores."""

import numpy as np
import pytest
import tensorflow as tf

from tests import toys
from trainers.bench import bench
from trainers.distributed import strategy as strategies
from trainers.distributed import tpu
from trainers.distributed.strategy import distribute, make_strategy
from trainers.train.build import build_step
from zoo.data import pipeline, rows
from zoo.errors import RunError, UsageError


class Cores(tf.distribute.MirroredStrategy):
    """Two CPU devices under the name of TPUStrategy."""

    def __init__(self, resolver):
        names = [device.name for device in tf.config.list_logical_devices("CPU")[:2]]
        super().__init__(names, cross_device_ops=tf.distribute.ReductionToOneDevice())
        self.extended.num_hosts = resolver.hosts


class Resolver:
    hosts = 1

    def __init__(self, tpu):
        self.name = tpu


@pytest.fixture
def cores(monkeypatch, collected):
    """Returns a list of the calls that connect to a TPU, in order."""
    called = []

    def resolver(tpu):
        called.append(f"resolver {tpu}")
        return Resolver(tpu)

    monkeypatch.setattr(tf.distribute.cluster_resolver, "TPUClusterResolver", resolver)
    monkeypatch.setattr(
        tf.config, "experimental_connect_to_cluster", lambda r: called.append("connect")
    )
    monkeypatch.setattr(
        tf.tpu.experimental, "initialize_tpu_system", lambda r: called.append("initialize")
    )
    monkeypatch.setattr(tf.distribute, "TPUStrategy", Cores)
    return called


def recipe(strategy, **trainer):
    return toys.recipe(
        **{
            "model_arguments": {"dropout": 0.3}, "steps": 5, "micro_batch_size": 2, "ema": 0.9,
            "steps_per_execution": 3, "precision": "mixed_bfloat16", "strategy": strategy,
            **trainer,
        }
    )  # fmt: skip


def test_trains_as_mirrored_does(cores, run):
    right = run(recipe("mirrored", replicas=2), toys.token_data())
    trainer = run(recipe("tpu"), toys.token_data(), tpu_name="pod")
    assert cores == ["resolver pod", "connect", "initialize"]
    assert isinstance(trainer.strategy, Cores)
    assert toys.difference(trainer.step.net, right.step.net) == 0


@pytest.mark.slow
def test_bench_runs_on_it(cores):
    config = toys.recipe("cnn_classifier", "image_classification", strategy="tpu")
    config.model.update({"num_classes": 10, "filters": (4, 4, 4)})
    result = bench(config, 0.1)
    assert cores == ["resolver local", "connect", "initialize"]
    assert 0 < result.share < 1
    config.trainer.jit_compile = True
    with pytest.raises(UsageError, match="tpu requires trainer.jit_compile=False"):
        bench(config, 0.1)


def test_auto_selects_tpu(cores, monkeypatch, capsys):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    assert isinstance(make_strategy("auto"), Cores)
    assert cores[0] == "resolver local"
    assert "zoo: strategy tpu, for the TPU of this machine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"precision": "mixed_float16"}, "does not support float16"),
        ({"jit_compile": True}, "tpu requires trainer.jit_compile=False"),
        ({"deterministic": True}, "does not support trainer.deterministic"),
        ({"replicas": 2}, "Strategy tpu requires trainer.replicas=0"),
        ({"global_batch_size": 7, "micro_batch_size": 0}, "7 for 2 replicas"),
    ],
)
def test_what_a_tpu_cannot_do_is_refused(cores, run, trainer, message, tmp_path, monkeypatch):
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)
    with pytest.raises(UsageError, match=message):
        run(recipe("tpu", **trainer), toys.token_data(), workdir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("hosts", [1, 2])
def test_hosts_of_a_pod_make_their_batches_without_python(cores, hosts, monkeypatch):
    monkeypatch.setattr(Resolver, "hosts", hosts)
    strategy, arrays = make_strategy("tpu"), toys.token_data().splits["train"]
    tpu.check(recipe("tpu"), strategy, arrays)
    monkeypatch.setattr(rows, "MAX_IN_MEMORY", 10)
    if hosts == 1:
        tpu.check(recipe("tpu"), strategy, arrays)
        return
    with pytest.raises(UsageError, match="requires a TPU of one host .* Received: 2 hosts"):
        tpu.check(recipe("tpu"), strategy, arrays)


def test_each_host_makes_the_shares_of_its_cores(one):
    """The batches of two hosts with two cores each equal those of four replicas."""

    class Pod:
        num_replicas_in_sync = 4

        def distribute_datasets_from_function(self, function):
            return [
                function(
                    tf.distribute.InputContext(
                        num_input_pipelines=2, input_pipeline_id=i, num_replicas_in_sync=4
                    )
                )
                for i in range(2)
            ]

    def batches(shares):
        return pipeline.training_batches(
            {"row": np.arange(24)}, lambda batch, uniform, training: batch, batch_size=8,
            replicas=4, seed=1, first_step=2, last_step=4, local_replicas=shares,
        )  # fmt: skip

    def is_tpu(strategy):
        return isinstance(strategy, Pod)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strategies, "is_tpu", is_tpu)
        hosts = [
            [batch["row"].numpy().tolist() for batch in dataset]
            for dataset in distribute(Pod(), batches)
        ]
    whole = [batch["row"].numpy().tolist() for batch in batches(range(4))]
    assert hosts == [whole[0:2] + whole[4:6], whole[2:4] + whole[6:8]]


def test_without_a_tpu_it_is_one_line():
    with pytest.raises(RunError, match=r"--tpu=local: (TPUs not found|RET_CHECK failure)") as error:
        tpu.tpu_strategy("local")
    assert "\n" not in str(error.value)


def test_a_tpu7x_is_refused(monkeypatch):
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "tpu7x-8")
    with pytest.raises(UsageError, match="does not support TPU7x"):
        tpu.tpu_strategy("local")


def test_the_flag_belongs_to_the_strategy(zoo_command, tmp_path):
    answer = zoo_command(
        "train", "cnn_digits", f"--workdir={tmp_path}/run", "--tpu=local", "--strategy=mirrored"
    )
    assert answer.status == 2
    assert "--tpu requires --strategy=tpu" in answer.err
    key = "--config.trainer.strategy=mirrored"
    answer = zoo_command("train", "cnn_digits", f"--workdir={tmp_path}/run", "--tpu=local", key)
    assert answer.status == 2
    assert "--tpu requires --strategy=tpu" in answer.one_line()
    answer = zoo_command("train", "cnn_digits", f"--workdir={tmp_path}/run", "--tpu=local")
    assert answer.status == 1
    assert "No TPU responds at --tpu=local" in answer.err
    assert not (tmp_path / "run").exists()


# --- the whole step compiled, as a TPU compiles it ------------------------------------------------


@pytest.mark.parametrize("micro", [0, 2])
def test_the_whole_step_compiled_computes_the_same(one, xla, micro):
    """Compares without dropout, because XLA has other random numbers."""

    def updated(compiled):
        config = recipe(
            "one_device", precision="float32", micro_batch_size=micro, model_arguments={}
        )
        step, task = build_step(config, one, 10)
        batches = pipeline.training_batches(
            toys.token_data().splits["train"], task.prepare, batch_size=8, replicas=1, seed=0,
            first_step=0, last_step=3,
        )  # fmt: skip
        update = tf.function(step.update, jit_compile=compiled, autograph=False)
        for batch in batches:
            update(batch)
        return step

    plain, compiled = updated(False), updated(True)
    assert int(compiled.count.numpy()) == 3
    assert int(compiled.first_bad.numpy()) == -1
    assert toys.difference(plain.net, compiled.net) <= 1e-5
    for one_, other in zip(
        plain.means.take().values(), compiled.means.take().values(), strict=True
    ):
        np.testing.assert_allclose(one_, other, rtol=1e-5)
