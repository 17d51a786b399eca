"""Mixed precision: close to float32, with overflows skipped."""

import json

import numpy as np
import pytest

from tests import toys
from trainers.config.base import optimizer
from trainers.optimization.optimizers import inner
from trainers.optimization.precision import slow_bfloat16


def train(train_function, precision, *, clip_norm=0.3, **trainer):
    config = toys.recipe(precision=precision, **trainer)
    config.optimizer = optimizer("sgd", learning_rate=0.1, clip_norm=clip_norm)
    return train_function(config, toys.token_data())


# Differences from float32 after ten steps. Micro-batches and replicas must not enlarge them. If
# scaled gradients (2**15) were clipped or accumulated, the weights would hardly change.
@pytest.mark.parametrize(
    ("precision", "bound"), [("mixed_bfloat16", 0.05), ("mixed_float16", 0.01)]
)
@pytest.mark.parametrize("split", ["whole", "2 replicas x 2 micro-batches"])
def test_close_to_float32(precision, bound, split, trained_once):
    more = (
        {} if split == "whole" else {"strategy": "mirrored", "replicas": 2, "micro_batch_size": 4}
    )
    exact, mixed = train(trained_once, "float32"), train(trained_once, precision, **more)
    assert 0 < toys.difference(exact.step.net, mixed.step.net) <= bound
    assert all(v.dtype == "float32" for v in mixed.step.net.trainable_variables)
    block = mixed.step.net.get_layer("block_0")
    assert block.compute_dtype == precision.removeprefix("mixed_")  # the policy is mixed precision


def test_the_former_policy_is_put_back(run):
    import keras

    train(run, "mixed_bfloat16")
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_overflow_skips_the_step_and_is_counted(replicas, run, tmp_path):
    """One example on the last replica overflows float16's gradients once an epoch."""
    from zoo.data import pipeline

    order = pipeline.epoch_order(np.arange(70, dtype=np.int64), 0, 0, 70).numpy()
    poison = np.ones(70, np.float32)
    poison[order[2 * 16 + 15]] = 1e30  # third batch, last row: the last replica's
    data = toys.token_data(poison=poison)
    more = {"strategy": "mirrored", "replicas": 2} if replicas == 2 else {}
    config = toys.recipe(task="toy_poison", precision="mixed_float16", steps=5, **more)
    config.trainer.log_every = 1
    config.trainer.checkpoint_every = 1
    config.trainer.keep = 9
    trainer = run(config, data, workdir=tmp_path / "run")
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    skipped = {line["step"]: line["skipped_steps"] for line in lines if "skipped_steps" in line}
    assert skipped == {1: 0, 2: 0, 3: 1, 4: 1, 5: 1}
    assert int(inner(trainer.step.optimizer).iterations.numpy()) == 4
    before, after, later = (weights(tmp_path / "run", step) for step in (2, 3, 4))
    assert all((a == b).all() for a, b in zip(before, after, strict=True))
    assert any((a != b).any() for a, b in zip(after, later, strict=True))
    assert all(np.isfinite(w).all() for w in later)


def weights(workdir, step):
    from trainers.run import checkpoint

    header, arrays = checkpoint.read(workdir / "checkpoints" / f"step_{step:010d}.npz")
    trained = [p.startswith(("embedding", "block", "logits")) for p in header["paths"]]
    return [a for a, keep in zip(arrays, trained, strict=True) if keep]


@pytest.mark.parametrize(
    ("policy", "device_names", "cpu", "slow"),
    [
        ("mixed_bfloat16", ["/device:CPU:0"], "flags\t\t: fpu avx2 fma", True),
        ("mixed_bfloat16", ["/device:CPU:0"], "flags\t\t: fpu avx2 avx512_bf16", False),
        ("mixed_bfloat16", ["/device:CPU:0"], "flags\t\t: fpu amx_bf16", False),
        ("mixed_bfloat16", ["/device:CPU:0"], "Features\t: fp asimd bf16", False),
        ("mixed_bfloat16", ["/device:CPU:0"], "Features\t: fp asimd", True),
        ("mixed_bfloat16", ["/device:CPU:0"], "nothing known", False),
        ("mixed_bfloat16", ["/device:CPU:0", "/device:GPU:0"], "flags\t\t: fpu", False),
        ("float32", ["/device:CPU:0"], "flags\t\t: fpu", False),
    ],
)
def test_bfloat16_on_a_cpu_without_it_is_said(policy, device_names, cpu, slow, tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\n{cpu}\n\nprocessor\t: 1\n{cpu}\n")
    assert ("float32" in slow_bfloat16(policy, device_names, file)) == slow
    assert slow_bfloat16(policy, device_names, tmp_path / "none") == ""


def test_a_run_logs_the_precision(run, monkeypatch):
    from trainers.run.workdir import read_metrics
    from trainers.train import trainer

    monkeypatch.setattr(trainer, "slow_bfloat16", lambda *_: "too slow")
    done = run(toys.recipe(steps=1, checkpoint_every=1), toys.token_data())
    events = [x for x in read_metrics(done.workdir.path) if x.get("event") == "warning"]
    assert [x["detail"] for x in events] == ["too slow"]
