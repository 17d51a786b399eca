"""Builds the train step of a recipe: model, task and optimizers in the strategy's scope."""

import keras
import tensorflow as tf

from trainers.compression import techniques
from trainers.config.base import section
from trainers.lora import adapters
from trainers.optimization.optimizers import make_optimizer
from trainers.optimization.precision import precision
from trainers.optimization.schedules import make_schedule
from trainers.train.recompute.remat import apply_remat
from trainers.train.step import TrainStep
from zoo import keras_internals, registry
from zoo.errors import UsageError


def update_function(step: TrainStep, strategy: tf.distribute.Strategy):
    """Returns the `tf.function` `run(iterator, count)`, which runs `count` updates."""

    def run(iterator, count):
        def body(i):
            strategy.run(step.update, args=(next(iterator),))
            return (i + 1,)

        tf.while_loop(lambda i: i < count, body, (tf.constant(0),), parallel_iterations=1)

    return tf.function(run, autograph=False)


def build_step(config, strategy: tf.distribute.Strategy, total_steps: int, dataset=None):
    """Builds model, task and optimizers of a recipe in the strategy's scope.

    Args:
      config: resolved configuration.
      strategy: distribution strategy that creates the variables.
      total_steps: number of updates of the whole run, for the schedule.
      dataset: `zoo.data.Dataset` that gives the builder arguments which the recipe omits.

    Returns:
      `(TrainStep, Task)`: the task of the recipe. The task of the step may wrap it, see
      `trainers.compression.techniques.wrap_task`.
    """
    trainer = config.trainer
    model_arguments = config.model.to_dict()
    task = registry.build_task(**config.task.to_dict())
    if dataset is not None:
        model_arguments = task.complete(model_arguments, dataset)
    schedule = config.schedule.to_dict()
    optimizer_arguments = config.optimizer.to_dict()
    keras.utils.set_random_seed(trainer.seed)
    with strategy.scope(), precision(trainer.precision):
        model = registry.build(model_arguments.pop("name"), **model_arguments)
        model = task.with_head(model, dataset)
        if (
            strategy.num_replicas_in_sync > 1
            and synchronize_normalization(model)
            and trainer.jit_compile
        ):
            raise UsageError(
                "XLA cannot compile batch normalization that is synchronized over replicas. "
                "Received: trainer.jit_compile=True on several replicas."
            )
        model = techniques.change_model(model, config)
        lora = adapters.attach(model, section(config, "lora"))
        if trainer.remat:
            apply_remat(model, trainer.remat)
        task.bind(model, dataset, model_arguments)
        training_task = techniques.wrap_task(task, model, config, dataset)
        optimizer_name, schedule_name = optimizer_arguments.pop("name"), schedule.pop("name")
        optimizers = []
        for part in training_task.model_parts(model):
            if lora and not part.model.trainable_variables:
                raise UsageError(
                    f"lora requires adapters in each network of the task. Received: none in "
                    f"{part.name!r}. Change lora.pattern."
                )
            rate = part.rate * optimizer_arguments["learning_rate"]
            optimizer, rules = make_optimizer(
                optimizer_name,
                make_schedule(schedule_name, rate, total_steps, **schedule),
                ema=trainer.ema if part.averaged else 0.0,
                loss_scaling=trainer.precision == "mixed_float16",
                **optimizer_arguments,
            )
            optimizers.append(optimizer)
        step = TrainStep(
            model,
            training_task,
            optimizers,
            micro_batch_size=trainer.micro_batch_size,
            jit_compile=trainer.jit_compile,
            seed=trainer.seed,
            rules=rules,
        )
        step.compressors = techniques.compressors(step, config, total_steps)
        if lora:
            step.lora = lora
            step.compressors = (lora, *step.compressors)
    return step, task


def synchronize_normalization(model: keras.Model) -> bool:
    """Synchronizes trainable batch normalization over replicas; returns whether there is any."""
    normalizations = [
        layer
        for layer in keras_internals.all_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    for layer in normalizations:
        layer.synchronized = True
    return bool(normalizations)
