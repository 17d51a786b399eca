"""zoo bench RECIPE[:VARIANT] [--seconds=10] [--json] [--config.KEY=VALUE ...]: how fast it trains.

Step time, samples a second, whether step or input is the bottleneck, and the share of what a large
matrix product reaches on this machine.
"""

import dataclasses
import json
import sys

from trainers.cli.common import Flags, run
from trainers.config.base import section
from trainers.config.compress import check_sizes
from trainers.config.recipe import resolve
from trainers.train import preflight
from zoo import registry
from zoo.start import start_tensorflow

_FLAGS = Flags()
_SECONDS = _FLAGS.floating("seconds", 10.0, "How long to measure.", lower_bound=0.0)
_JSON = _FLAGS.boolean("json", False, "Print JSON.")


def command(argv) -> int:
    """Measures a recipe's train step and prints the results."""
    words, overrides = _FLAGS.parse(argv, __doc__, at_least=1, at_most=1, overrides=True)
    config = resolve(words[0], overrides)
    preflight.check_config(config)
    check_sizes(section(config, "compress"))
    dataset = preflight.load_data(config) if registry.has_loader(config.task.name) else None
    start_tensorflow()

    from trainers.bench import bench

    measured = bench(config, _SECONDS.value, dataset)
    if _JSON.value:
        print(json.dumps(dataclasses.asdict(measured), indent=2))
        return 0
    print(f"first step        {measured.first_step:.2f} s")
    print(f"step              {measured.step * 1e3:.2f} ms (median)")
    print(f"training          {measured.samples_per_second:,.0f} samples/s")
    if measured.unit != "samples":
        print(f"                  {measured.units_per_second:,.0f} {measured.unit}/s")
    given, cached = measured.input_samples_per_second, measured.cached_samples_per_second
    batches = f"{measured.input_batches_per_second:,.1f} batches/s"
    print(f"input pipeline    {given:,.0f} samples/s ({batches}), without the step")
    print(f"cached batches    {cached:,.0f} samples/s, without the input pipeline")
    print(f"bottleneck        {measured.bottleneck}: input is {given / cached:.2g} x as fast")
    print(f"FLOPs per update  {measured.flops / 1e9:.2f} G")
    print(f"peak              {measured.peak / 1e9:.0f} GFLOP/s in a 2048 matrix product")
    remark = f" ({measured.remark})" if measured.remark else ""
    print(f"share of peak     {measured.share:.1%}{remark}")
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
