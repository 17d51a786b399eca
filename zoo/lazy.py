"""Heavy libraries, imported where they are first used.

The modules of tasks and data sets are imported before TensorFlow is, so that a wrong recipe is
refused at once, and `zoo --help` loads nothing.
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
