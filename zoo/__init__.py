"""Keras Zoo: named Keras 3 models, and their data and tasks.

    >>> import zoo
    >>> zoo.list_models("cnn*")
    ['cnn_classifier']
    >>> model = zoo.build("cnn_classifier", num_classes=10)   # a plain keras.Model
    >>> trained = zoo.load("/tmp/cnn")                        # the model of a work directory

Importing this package does not import TensorFlow; building a model does, without TensorFlow's
start-up logs on stderr (zoo/quiet.py). Messages go through Python's logging (zoo/logs.py).
"""

from zoo import logs, quiet

logs.install("zoo")
quiet.install()

from zoo.registry import build, describe, list_models, load, register, register_task  # noqa: E402
from zoo.rows import row_weights, use_row_weights  # noqa: E402

__all__ = [
    "build", "describe", "list_models", "load", "register", "register_task", "row_weights",
    "use_row_weights",
]  # fmt: skip
__version__ = "0.1.0"
