"""zoo bench RECIPE[:VARIANT] [--seconds=10] [--json] [--config.KEY=VALUE ...]: training speed.

Measures the step time, samples per second, whether the train step or the input pipeline is the
bottleneck, and FLOP/s relative to a large matrix product on this machine.
"""

import dataclasses
import json
import sys

from trainers.cli.common import Flags, run
from trainers.config.base import section
from trainers.config.compress import check_sizes
from trainers.config.data import sizes_follow_images
from trainers.config.recipe import resolve
from trainers.train import preflight
from zoo import registry
from zoo.start import start_tensorflow

_FLAGS = Flags()
_SECONDS = _FLAGS.floating("seconds", 10.0, "Duration of the measurement.", lower_bound=0.0)
_JSON = _FLAGS.boolean("json", False, "Print JSON.")


def command(argv) -> int:
    """Measures a recipe's train step and prints the results."""
    words, overrides = _FLAGS.parse(argv, __doc__, at_least=1, at_most=1, overrides=True)
    config = resolve(words[0], overrides)
    preflight.check_config(config)
    check_sizes(section(config, "compress"))
    needs_data = registry.has_loader(config.task.name) or sizes_follow_images(config.model)
    dataset = preflight.load_data(config) if needs_data else None
    start_tensorflow()

    from trainers.bench import bench

    result = bench(config, _SECONDS.value, dataset)
    if _JSON.value:
        print(json.dumps(dataclasses.asdict(result), indent=2))
        return 0
    print(f"first step        {result.first_step:.2f} s")
    print(f"step              {result.step * 1e3:.2f} ms (median)")
    print(f"training          {result.samples_per_second:,.0f} samples/s")
    if result.unit != "samples":
        print(f"                  {result.units_per_second:,.0f} {result.unit}/s")
    input_rate, cached_rate = result.input_samples_per_second, result.cached_samples_per_second
    batches = f"{result.input_batches_per_second:,.1f} batches/s"
    print(f"input pipeline    {input_rate:,.0f} samples/s ({batches}), without the step")
    print(f"cached batches    {cached_rate:,.0f} samples/s, without the input pipeline")
    print(
        f"bottleneck        {result.bottleneck}: input is {input_rate / cached_rate:.2g} x as fast"
    )
    print(f"FLOPs per update  {result.flops / 1e9:.2f} G")
    print(f"peak              {result.peak / 1e9:.0f} GFLOP/s in a 2048 matrix product")
    remark = f" ({result.remark})" if result.remark else ""
    print(f"share of peak     {result.share:.1%}{remark}")
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
