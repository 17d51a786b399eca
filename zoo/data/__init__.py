"""Datasets and corpora by name. Does not import TensorFlow."""

from zoo.data.datasets import Dataset, list_datasets, register_dataset
from zoo.data.sources import load
from zoo.data.text import corpus_catalog  # noqa: F401  registers the corpora
from zoo.data.text.corpora import Corpus, list_corpora, load_corpus, register_corpus
from zoo.data.text.labeled import catalog  # noqa: F401  registers sets of labeled texts
from zoo.data.text.questions import catalog as question_catalog  # noqa: F401  registers its sets
from zoo.storage.paths import cache_dir, data_dir

__all__ = [
    "Corpus",
    "Dataset",
    "cache_dir",
    "data_dir",
    "list_corpora",
    "list_datasets",
    "load",
    "load_corpus",
    "register_corpus",
    "register_dataset",
]
