"""Imports internal modules of TF-MOT without switching TensorFlow to Keras 2.

TF-MOT's public functions refuse Keras 3 models, but its internal modules work on TensorFlow
variables, which Keras 3 has too. The import of TF-MOT sets TF_USE_LEGACY_KERAS, which would switch
this process and its children to Keras 2; here the variable is restored.
"""

import functools
import os
import types


@functools.cache
def engines() -> types.SimpleNamespace:
    """Returns TF-MOT's modules of pruning, quantizers and clustering."""
    import tensorflow as tf

    getattr(tf.keras, "version", None)  # fixes tf.keras to Keras 3
    previous = os.environ.get("TF_USE_LEGACY_KERAS")
    from tensorflow_model_optimization.python.core.clustering.keras import (
        cluster_config,
        clustering_algorithm,
        clustering_centroids,
    )
    from tensorflow_model_optimization.python.core.quantization.keras import quantizers
    from tensorflow_model_optimization.python.core.quantization.keras.default_8bit import (
        default_8bit_quantizers,
    )
    from tensorflow_model_optimization.python.core.sparsity.keras import (
        pruning_impl,
        pruning_schedule,
    )

    if previous is None:
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
    else:
        os.environ["TF_USE_LEGACY_KERAS"] = previous
    return types.SimpleNamespace(
        cluster_config=cluster_config,
        clustering_algorithm=clustering_algorithm,
        clustering_centroids=clustering_centroids,
        pruning_impl=pruning_impl,
        pruning_schedule=pruning_schedule,
        quantizers=quantizers,
        default_8bit_quantizers=default_8bit_quantizers,
    )
