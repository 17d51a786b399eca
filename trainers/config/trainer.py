"""The section `trainer`: its keys and their rules. Does not import TensorFlow."""

from collections.abc import Mapping

from zoo.data.windows import Windows
from zoo.errors import UsageError, check_minimums, check_name, compile_pattern, require

STRATEGIES = ("one_device", "mirrored", "multi_worker", "tpu", "auto")
PRECISIONS = ("float32", "mixed_bfloat16", "mixed_float16")
# Clouds with supported preemption notices (`trainers.distributed.preemption`).
CLOUDS = ("gcp", "aws", "azure")
# Tasks that limit the depth of examples by "progress", see `zoo.data.pipeline.training_batches`.
CURRICULUM_TASKS = ("by_depth",)

KEYS = {
    "steps": 0,  # number of updates of the whole run; 0 if epochs is set
    "epochs": 0,  # number of passes over the training split; 0 if steps is set
    "global_batch_size": 128,  # examples per update, over all replicas
    "micro_batch_size": 0,  # examples per forward pass of a replica; 0: the per-replica batch
    "strategy": "one_device",  # or mirrored, multi_worker, tpu, or auto: by the devices present
    "replicas": 0,  # number of devices of strategy mirrored; 0: all devices
    "precision": "float32",  # or mixed_bfloat16, mixed_float16
    "jit_compile": False,  # compile the forward and backward pass with XLA
    # Regular expression of blocks to recompute in the backward pass; "": none. A reversible stack
    # (reformer) computes the inputs of its layers from their outputs and stores neither.
    "remat": "",
    # Momentum of the moving average of the weights; 0 disables it. Batch statistics of the averaged
    # weights are computed from up to 10,000 training examples at each evaluation.
    "ema": 0.0,
    "seed": 0,  # random seed of initial weights, data order, augmentation and dropout
    "deterministic": False,  # bit-identical reruns on a GPU, at lower speed
    "steps_per_execution": 1,  # number of updates per tf.function call
    # Number of updates over which the depth of the training questions grows to the largest; 0: all
    # depths from the start. Only for task.name=by_depth.
    "curriculum": 0,
    "log_every": 100,  # updates per line of metrics.jsonl
    "evaluate_every": 0,  # updates between evaluations; 0: at the end of each epoch
    # Number of evaluations without a better validation metric that ends the run; 0 disables it. The
    # best weights are in best/model.keras.
    "patience": 0,
    "checkpoint_every": 0,  # updates between checkpoints; 0: at the end of each epoch
    "keep": 2,  # number of checkpoints to keep
    "max_rollbacks": 0,  # number of returns to a checkpoint after a loss that is not finite
    "callbacks": (),  # names of Keras callbacks, see trainers.train.callbacks
    # Cloud whose preemption notice triggers a save and a stop: gcp, aws, azure; "" disables it
    "preemption_notice": "",
}


def check(trainer, task) -> None:
    """Checks the values of a section `trainer`, given the section `task`; raises `UsageError`."""
    check_minimums(
        "trainer", trainer,
        {"global_batch_size": 1, "steps_per_execution": 1, "log_every": 1, "keep": 1},
    )  # fmt: skip
    if bool(trainer.steps) == bool(trainer.epochs):
        raise UsageError(
            "Exactly one of trainer.steps and trainer.epochs must be positive. Received: "
            f"trainer.steps={trainer.steps}, trainer.epochs={trainer.epochs}."
        )
    check_strategy(trainer.strategy, trainer.replicas)
    if trainer.strategy == "tpu":
        check_tpu(trainer, task)
    check_precision(trainer.precision)
    compile_pattern("trainer.remat", trainer.remat)
    if trainer.curriculum and task.name not in CURRICULUM_TASKS:
        raise UsageError(
            "trainer.curriculum requires a task whose examples have depths: task.name="
            f"{' or '.join(CURRICULUM_TASKS)}. Received: task.name={task.name}; set "
            "trainer.curriculum=0."
        )
    require(trainer.ema < 1, "trainer.ema", "in [0, 1); 0 disables it", trainer.ema)
    require(trainer.seed < 2**32, "trainer.seed", "less than 2**32", trainer.seed)
    if trainer.preemption_notice:
        check_name("cloud of trainer.preemption_notice", trainer.preemption_notice, CLOUDS)


def check_precision(name: str) -> None:
    """Raises `UsageError` for an unknown precision."""
    check_name("precision", name, PRECISIONS)


def check_strategy(name: str, replicas: int = 0) -> None:
    """Raises `UsageError` for an unknown strategy, or a number of replicas that it cannot have."""
    check_name("strategy", name, STRATEGIES)
    if name == "one_device" and replicas > 1:
        raise UsageError(
            f"Strategy one_device supports one replica. Received: trainer.replicas={replicas}; use "
            "--strategy=mirrored."
        )
    if name in ("multi_worker", "tpu") and replicas:
        raise UsageError(
            f"Strategy {name} requires trainer.replicas=0, because it uses all devices. Received: "
            f"{replicas}."
        )


def check_tpu(trainer, task) -> None:
    """Raises `UsageError` for settings of two sections that a TPU does not support."""
    if task.get("trim", 0):
        raise UsageError(
            "Strategy tpu requires task.trim=0, because a TPU needs batches of one length. "
            f"Received: task.trim={task.trim}."
        )
    if trainer.precision == "mixed_float16":
        raise UsageError(
            "Strategy tpu does not support float16. Received: trainer.precision=mixed_float16; use "
            "mixed_bfloat16, which requires no loss scaling."
        )
    if trainer.jit_compile:
        raise UsageError(
            "Strategy tpu requires trainer.jit_compile=False, because XLA always compiles the "
            "whole train step of a TPU. Received: True."
        )
    if trainer.deterministic:
        raise UsageError("Strategy tpu does not support trainer.deterministic. Received: True.")
    check_strategy("tpu", trainer.replicas)


def check_batch(config, replicas: int) -> None:
    """Checks that replicas and micro-batches divide the global batch; raises `UsageError`."""
    size, micro = config.trainer.global_batch_size, config.trainer.micro_batch_size
    if size % replicas:
        raise UsageError(
            "trainer.global_batch_size must be a multiple of the number of replicas. Received: "
            f"trainer.global_batch_size={size} for {replicas} replicas."
        )
    if micro and (size // replicas) % micro:
        raise UsageError(
            "The per-replica batch must be a multiple of trainer.micro_batch_size. Received: "
            f"trainer.micro_batch_size={micro} for a per-replica batch of {size // replicas}."
        )


def check_examples(arrays: Mapping, batch_size: int) -> None:
    """Raises `UsageError` if a training split holds fewer examples than one update needs.

    Args:
      arrays: arrays of the training split.
      batch_size: examples per update.
    """
    examples = len(next(iter(arrays.values())))
    if batch_size <= examples:
        return
    if "tokens" not in arrays:
        raise UsageError(
            f"trainer.global_batch_size ({batch_size}) must not exceed the number of training "
            f"examples ({examples}): lower it, or train on more data."
        )
    rows = arrays["tokens"]
    length = rows.shape[1] - 1
    missing, count = (batch_size - examples) * length, ""
    ways = [f"trainer.global_batch_size={examples} or less"]
    if isinstance(rows, Windows):
        tokens = len(rows.stream)
        count, missing = f" has {tokens:,} tokens and", (batch_size - 1) * length + 2 - tokens
        if (shorter := (tokens - 1) // batch_size) > 1:
            ways.append(f"data.sequence_length={shorter} or less")
    raise UsageError(
        f"The training split{count} fills {examples} of the {batch_size} sequences of {length} "
        f"tokens that one update requires (trainer.global_batch_size, data.sequence_length): "
        f"{missing:,} tokens are missing. Set {' or '.join(ways)}, or train on more text."
    )
