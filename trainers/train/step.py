"""The train step of all models and tasks.

    1. Sum the weight of each loss term (its number of samples or tokens) over all replicas.
    2. For each micro-batch: run the forward pass, sum the losses, divide by the GLOBAL weight, run
       the backward pass, and accumulate the gradients in float32.
    3. Sum the gradients over the replicas.
    4. Apply the Keras optimizer: unscaling, finiteness test, clipping, update, moving average.
    5. Run the compressors, such as the masks of pruned weights, and `Task.end_update`.

Every gradient is a part of one global sum. Therefore micro-batches, replicas, padding and a short
last batch do not change the result. Layers that mix rows are the exception for micro-batches: batch
normalization uses the statistics of one micro-batch over all replicas, and updates its moving
statistics once per micro-batch. Padding does not enter these statistics: the row weights are
published during the forward pass (`zoo.rows`), a short batch has the statistics of its real rows,
and a micro-batch without a real row changes no variable of the network.

`TrainStep` is a `keras.Model`, so plain `fit` runs it too. If a task has several model parts (a
GAN: discriminator, then generator), each part in turn runs steps 2 to 4 with its own variables,
loss terms and optimizer, and sees the updated weights of the parts before it.

Random numbers (dropout) are a function of (seed, step, micro-batch, replica). The states of the
seed generators are replaced for each forward pass and never advance, so a resumed run draws the
same numbers as an uninterrupted run, and replicas draw different masks.
"""

import contextlib
import functools
import warnings
from collections.abc import Sequence

import keras
import tensorflow as tf

from trainers.evaluation.means import Means, evaluate_batch
from trainers.optimization.optimizers import Rules, apply_rules, check_rules, inner
from trainers.train import batch_norm
from trainers.train.activity import ActivityPenalties
from trainers.train.statistics import Statistics
from zoo import keras_internals
from zoo.data.arrays.augment import Key
from zoo.errors import UsageError
from zoo.rows import Rows, use_row_weights
from zoo.tasks.base import Task

batch_norm.install()
_ROWS = " rows"  # key of the number of real rows, next to the weights of the loss terms
# These layers draw the rows to blend by themselves and may blend a real row with padding.
_REFUSED = (keras.layers.MixUp, keras.layers.CutMix)


class TrainStep(keras.Model):
    """A model, its task and its optimizer, as one update.

    Args:
      model: a built model: the network that is saved and exported.
      task: the `zoo.tasks.base.Task` that defines loss and metrics of a batch.
      optimizer: a Keras optimizer, or one for each of the task's model parts; created, like the
        model, inside the strategy's scope.
      micro_batch_size: number of rows per forward pass on one replica; 0 for the whole per-replica
        batch.
      jit_compile: whether XLA compiles the forward and backward pass.
      seed: random seed of all numbers drawn in training.
      rules: per-variable overrides of weight decay and learning rate.

    Attributes:
      net: the model.
      count: number of updates tried, an int64 variable. The optimizer's own count leaves out the
        updates that loss scaling skipped.
      first_bad: index of the first update whose loss or gradient was not finite; -1 if none was.
      means: running means of losses and metrics, see `trainers.evaluation.means.Means`.
      compressors: objects that change weights after an update, see `trainers.compression`.
      lora: the adapters of the model, a `trainers.lora.adapters.Lora`; None if it has none.
      statistics: recomputes batch statistics for averaged weights; set by the trainer.
    """

    def __init__(
        self,
        model: keras.Model,
        task: Task,
        optimizer: keras.optimizers.Optimizer | Sequence[keras.optimizers.Optimizer],
        *,
        micro_batch_size: int = 0,
        jit_compile: bool = False,
        seed: int = 0,
        rules: Rules = Rules(),  # noqa: B008 - frozen
    ):
        super().__init__(name="train_step")
        self.net = model
        self.task = task
        self.micro_batch_size = micro_batch_size
        self.jit_gradients = jit_compile
        self.seed = seed
        self._compiled = {}
        self.seed_states = tuple(keras_internals.seed_variables(model))
        self.count = self.add_weight(
            shape=(), dtype="int64", initializer="zeros", trainable=False, name="step",
            aggregation="only_first_replica",
        )  # fmt: skip
        self.first_bad = self.add_weight(
            shape=(), dtype="int64", initializer=keras.initializers.Constant(-1),
            trainable=False, name="first_bad", aggregation="only_first_replica",
        )  # fmt: skip
        self.means = Means(task, penalty=True)
        self.built = True
        inside = keras_internals.all_layers(model)
        self._shared_seeds = {
            id(generator.state)
            for layer in inside
            for generator in getattr(layer, "shared_seeds", ())
        }
        for layer in inside:
            if isinstance(layer, _REFUSED):
                raise UsageError(
                    f"{type(layer).__name__} must not be inside a network, where it would blend "
                    f"padding rows: use task.augment instead. Received: layer {layer.name!r}."
                )
            if getattr(layer, "stateful", False):
                raise UsageError(
                    "Stateful RNN layers are not supported: batches are shuffled, so no row "
                    "continues the row before it. Set stateful=False. Received: layer "
                    f"{layer.name!r}."
                )
        self._activity = ActivityPenalties(model)
        self._synchronized = {
            id(v)
            for layer in inside
            if getattr(layer, "synchronized", False) and layer.trainable
            for v in layer.non_trainable_variables
        }
        self.compressors = ()
        self.lora = None
        self.model_parts = task.model_parts(model)
        single = isinstance(optimizer, keras.optimizers.Optimizer)
        self.optimizers = [optimizer] if single else list(optimizer)
        # XLA around the whole step fails under tf.distribute; it wraps the gradients instead.
        self.compile(optimizer=self.optimizers[0], jit_compile=False, auto_scale_loss=False)
        keras_internals.skip_symbolic_build(self)
        check_rules([v for p in self.model_parts for v in p.model.trainable_variables], rules)
        for part, part_optimizer in zip(self.model_parts, self.optimizers, strict=True):
            variables = part.model.trainable_variables
            keras_internals.disable_all_reduce(inner(part_optimizer))
            keras_internals.cache_update_values(inner(part_optimizer))
            models = [m for m in (part.model, model) if isinstance(m, keras.Model)]
            apply_rules(part_optimizer, variables, rules, models)
            part_optimizer.build(variables)
        averaging = any(inner(part_optimizer).use_ema for part_optimizer in self.optimizers)
        self._averages_statistics = averaging and any(
            map(keras_internals.has_batch_statistics, inside)
        )
        self.statistics: Statistics | None = None
        renormalized_layers = [
            x.name for x in inside if getattr(x, "renorm", False) and x.trainable
        ]
        if averaging and renormalized_layers:
            raise UsageError(
                "Batch renormalization does not support averaged weights: set trainer.ema=0 or "
                f"renorm=False. Received: layer {renormalized_layers[0]!r}."
            )

    # --- the interface of keras.Model ---------------------------------------------------------

    def call(self, inputs, training=None):
        return self.net(inputs, training=training)

    @property
    def metrics(self):
        return list(self.means.metrics.values())

    def train_step(self, data):
        """Runs one update and returns the means since the last reset."""
        if self._averages_statistics:
            raise UsageError(
                "Keras' fit does not recompute batch statistics for averaged weights: set "
                "trainer.ema=0, or train with trainers.train.trainer.Trainer."
            )
        self.update(data)
        return self.means.result()

    def test_step(self, data):
        """Adds one batch to the means without an update."""
        evaluate_batch(self.net, self.task, self.means, data)
        return self.means.result()

    def get_metrics_result(self):
        return self.means.result()

    # --- used by the loop of the trainer ----------------------------------------------------------

    def update(self, data) -> None:
        """Runs one update on the per-replica batch.

        Args:
          data: dict of tensors with a common, static first axis; see `zoo.tasks.base.Batch`.
        """
        replica = tf.distribute.get_replica_context()
        replicas = replica.num_replicas_in_sync

        def add_up(values, operation=tf.distribute.ReduceOp.SUM):
            if replicas == 1 or isinstance(values, list) and not values:
                return values
            return replica.all_reduce(operation, values)

        local = self.task.term_counts(data)
        counts = {**local, _ROWS: _real_rows(data)} if self._activity else local
        weights = add_up(counts)
        all_sums, all_statistics, all_totals, finite = {}, {}, {}, tf.constant(True)
        for part_index, optimizer in enumerate(self.optimizers):
            gradients, sums, statistics, totals, changes = self._part_gradients(
                part_index, data, weights, replicas
            )
            gradients = add_up(gradients)
            # A list, because the order of the keys of `changes` differs between processes.
            changing = [v for v in self.net.non_trainable_weights if id(v) in changes]
            values = [changes[id(v)] for v in changing]
            if replicas > 1 and values:
                values = self._mean_of_replicas(data, changing, values, replicas, add_up)
            for variable, value in zip(changing, values, strict=True):
                variable.assign(value)
            optimizer.apply(gradients, self.model_parts[part_index].model.trainable_variables)

            finite &= tf.math.is_finite(tf.add_n(list(add_up(sums).values())))
            if optimizer is inner(optimizer):  # loss scaling skips such gradients itself
                finite &= tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in gradients])
            for name, value in sums.items():  # every part adds to "regularization"
                all_sums[name] = all_sums.get(name, 0.0) + value
            all_statistics |= statistics
            all_totals |= totals
        self.first_bad.assign(
            tf.where(finite | (self.first_bad.value >= 0), self.first_bad.value, self.count.value)
        )
        self.count.assign_add(1)
        for compressor in self.compressors:
            compressor.update()
        if all_totals:
            self.task.end_update(self.net, add_up(all_totals))
        self.means.add(all_sums, all_statistics, {"regularization": 1 / replicas, **local})

    def save(self, *args, **kwargs) -> None:
        """Saves the network with averaged weights; Keras' ModelCheckpoint calls this."""
        with self.averaged(), self.merged():
            self.net.save(*args, **kwargs)

    def save_weights(self, *args, **kwargs) -> None:
        """Saves the network's averaged weights; Keras' ModelCheckpoint calls this."""
        with self.averaged(), self.merged():
            self.net.save_weights(*args, **kwargs)

    @contextlib.contextmanager
    def averaged(self):
        """Returns a context in which the network has the weights to evaluate and save.

        With `trainer.ema` these are the moving averages, with batch statistics recomputed for
        them. Compressors then restore their constraints, such as zeros of pruned weights.

        Raises:
          UsageError: if batch statistics must be recomputed and `statistics` is not set.
        """
        pairs, statistics = [], []
        for part, optimizer in zip(self.model_parts, map(inner, self.optimizers), strict=True):
            if optimizer.use_ema and int(optimizer.iterations.numpy()):
                averages = keras_internals.averaged_weights(optimizer)
                pairs += zip(part.model.trainable_variables, averages, strict=True)
                if self._averages_statistics:
                    statistics += part.model.non_trainable_variables
        changing = []
        if pairs or self.compressors:
            changing = [*self.net.trainable_variables, *self.task.variables]
        if statistics:
            if self.statistics is None:
                raise UsageError(
                    "Averaged weights require recomputed batch statistics. Received: a TrainStep "
                    "without `statistics` (trainers.train.statistics.Statistics)."
                )
            changing += self.net.non_trainable_weights
        raw_values = [variable.numpy() for variable in changing]
        for variable, average in pairs:
            variable.assign(average.numpy())
        for compressor in self.compressors:
            compressor.restore()
        try:
            if statistics:
                self.statistics(statistics)
            yield
        finally:
            for variable, value in zip(changing, raw_values, strict=True):
                variable.assign(value)

    def merged(self):
        """Returns a context in which the network has plain layers; see `Lora.merged`."""
        return self.lora.merged() if self.lora else contextlib.nullcontext()

    def mixed_rows(self, batch) -> Rows:
        """Traces a forward pass and returns which kinds of layers mix rows: see `zoo.rows.Rows`.

        Args:
          batch: dict of `tf.TensorSpec`.
        """
        traced_rows = []

        def forward(data):
            with keras.StatelessScope(), use_row_weights(data["weight"]) as rows:
                traced_rows.append(rows)
                for part in self.model_parts:
                    part.forward(self.net, data, training=True)

        tf.function(forward, autograph=False).get_concrete_function(batch)
        return traced_rows[0]

    # --- inside a step -------------------------------------------------------------------------

    def _micro_batches(self, data) -> int:
        rows = next(iter(data.values())).shape[0]
        if not self.micro_batch_size:
            return 1
        if rows is None or rows % self.micro_batch_size:
            raise UsageError(
                "trainer.micro_batch_size must divide the per-replica batch. Received: "
                f"trainer.micro_batch_size={self.micro_batch_size} for {rows} rows per replica."
            )
        return rows // self.micro_batch_size

    def _part_gradients(self, part_index, data, weights, replicas):
        """Returns the results of `_gradients` for one model part on the whole per-replica batch."""
        micro_batches = self._micro_batches(data)
        if micro_batches == 1:
            return self._gradients(
                part_index, data, weights, self._seeds(part_index, 0), {}, 1 / replicas
            )
        share = 1 / (replicas * micro_batches)
        return self._accumulate(part_index, data, weights, micro_batches, share)

    def _seeds(self, part_index, micro_batch):
        """Returns seed states of a micro-batch, with (seed, step, micro-batch, replica) folded in.

        Generators in a layer's `shared_seeds` get (seed, step) alone. The last state is for random
        numbers that are drawn without a seed generator.
        """
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        seeds = []
        for variable in (*self.seed_states, None):
            state = tf.zeros(2, tf.uint32) if variable is None else variable.value
            seed = tf.bitcast(tf.cast(state, tf.uint32), tf.int32)
            is_shared = id(variable) in self._shared_seeds
            parts = (
                self.seed,
                self.count.value,
                *(() if is_shared else (micro_batch, replica)),
                *([part_index] if part_index else []),
            )
            for part in parts:
                seed = tf.random.experimental.stateless_fold_in(seed, tf.cast(part, tf.int32))
            seeds.append(tf.cast(tf.bitcast(seed, tf.uint32), state.dtype))
        return seeds

    def seeded(self, seeds) -> list[tuple]:
        """Returns pairs of a seed generator's state and its value in `_seeds`."""
        return list(zip(self.seed_states, seeds[:-1], strict=True))

    def unseeded(self, seeds):
        """Returns a context in which draws without a seed generator use the last of `_seeds`."""
        return keras_internals.use_global_seed(Key(tf.bitcast(seeds[-1], tf.int32)))

    def _gradients(self, part_index, data, weights, seeds, state, share):
        """Returns gradients, loss sums, statistics, totals and new state of one micro-batch.

        The computation is pure: it reads variables and writes none, so it can run inside a loop,
        under XLA and in each replica.
        """
        if self.jit_gradients:
            if part_index not in self._compiled:
                self._compiled[part_index] = tf.function(
                    functools.partial(self._pure_gradients, part_index),
                    jit_compile=True,
                    autograph=False,
                )
            return self._compiled[part_index](data, weights, seeds, state, share)
        return self._pure_gradients(part_index, data, weights, seeds, state, share)

    def _pure_gradients(self, part_index, data, weights, seeds, state, share):
        part, optimizer = self.model_parts[part_index], self.optimizers[part_index]
        variables = part.model.trainable_variables
        by_id = {id(v): v for v in self.net.non_trainable_weights}
        state_pairs = [(by_id[key], value) for key, value in state.items()]
        scope = keras.StatelessScope([*self.seeded(seeds), *state_pairs], collect_losses=True)
        unseeded = self.unseeded(seeds)
        with tf.GradientTape() as tape:
            of_real_rows = self._activity.of_real_rows(weights.get(_ROWS), share)
            with scope, use_row_weights(data.get("weight")), of_real_rows, unseeded:
                result = part.forward(self.net, data, training=True)
            loss = sum(
                coefficient * tf.math.divide_no_nan(result.sums[name], weights[name])
                for name, coefficient in part.terms.items()
            )
            # Weight regularizers and `add_loss`: each micro-batch adds its share.
            penalties = [tf.cast(x, tf.float32) for x in [*part.model.losses, *scope.losses]]
            if penalties:
                penalty = share * tf.add_n(penalties)
                result.sums["regularization"] = penalty
                loss += penalty
            loss = optimizer.scale_loss(loss)
        with scope, use_row_weights(data.get("weight")):  # trainer.remat recomputes blocks here
            gradients = tape.gradient(loss, [v.value for v in variables])
        for v in self.net.trainable_variables:
            if scope.get_current_value(v) is not None:
                raise UsageError(
                    "Layers must not assign to trainable variables in the forward pass, as "
                    "SpectralNormalization does: the update overwrites the value. Received: "
                    f"{v.path}. Use a constraint, or a layer that does not assign."
                )
        changes = {
            key: tf.cast(scope.get_current_value(v), v.dtype)
            for key, v in by_id.items()
            if scope.get_current_value(v) is not None
        }
        if changes and "weight" in data:
            changes = self._unless_all_padding(data, by_id, state, changes)
        missing = [v.path for v, g in zip(variables, gradients, strict=True) if g is None]
        if missing:
            warnings.warn(f"No gradient for {', '.join(missing)}: these variables are not trained.")
        # An embedding's gradient lists rows, some more than once; optimizers and clipping need
        # their sum.
        gradients = [
            tf.zeros_like(v.value) if g is None else tf.cast(tf.convert_to_tensor(g), v.dtype)
            for v, g in zip(variables, gradients, strict=True)
        ]
        return gradients, result.sums, result.statistics, result.totals, changes

    def _unless_all_padding(self, data, by_id, state, changes):
        """Returns `changes`, or the old values if every row is padding.

        For a synchronized layer the rows of all replicas count.
        """
        local_rows = global_rows = _real_rows(data)
        replica = tf.distribute.get_replica_context()
        if self._synchronized and replica.num_replicas_in_sync > 1:
            global_rows = replica.all_reduce(tf.distribute.ReduceOp.SUM, local_rows)
        return {
            key: tf.where(
                (global_rows if key in self._synchronized else local_rows) > 0,
                value,
                state[key] if key in state else by_id[key].value,
            )
            for key, value in changes.items()
        }

    @staticmethod
    def _mean_of_replicas(data, variables, values, replicas, add_up):
        """Returns the means of new values over the replicas, weighted by their real rows."""
        rows = _real_rows(data)
        total = add_up(rows)
        share = replicas * tf.math.divide_no_nan(rows, total)  # the reduction below is a mean
        types = [tf.float32 if v.dtype.is_floating else tf.float64 for v in values]
        parts = [
            tf.cast(v, kind) * tf.cast(share, kind) for v, kind in zip(values, types, strict=True)
        ]
        means = add_up(parts, tf.distribute.ReduceOp.MEAN)
        means = [
            tf.cast(mean if v.dtype.is_floating else tf.round(mean), v.dtype)
            for mean, v in zip(means, values, strict=True)
        ]
        return [
            tf.where(total > 0, mean, v.value) for mean, v in zip(means, variables, strict=True)
        ]

    def _accumulate(self, part_index, data, weights, micro_batches, share):
        rows = self.micro_batch_size
        stacked_data = tf.nest.map_structure(
            lambda x: tf.reshape(x, (micro_batches, rows, *_sizes(x)[1:])), dict(data)
        )

        def micro_batch(i):
            return tf.nest.map_structure(lambda x: x[i], stacked_data)

        def compute(i, state):
            return self._gradients(
                part_index, micro_batch(i), weights, self._seeds(part_index, i), state, share
            )

        replicas = tf.distribute.get_replica_context().num_replicas_in_sync
        if replicas > 1 and self._synchronized:
            # Synchronized normalization reduces over replicas, which tf.while_loop does not allow.
            return self._accumulate_unrolled(compute, micro_batches)
        # One extra trace finds the loop variables: the variables (moving statistics) that a forward
        # pass changes, and the names of the statistics.
        probe = tf.function(lambda: compute(0, {}), autograph=False).get_concrete_function()
        _, *sums, changes = probe.structured_outputs
        state = {id(v): v.value for v in self.net.non_trainable_weights if id(v) in changes}
        zeros = tf.nest.map_structure(lambda t: tf.zeros(t.shape, t.dtype), sums)
        variables = self.model_parts[part_index].model.trainable_variables
        carry = ([tf.zeros_like(v.value) for v in variables], *zeros, state)

        def body(i, *carry):
            *totals, state = carry
            *results, state = compute(i, state)
            return (i + 1, *tf.nest.map_structure(tf.add, totals, results), state)

        return tf.while_loop(
            lambda i, *_: i < micro_batches, body, (tf.constant(0), *carry),
            parallel_iterations=1,
        )[1:]  # fmt: skip

    def _accumulate_unrolled(self, compute, micro_batches):
        *totals, state = compute(0, {})
        for i in range(1, micro_batches):
            *results, state = compute(i, state)
            totals = tf.nest.map_structure(tf.add, totals, results)
        return *totals, state


def _sizes(x) -> list:
    """Returns the sizes of a tensor; sizes that differ between batches are scalar tensors."""
    return [tf.shape(x)[i] if size is None else size for i, size in enumerate(x.shape)]


def _real_rows(data):
    """Returns the number of rows that are not padding, float32."""
    if "weight" not in data:
        return tf.constant(float(next(iter(data.values())).shape[0]))
    return tf.reduce_sum(tf.cast(data["weight"] > 0, tf.float32))
