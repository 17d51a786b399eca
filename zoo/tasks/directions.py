"""Which direction of a metric is better, for pages and tables that have no task at hand.

Does not import Keras.
"""

_HIGHER = frozenset(
    {
        "accuracy", "bleu", "chrf", "exact_match", "f1", "macro_f1", "micro_f1", "mlm_accuracy",
        "nsp_accuracy", "pearson", "precision", "recall", "rouge1", "rouge2", "rougeL",
        "rtd_accuracy", "rtd_recall", "spearman", "window_exact", "window_f1",
    }
)  # fmt: skip
_LOWER = frozenset({"bits_per_byte", "frechet_distance", "loss", "nll", "perplexity"})


def better(metric: str) -> str:
    """Returns "higher" or "lower", or "" for a metric whose better direction is unknown.

    Args:
      metric: name of a metric; "val_" at its start is ignored.
    """
    name = metric.removeprefix("val_")
    return "higher" if name in _HIGHER else "lower" if name in _LOWER else ""
