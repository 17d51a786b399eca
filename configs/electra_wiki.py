"""Pretraining of a small encoder on English Wikipedia and novels: replaced tokens (ELECTRA).

zoo train electra_wiki --workdir=D     (zoo fetch wikipedia_en novels_en, or ZOO_DATA_DIR, first)

The encoder, the data and the schedule are those of `encoder_wiki`.
"""

from trainers.config.recipe import shipped_recipe


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, offline."""
    config = shipped_recipe("encoder_wiki", arg)
    config.model.name = "electra_nano"
    config.model.update({"generator_dim": 0, "generator_heads": 0})
    config.task.name = "electra"
    return config
