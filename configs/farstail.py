"""Entailment in Persian: FarsTail (Amirkhani et al. 2023, arXiv:2009.08820), three classes.

    zoo train farstail --workdir=D --config.init_from=W --config.data.tokenizer=W
    (zoo fetch farstail, or ZOO_DATA_DIR, first)

W is the work directory of `encoder_persian`.
"""

from trainers.config.recipe import shipped_recipe


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, offline."""
    config = shipped_recipe("sick", arg)
    if not arg:
        config.data.update(source="farstail", normalization="persian")
        config.trainer.update(epochs=5, evaluate_every=230, checkpoint_every=230)
    return config
