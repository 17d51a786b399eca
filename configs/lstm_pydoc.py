"""The published LSTM generator on the text of Python's built-in help, which needs no download.

    zoo train lstm_pydoc --workdir=D
    zoo generate D --prompt="The for statement"

Embedding 256, LSTM 128, softmax over 1,000 tokens: 582,120 parameters.

Measured 2026-11-24 on 2 cores of an AMD EPYC with AVX512_BF16, TensorFlow 2.21, Keras 3.15.1, by
`python -m benchmarks.recipe_result lstm_pydoc --metric loss bits_per_byte`: test loss 3.661 nats
per token, 1.773 bits per byte, 161 s of training, seed 0.
"""

from trainers.config.recipe import shipped_recipe


def get_config(arg: str = ""):
    """Variants: "" is the full run, "debug" ends within a minute on two cores."""
    config = shipped_recipe("lstm_shakespeare", arg)
    config.model.update(name="lstm_generator", embedding_dim=256, hidden_dim=128)
    config.data.update(source="pydoc", tokenizer="bpe", vocabulary_size=1000)
    if not arg:
        config.trainer.update(steps=1000, evaluate_every=250, checkpoint_every=250)
    return config
