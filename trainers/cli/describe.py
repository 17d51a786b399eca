"""zoo describe NAME [--batch_size=N] [--json]: what a model is made of.

Layers, parameters, FLOPs a sample, memory of training at a batch size, and the recipes that use it.
"""

import dataclasses
import json
import sys

from trainers.cli.common import Flags, run
from zoo.start import start_tensorflow

_FLAGS = Flags()
_BATCH = _FLAGS.integer("batch_size", 128, "Batch for the memory estimate.", lower_bound=1)
_JSON = _FLAGS.boolean("json", False, "Print JSON.")


def command(argv) -> int:
    """Prints the description."""
    words, _ = _FLAGS.parse(argv, __doc__, at_least=1, at_most=1)
    from trainers.config.recipe import recipes_of
    from zoo import registry

    registry.entry(words[0])  # an unknown name is answered before TensorFlow is loaded
    start_tensorflow()
    found = registry.describe(words[0], _BATCH.value)
    recipes = recipes_of(words[0])
    if _JSON.value:
        print(json.dumps({**dataclasses.asdict(found), "recipes": recipes}, indent=2))
        return 0
    print(f"{found.name}: {'; '.join(x for x in (found.task, found.paper, found.licence) if x)}")
    for layer in found.layers:
        print(f"  {layer.name:24} {layer.kind:20} {str(layer.shape):26} {layer.parameters:>12,}")
    print(f"parameters         {found.parameters:,} ({found.trainable:,} trainable)")
    if found.positions:
        print(f"positions          {found.positions:,} in a sample")
    print(f"FLOPs a sample     {found.flops:,} forward")
    print(f"training memory    {found.memory / 2**20:.1f} MiB at batch size {found.batch_size}")
    print(f"recipes            {', '.join(recipes) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
