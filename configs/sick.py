"""Entailment, neutral or contradiction: SICK (Marelli et al. 2014), three classes of pairs.

    zoo train sick --workdir=D --config.init_from=W --config.data.tokenizer=W
    (zoo fetch sick, or ZOO_DATA_DIR, first)

The head compares the means of both texts (task.pooling=pair).
"""

from trainers.config.recipe import shipped_recipe


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, offline.

    How related the texts are, a number from 1 to 5, with Pearson's and Spearman's correlation:
    --config.task.output=number --config.data.columns=sentence_A,sentence_B,relatedness_score
    """
    config = shipped_recipe("sst2", arg)
    config.task.pooling = "pair"
    if arg:
        config.data.source = "synthetic:inference"
        return config
    config.task.num_classes = 3
    config.data.update(source="sick", validation_size=0)
    config.trainer.update(epochs=10, evaluate_every=140, checkpoint_every=140)
    return config
