"""Folders of original data files and of caches."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Returns the folder of files that can be created again: ZOO_CACHE_DIR or the user's cache."""
    if folder := os.environ.get("ZOO_CACHE_DIR"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "keras-zoo"


def data_dir() -> Path:
    """Returns the folder of original files, with one folder per dataset.

    The folder is ZOO_DATA_DIR, or `data` in the cache folder.
    """
    if folder := os.environ.get("ZOO_DATA_DIR"):
        return Path(folder).expanduser()
    return cache_dir() / "data"
