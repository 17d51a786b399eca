"""Where original files lie, and what is made from them."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Returns the folder of what can be made again: ZOO_CACHE_DIR or the user's cache."""
    if folder := os.environ.get("ZOO_CACHE_DIR"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "keras-zoo"


def data_dir() -> Path:
    """Returns the folder of original files, one folder a data set: ZOO_DATA_DIR or in the cache."""
    if folder := os.environ.get("ZOO_DATA_DIR"):
        return Path(folder).expanduser()
    return cache_dir() / "data"
