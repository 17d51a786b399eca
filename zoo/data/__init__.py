"""What the models learn from. Imports no TensorFlow."""

from zoo.data.datasets import (
    Dataset,
    cache_dir,
    data_dir,
    list_datasets,
    load,
    register_dataset,
)

__all__ = ["Dataset", "cache_dir", "data_dir", "list_datasets", "load", "register_dataset"]
