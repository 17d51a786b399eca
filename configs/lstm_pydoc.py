"""The published LSTM generator on the text of Python's own help: no download.

    zoo train lstm_pydoc --workdir=D
    zoo generate D --prompt="The for statement"

Embedding 256, LSTM 128, softmax over 1,000 tokens: 582,120 parameters.

Measured 2026-11-24 on 2 cores of an AMD EPYC with AVX512_BF16, TensorFlow 2.21, Keras 3.15.1, by
`python -m benchmarks.recipe_result lstm_pydoc --metric loss bits_per_byte`: 3.661 nats a token,
1.773 bits a byte on the test split, 161 s of training, seed 0.
"""

from trainers.config.recipe import shipped_recipe


def get_config(arg: str = ""):
    """Variants: "" trains to the end, "debug" ends within a minute on two cores."""
    config = shipped_recipe("lstm_shakespeare", arg)
    config.model.name = "lstm_generator"
    config.model.embedding_dim = 256
    config.model.hidden_dim = 128
    config.data.source = "pydoc"
    config.data.tokenizer = "bpe"
    config.data.vocabulary_size = 1000
    if not arg:
        config.trainer.steps = 1000
        config.trainer.evaluate_every = config.trainer.checkpoint_every = 250
    return config
