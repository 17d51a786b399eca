"""Proxies of heavy libraries, which are imported on first use.

Modules of tasks and datasets are imported before TensorFlow, so that a wrong recipe fails at once.
"""

import importlib


class _Lazy:
    def __init__(self, module: str):
        self._module = module

    def __getattr__(self, name: str):
        return getattr(importlib.import_module(self._module), name)


keras = _Lazy("keras")
ops = _Lazy("keras.ops")
tf = _Lazy("tensorflow")
PIL = _Lazy("PIL")
Image = _Lazy("PIL.Image")
ImageOps = _Lazy("PIL.ImageOps")
