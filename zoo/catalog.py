"""The table of models: one row a model. Loads no TensorFlow.

A new model touches three places: one file in zoo/models, one row here, one recipe in configs/.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Entry:
    """A row of the catalog.

    Attributes:
      name: what `zoo.build` and the recipes call it.
      builder: `"module:function"`, or the function itself; `builder(**arguments) -> keras.Model`.
      task: name of the task that trains it.
      parameters: count with the default arguments.
      paper: where the architecture comes from.
      licence: licence of the architecture's code here.
      arguments: builder arguments of this row; the builder's own defaults otherwise.
      tiny: builder arguments of a small variant, by which the contract tests cover the family.
      task_arguments: arguments of the task that go with the tiny variant.
      remat: regular expression of the names of the blocks that `trainer.remat` can recompute.
    """

    name: str
    builder: str | Callable
    task: str
    parameters: int
    paper: str
    licence: str = "Apache-2.0"
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tiny: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    task_arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    remat: str = ""

    @property
    def family(self) -> str:
        """The module of the builder: models of one file are one family."""
        module = self.builder.partition(":")[0] if isinstance(self.builder, str) else None
        return (module or self.builder.__module__).rpartition(".")[2]


CATALOG = (
    Entry(
        name="cnn_classifier",
        builder="zoo.models.cnn:build",
        task="image_classification",
        parameters=93_322,
        paper="LeCun et al. 1998, Gradient-based learning applied to document recognition",
        tiny={"filters": (4, 8, 8), "hidden_dim": 8, "num_classes": 3},
        remat="convolution_.*",
    ),
)
