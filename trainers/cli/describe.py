"""zoo describe NAME [--batch_size=N] [--json]: layers and size of a model.

Prints layers, parameters, FLOPs per sample, training memory at a batch size, and the recipes of the
model.
"""

import dataclasses
import json
import sys

from trainers.cli.common import Flags, run
from zoo.start import start_tensorflow

_FLAGS = Flags()
_BATCH = _FLAGS.integer("batch_size", 128, "Batch size for the memory estimate.", lower_bound=1)
_JSON = _FLAGS.boolean("json", False, "Print JSON.")


def command(argv) -> int:
    """Runs `zoo describe`; returns the exit status."""
    words, _ = _FLAGS.parse(argv, __doc__, at_least=1, at_most=1)
    from trainers.config.recipe import recipes_of
    from zoo import registry

    registry.entry(words[0])  # an unknown name is answered before TensorFlow is loaded
    start_tensorflow()
    facts = registry.describe(words[0], _BATCH.value)
    recipes = recipes_of(words[0])
    if _JSON.value:
        print(json.dumps({**dataclasses.asdict(facts), "recipes": recipes}, indent=2))
        return 0
    print(f"{facts.name}: {'; '.join(x for x in (facts.task, facts.paper, facts.licence) if x)}")
    for layer in facts.layers:
        print(f"  {layer.name:24} {layer.kind:20} {str(layer.shape):26} {layer.parameters:>12,}")
    print(f"parameters         {facts.parameters:,} ({facts.trainable:,} trainable)")
    if facts.active < facts.parameters:
        print(f"active parameters  {facts.active:,} per token")
    if facts.positions:
        print(f"positions          {facts.positions:,} per sample")
    print(f"FLOPs per sample   {facts.flops:,} in the forward pass")
    print(f"training memory    {facts.memory / 2**20:.1f} MiB at batch size {facts.batch_size}")
    print(f"recipes            {', '.join(recipes) or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
