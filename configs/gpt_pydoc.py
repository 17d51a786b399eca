"""A small GPT on the text of Python's built-in help, which needs no download.

    zoo train gpt_pydoc --workdir=D
    zoo generate D --prompt="The for statement"

The text is `pydoc_data.topics` of the Python that runs the recipe: about 0.7 MB, which differ
slightly between Python versions.

Measured 2026-11-24 on 2 cores of an AMD EPYC with AVX512_BF16, TensorFlow 2.21, Keras 3.15.1, by
`python -m benchmarks.recipe_result gpt_pydoc --metric loss bits_per_byte`: test loss 3.059 nats per
token, 1.481 bits per byte, 162 s of training, seed 0.
"""

from trainers.config.recipe import shipped_recipe


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores."""
    config = shipped_recipe("gpt_shakespeare", arg)
    config.data.update(source="pydoc", tokenizer="bpe", vocabulary_size=1000, packing="best_fit")
    if not arg:
        config.trainer.update(steps=300, evaluate_every=100, checkpoint_every=100)
    return config
