"""A small GPT on the text of Python's own help: no download.

    zoo train gpt_pydoc --workdir=D
    zoo generate D --prompt="The for statement"

The text is `pydoc_data.topics` of the Python that runs it: about 0.7 MB, which differs a little
from version to version.

Measured 2026-11-24 on 2 cores of an AMD EPYC with AVX512_BF16, TensorFlow 2.21, Keras 3.15.1, by
`python -m benchmarks.recipe_result gpt_pydoc --metric loss bits_per_byte`: 3.059 nats a token,
1.481 bits a byte on the test split, 162 s of training, seed 0.
"""

from trainers.config.recipe import shipped_recipe


def get_config(arg: str = ""):
    """Variants: "" trains to the end, "debug" ends within a minute on two cores."""
    config = shipped_recipe("gpt_shakespeare", arg)
    config.data.source = "pydoc"
    config.data.tokenizer = "bpe"
    config.data.vocabulary_size = 1000
    config.data.packing = "best_fit"
    if not arg:
        config.trainer.steps = 300
        config.trainer.evaluate_every = config.trainer.checkpoint_every = 100
    return config
