"""Causal language modeling with a mixture of experts: the load of the experts is balanced.

Stored examples and prepared batches are those of zoo.tasks.clm. Axes: L blocks, E experts.
"""

import functools

from zoo import registry
from zoo.errors import UsageError
from zoo.lazy import ops
from zoo.tasks.clm import CausalLanguageModeling


class MixtureLanguageModeling(CausalLanguageModeling):
    """Mean cross-entropy per token, and a balance loss per sequence.

    For a row of T tokens, the balance loss of a block is the sum over the experts of f * P, where
    f = load * E / (K * T) is the share of the tokens relative to an even share, and P the mean
    probability of the expert (Fedus et al. 2021, arXiv:2101.03961, per sequence as in DeepSeek-V3,
    arXiv:2412.19437, equations 17 to 20). It is 1 if the load is even, at most E / K, and only P
    has a gradient. The term is its mean over blocks and tokens.

    After each update, the bias of each expert in the router rises by `bias_rate` if the expert
    had less than the mean load of its block in the update, and falls if it had more (Wang et al.
    2024, arXiv:2408.15664). The load is that of all replicas and micro-batches together.

    Statistics, beside those of `clm`: "load/L/E" is the load of an expert divided by the mean load
    of its block, "max_load" the largest of these values, "dropped" the share of dropped pairs, and
    "router_entropy" the mean entropy of the router's probabilities, as a share of its maximum.

    Args:
      chunk: see `zoo.tasks.clm`.
      cross_documents: see `zoo.tasks.clm`.
      balance: coefficient of the balance loss; 0 for none.
      bias_rate: change of the biases per update; 0 for none. The paper has 0.001 for long runs, too
        little for runs of a few hundred updates.
    """

    nll = "cross_entropy"
    monitor = "val_cross_entropy"

    def __init__(
        self,
        chunk: int = 0,
        cross_documents: bool = False,
        balance: float = 0.0,
        bias_rate: float = 0.01,
    ):
        super().__init__(chunk, cross_documents)
        self.terms = {self.nll: 1.0, "balance": balance}
        self.bias_rate = bias_rate
        # The student and the teacher of a distillation.
        self.with_routing = functools.lru_cache(2)(_blocks_module("with_routing"))

    def bind(self, model, dataset=None, arguments=None):
        """Reads the tokenizer, the number of positions, and the numbers of blocks and experts.

        Raises:
          UsageError: if the model has no experts.
        """
        super().bind(model, dataset, arguments)
        blocks = _blocks_module("expert_blocks")(model)
        if not blocks:
            raise UsageError(
                "The task moe requires a model with experts, such as moe_nano. Received: "
                f"{model.name!r}. Use the task clm."
            )
        self.experts_per_token = blocks[0].feed_forward.experts_per_token
        self.num_experts = blocks[0].feed_forward.num_experts
        self.load_names = [
            [f"load/{layer}/{expert}" for expert in range(self.num_experts)]
            for layer in range(len(blocks))
        ]
        names = [name for block in self.load_names for name in block]
        self.statistics = (*super().statistics, "dropped", "router_entropy", *names)
        return self

    def prepare(self, batch, uniform, training):
        """Returns the batch of `clm` and the weight of each row."""
        return {**super().prepare(batch, uniform, training), "weight": batch["weight"]}

    def term_counts(self, batch):
        """Returns the number of targets that count, and the number of routed tokens."""
        return {**super().term_counts(batch), "balance": ops.sum(_tokens(batch))}

    def forward(self, model, batch, training):
        """Returns the sums of `clm`, the balance loss, and statistics of the routing."""
        inputs = {tensor.name: batch[tensor.name] for tensor in model.inputs}
        graph, head = model, None
        if self.chunk and self.can_split(model):
            graph, head = self.split(model)
        outputs = self.with_routing(graph)(inputs, training=training)
        result = self.score(model, outputs["outputs"], head, batch, training)
        routing = outputs["routing"]
        weight, tokens = batch["weight"], _tokens(batch)
        count, experts, k = len(routing), self.num_experts, self.experts_per_token

        def total(values):
            return ops.tensordot(weight, values, 1)

        pairs = k * count * ops.sum(tokens)
        load = [total(block["load"]) for block in routing]  # L vectors (E,)
        balance = sum(
            ops.sum(ops.stop_gradient(block["load"]) * block["probability"], -1)
            for block in routing
        )
        result.sums["balance"] = ops.sum(
            ops.divide_no_nan(balance * (weight * experts / (k * count)), tokens)
        )
        result.statistics["dropped"] = sum(total(x["dropped"]) for x in routing), pairs
        entropy = sum(total(x["entropy"]) for x in routing)
        result.statistics["router_entropy"] = entropy, count * ops.sum(tokens)
        for names, of_block in zip(self.load_names, load, strict=True):
            for expert, name in enumerate(names):  # divided by the mean load of the block
                result.statistics[name] = experts * of_block[expert], k * ops.sum(tokens)
        result.totals["load"] = ops.stack(load)
        return result

    def end_update(self, model, totals):
        """Moves the bias of each expert toward the mean load of its block."""
        if not self.bias_rate:
            return
        blocks = _blocks_module("expert_blocks")(model)
        for i, block in enumerate(blocks):
            load = totals["load"][i]
            bias = block.feed_forward.router.load_bias
            bias.assign_add(self.bias_rate * ops.sign(ops.mean(load) - load))

    def derived_metrics(self, metrics):
        """Returns the perplexity, and the largest load divided by the mean load of its block."""
        loads = [metrics[name] for block in self.load_names for name in block if name in metrics]
        return {**super().derived_metrics(metrics), "max_load": max(loads)}


def _tokens(batch):
    """Returns the number of tokens of each row that are routed, (B,) float32; 0 for padded rows."""
    real = ops.cast(batch["segments"] > 0, "float32")
    return ops.sum(real, 1) * batch["weight"]


def _blocks_module(function: str):
    """Returns a function of the module of blocks, by name because the module loads Keras."""
    return lambda model: registry.resolve(f"zoo.layers.experts.block:{function}")(model)
