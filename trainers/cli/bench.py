"""zoo bench RECIPE[:VARIANT] [--seconds=10] [--json] [--config.KEY=VALUE ...]: how fast it trains.

Step time, samples a second, whether step or input is the bottleneck, and the share of what a large
matrix product reaches on this machine.
"""

import dataclasses
import json
import sys

from absl import flags

from trainers.cli.common import json_flag, modules_flag, parse, run
from trainers.config.compress_rules import check_sizes
from trainers.config.recipe import resolve
from trainers.train import preflight
from zoo import registry
from zoo.start import start_tensorflow

_FLAGS = flags.FlagValues()
_SECONDS = flags.DEFINE_float(
    "seconds", 10.0, "How long to measure.", lower_bound=0.0, flag_values=_FLAGS
)
_JSON = json_flag(_FLAGS)
_IMPORT = modules_flag(_FLAGS)


def command(argv) -> int:
    """Measures and prints."""
    words, overrides = parse(
        _FLAGS, argv, __doc__, at_least=1, at_most=1, overrides=True, modules=_IMPORT
    )
    config = resolve(words[0], overrides)
    preflight.check_config(config)
    check_sizes(config.compress)
    dataset = preflight.load_data(config) if registry.makes_data(config.task.name) else None
    start_tensorflow()

    from trainers.bench import bench

    found = bench(config, _SECONDS.value, dataset)
    if _JSON.value:
        print(json.dumps(dataclasses.asdict(found), indent=2))
        return 0
    print(f"first step        {found.first_step:.2f} s")
    print(f"step              {found.step * 1e3:.2f} ms (median)")
    print(f"training          {found.samples_per_second:,.0f} samples/s")
    if found.unit != "samples":
        print(f"                  {found.units_per_second:,.0f} {found.unit}/s")
    given, taken = found.input_samples_per_second, found.appetite
    batches = f"{found.input_batches_per_second:,.1f} batches/s"
    print(f"input pipeline    {given:,.0f} samples/s ({batches}), with no step behind it")
    print(f"step's appetite   {taken:,.0f} samples/s, with its batches at hand")
    print(f"bottleneck        {found.bottleneck}: input gives {given / taken:.2g} x the appetite")
    print(f"FLOPs an update   {found.flops / 1e9:.2f} G")
    print(f"machine's peak    {found.peak / 1e9:.0f} GFLOP/s in a 2048 matrix product")
    remark = f" ({found.remark})" if found.remark else ""
    print(f"share of it       {found.share:.1%}{remark}")
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
