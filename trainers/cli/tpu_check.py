"""zoo tpu_check RECIPE[:VARIANT] --topology=v5e:2x4 [--json] [--config.KEY=VALUE ...]: fit for TPU?

Compiles the whole train step for that TPU on a machine without one: whether it compiles, whether it
fits into the memory, how fast a step could be at best, and the largest batch.
"""

import dataclasses
import json
import sys

from trainers.cli.common import FAILED, Flags, run
from trainers.config.base import section
from trainers.config.compress import check_sizes
from trainers.config.recipe import resolve
from trainers.config.trainer import check_batch, check_tpu
from trainers.tpu_check.chips import CHIPS, parse_topology
from trainers.tpu_check.compiler import check_installed
from trainers.train import preflight
from zoo.errors import UsageError
from zoo.start import start_tensorflow

_FLAGS = Flags()
_TOPOLOGY = _FLAGS.string("topology", None, "Chips and their shape: v5e:2x4.")
_JSON = _FLAGS.boolean("json", False, "Print JSON.")


def command(argv) -> int:
    """Compiles and prints; 1 where the step does not fit."""
    words, overrides = _FLAGS.parse(argv, __doc__, at_least=1, at_most=1, overrides=True)
    if not _TOPOLOGY.value:
        raise UsageError("zoo tpu_check needs --topology, such as v5e:2x4.")
    _, cores = parse_topology(_TOPOLOGY.value)  # what is wrong is said before TensorFlow is loaded
    config = resolve(words[0], overrides)
    check_tpu(config.trainer)
    preflight.check_config(config)
    check_batch(config, cores)
    check_sizes(section(config, "compress"))
    check_installed()
    start_tensorflow()

    from trainers.tpu_check.check import check

    found = check(config, _TOPOLOGY.value)
    print(json.dumps(dataclasses.asdict(found), indent=2) if _JSON.value else described(found))
    return 0 if found.fits else FAILED


def described(found) -> str:
    """Returns the answer in lines."""
    from trainers.tpu_check.check import MOST_ROWS

    program, chip = found.program, CHIPS[found.chip]
    times = f"{found.micro_batches} times " if found.micro_batches > 1 else ""
    lines = [
        f"{found.topology:19} {found.cores} cores, on each {times}{found.rows} examples an update; "
        f"{found.parameters:,} parameters, {found.precision}"
    ]
    if found.depths:
        low, high = found.depths
        lines.append(
            f"{'extrapolated':19} from {low} and {high} blocks, compiled, to {found.depth}"
        )
    lines.append(
        f"{'compiles':19} yes, in {program.seconds:.0f} s"
        if program.flops is not None
        else f"{'compiles':19} as far as the memory, of which there is too little"
    )
    lines.append(
        f"{'peak HBM':19} {_gib(program.peak)} of {_gib(found.usable)}: "
        + ("fits" if found.fits else "does not fit")
    )
    if program.flops is not None:
        least = "at least " if program.unknown_loops else ""
        lines += [
            f"{'':19} weights, slots and batch {_gib(program.arguments)}, temporaries "
            f"{_gib(program.temporaries)}, program {_gib(program.code)}",
            f"{'FLOPs a step':19} {least}{program.flops / 1e9:,.2f} G a core",
            f"{'bytes a step':19} {least}{program.bytes / 1e9:,.2f} GB a core",
            f"{'step at best':19} {found.roofline * 1e3:,.3f} ms, bound by {found.bound} "
            f"({chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:.0f} GB/s: {found.source})",
        ]
    limit = ", and more were not tried" if found.largest_rows == MOST_ROWS else ""
    what = "micro batch" if found.micro_batches > 1 else "batch"
    lines.append(
        f"largest {what:11} {found.largest_rows:,} examples a core, compiled: "
        f"{_gib(found.largest_peak)}{limit}"
        if found.largest_rows
        else f"largest {what:11} none was found that fits"
    )
    lines.append(f"{'not covered':19} the all-reduce of gradients between cores, and the infeed")
    return "\n".join(lines)


def _gib(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**28 else f"{count / 2**20:,.1f} MiB"


if __name__ == "__main__":
    sys.exit(run(command))
