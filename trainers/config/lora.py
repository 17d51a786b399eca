"""The section `lora`: low-rank adapters on a frozen model, and their rules that need no weights."""

from math import inf

from zoo.errors import UsageError, check_minimums, check_name, compile_pattern, require

BASES = ("float", "int8", "int4")

KEYS = {
    "rank": 0,  # columns of A and rows of B of each adapter; 0: no adapters
    "alpha": 16.0,  # the update of a kernel is alpha / rank * A B
    "pattern": "",  # regular expression of the paths of layers; "": see trainers.lora.adapters
    "dropout": 0.0,  # dropout rate of the input of each adapter
    "base": "float",  # format of the frozen kernels below adapters while the run trains
    "train": "",  # regular expression of the paths of variables that train without an adapter
}


def check(lora, compress_techniques) -> None:
    """Checks the section `lora`.

    Args:
      lora: the section, with all its keys.
      compress_techniques: names of the techniques of the section `compress` that are in use.

    Raises:
      UsageError: for a value out of its range, or a technique that changes the frozen kernels.
    """
    rank = lora["rank"]
    check_minimums("lora", {"rank": rank})
    changed_keys = [key for key, value in KEYS.items() if lora[key] != value]
    if not rank and changed_keys:
        raise UsageError(
            f"lora.rank must be at least 1 if lora.{changed_keys[0]} is set. Received: 0."
        )
    require(0 < lora["alpha"] < inf, "lora.alpha", "positive", lora["alpha"])
    require(0 <= lora["dropout"] < 1, "lora.dropout", "in [0, 1)", lora["dropout"])
    check_name("format of lora.base", lora["base"], BASES)
    for key in ("pattern", "train"):
        compile_pattern(f"lora.{key}", lora[key])
    others = [name for name in compress_techniques if name != "distill"]
    if rank and others:
        raise UsageError(
            f"lora does not support compress.{others[0]}, which changes the frozen kernels: first "
            "train with lora, then compress the merged model with `zoo compress`."
        )


def check_strategy(lora, strategy: str) -> None:
    """Raises `UsageError` for a strategy that does not support adapters."""
    if lora["rank"] and strategy == "multi_worker":
        raise UsageError(
            "lora does not support trainer.strategy=multi_worker: only the first worker reads the "
            "frozen weights. Set trainer.strategy=mirrored or one_device."
        )
