"""Sentiment of whole film reviews: a part of IMDb (Maas et al. 2011).

    zoo train imdb --workdir=D --config.init_from=W --config.data.tokenizer=W
    (zoo fetch imdb, or ZOO_DATA_DIR, first)

As `sst2`, with reviews cut after 256 tokens.
"""

from trainers.config.recipe import shipped_recipe


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, offline."""
    config = shipped_recipe("sst2", arg)
    if not arg:
        config.data.update(source="imdb", sequence_length=256, validation_size=600)
        config.model.sequence_length = 256
        config.trainer.update(
            epochs=4, global_batch_size=16, evaluate_every=300, checkpoint_every=300
        )
    return config
