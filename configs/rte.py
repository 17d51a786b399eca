"""Whether one text follows from another: RTE, as in GLUE (Wang et al. 2019, arXiv:1804.07461).

    zoo train rte --workdir=D --config.init_from=W --config.data.tokenizer=W
    (zoo fetch rte, or ZOO_DATA_DIR, first)

The split "test" is GLUE's development set. With 2,490 training pairs, small encoders are hardly
better than chance: BERT-Mini, pretrained on 3,300 million words, reaches 57.9 % (Turc et al. 2019).
"""

from trainers.config.recipe import shipped_recipe


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores, offline."""
    config = shipped_recipe("sick", arg)
    if not arg:
        config.task.num_classes = 2
        config.data.update(source="rte", validation_size=250)
        config.trainer.update(
            epochs=6, global_batch_size=16, evaluate_every=150, checkpoint_every=150
        )
    return config
