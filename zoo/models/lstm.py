"""Recurrent text generator: embedding, LSTM (Hochreiter, Schmidhuber 1997), softmax.

The default layers are the published ones: Embedding 256, LSTM 128, and Dense with a softmax over
the vocabulary. They have 582,120 parameters for a vocabulary of 1,000.
"""

import keras
from keras import layers

from zoo.layers.dropout import Dropout


def build(
    vocabulary_size: int = 1000,
    embedding_dim: int = 256,
    hidden_dim: int = 128,
    num_layers: int = 1,
    dropout: float = 0.0,
    name: str = "lstm_generator",
) -> keras.Model:
    """Builds the generator.

    Args:
      vocabulary_size: number of tokens.
      embedding_dim: width of the embedding.
      hidden_dim: units of each LSTM.
      num_layers: number of stacked LSTMs.
      dropout: dropout rate of the output of each LSTM.
      name: name of the Keras model.

    Returns:
      A Functional model from {"tokens": (B, T) int32} to the next token's probabilities
      (B, T, vocabulary_size) at every position. The LSTM state is not reset between the documents
      of a row.

    Raises:
      ValueError: if `num_layers` is less than 1.
    """
    if num_layers < 1:
        raise ValueError(f"num_layers must be at least 1. Received: {num_layers}.")
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(vocabulary_size, embedding_dim, name="embedding")(tokens)
    for i in range(num_layers):
        x = layers.LSTM(hidden_dim, return_sequences=True, name=f"lstm_{i}")(x)
        if dropout:
            x = Dropout(dropout, name=f"dropout_{i}")(x)
    x = layers.Dense(vocabulary_size, activation="softmax", dtype="float32", name="probabilities")(
        x
    )
    return keras.Model({"tokens": tokens}, x, name=name)
