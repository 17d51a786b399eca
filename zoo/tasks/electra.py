"""Replaced-token detection, ELECTRA's pretraining (Clark et al. 2020, arXiv:2003.10555).

Stored examples are those of zoo.tasks.mlm. Axes: B batch, T positions, M positions to predict.
"""

from zoo import registry
from zoo.lazy import ops
from zoo.tasks.mlm import MaskedLanguageModeling


class ReplacedTokenDetection(MaskedLanguageModeling):
    """Cross-entropy of the generator's tokens, and of the discriminator's decision per token.

    Args:
      mask_share: share of a row's tokens to predict and replace.
      whole_word: whether either all or none of the tokens of a word are replaced.
      cross_documents: whether attention crosses document boundaries within a row.
    """

    nll = "mlm"
    # The coefficients of the paper, section 3.1 and appendix A.
    terms = {"mlm": 1.0, "rtd": 50.0}
    heads = frozenset({"mlm", "rtd", "sampled"})
    _hint = ", such as electra_nano"
    # rtd_recall: share of the replaced tokens that are detected.
    statistics = ("mlm_accuracy", "rtd_accuracy", "rtd_recall")

    def prepare(self, batch, uniform, training):
        """Draws positions to predict, and the random numbers of the replacements."""
        import tensorflow as tf

        prepared = super().prepare(batch, uniform, training)
        return {
            **prepared,
            "is_target": tf.cast(prepared["counts"] > 0, tf.int32),
            "noise": uniform(prepared["masked"].shape[1]),
            "token_counts": tf.cast(prepared["segments"] > 0, tf.float32)
            * batch["weight"][:, None],
        }

    def term_counts(self, batch):
        """Returns the number of predicted tokens and the number of all tokens."""
        return {**super().term_counts(batch), "rtd": ops.sum(batch["token_counts"])}

    def forward(self, model, batch, training):
        """Returns summed cross-entropies and accuracies of generator and discriminator."""
        result = super().forward(model, batch, training)
        logits, counts = result.outputs["rtd"], batch["token_counts"]
        replaced = ops.not_equal(result.outputs["sampled"], batch["targets"])
        replaced = ops.cast(replaced, "float32") * batch["counts"]
        at_masked = ops.take_along_axis(logits, batch["masked"], axis=1)
        # Cross-entropy softplus(z) - y z, where y is 1 at replaced tokens.
        loss = ops.sum(ops.softplus(logits) * counts) - ops.sum(at_masked * replaced)
        detected = ops.sum(ops.cast(at_masked > 0, "float32") * replaced)
        flagged = ops.sum(ops.cast(logits > 0, "float32") * counts)
        total, num_replaced = ops.sum(counts), ops.sum(replaced)
        # All decisions but false alarms and replaced tokens that were not detected.
        correct = total - (flagged - detected) - (num_replaced - detected)
        result.sums["rtd"] = loss
        result.statistics["rtd_accuracy"] = correct, total
        result.statistics["rtd_recall"] = detected, num_replaced
        return result

    def serving_model(self, model):
        """Returns the discriminator, from tokens and segments to logits per token."""
        return registry.resolve("zoo.models.electra:discriminator")(model)
