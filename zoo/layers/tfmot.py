"""TF-MOT's engines, imported so that they leave Keras 3 alone.

TF-MOT's public functions refuse models of Keras 3; the engines under them work on TensorFlow's
variables, which Keras 3 has as well. Its import tells all of TensorFlow, in this process and its
children, to take the old Keras: here that is looked up before, and taken back after.
"""

import functools
import os
import types


@functools.cache
def engines() -> types.SimpleNamespace:
    """Returns the modules of pruning, quantizers and clustering."""
    import tensorflow as tf

    getattr(tf.keras, "version", None)  # from now on tf.keras is Keras 3
    former = os.environ.get("TF_USE_LEGACY_KERAS")
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

    if former is None:
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
    else:
        os.environ["TF_USE_LEGACY_KERAS"] = former
    return types.SimpleNamespace(
        cluster_config=cluster_config,
        clustering_algorithm=clustering_algorithm,
        clustering_centroids=clustering_centroids,
        pruning_impl=pruning_impl,
        pruning_schedule=pruning_schedule,
        quantizers=quantizers,
        default_8bit_quantizers=default_8bit_quantizers,
    )
