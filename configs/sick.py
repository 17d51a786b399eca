"""Entailment, neutral or contradiction: SICK (Marelli et al. 2014), three classes of pairs.

    zoo train sick --workdir=D --config.init_from=W --config.data.tokenizer=W
    (zoo fetch sick, or ZOO_DATA_DIR, first)

The head compares the means of both texts (task.pooling=pair).

Measured 2026-11-30 on 2 cores of an Intel Xeon at 2.8 GHz with AVX512, TensorFlow 2.21, Keras
3.15.1, float32, accuracy on the test split, mean (lowest to highest) of seeds 0, 1 and 2, the rate
chosen from two on the validation split (`python -m benchmarks.finetune sick`):

    linear_text                      81.7 % (81.6 to 81.8 %)      13 processor seconds
    this recipe from scratch         79.5 % (79.4 to 79.6 %)     332
    pretrained by encoder_wiki       80.6 % (80.2 to 81.2 %)     327

Pretraining helps, but not enough to reach the linear model, which has features for the words that
both texts share. The pretrained encoder overfits: its validation loss is lowest after three or four
of ten epochs.
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
