"""Kinds of questions: TREC (Li and Roth 2002), six classes such as "human" and "location".

    zoo train trec --workdir=D --config.init_from=W --config.data.tokenizer=W
    (zoo fetch trec, or ZOO_DATA_DIR, first)

As `sst2`, with 500 training rows held out.
"""

from trainers.config.recipe import shipped_recipe


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, offline."""
    config = shipped_recipe("sst2", arg)
    if not arg:
        config.task.num_classes = 6
        config.data.update(source="trec", validation_size=500)
        config.trainer.update(epochs=10, evaluate_every=150, checkpoint_every=150)
    return config
