"""zoo tpu_check RECIPE[:VARIANT] --topology=v5e:2x4 [--json] [--config.KEY=VALUE ...]

Compiles the train step for this TPU on a machine without a TPU. Reports whether the step compiles
and fits into the memory, a lower bound of the step time, and the largest batch that fits.
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
_TOPOLOGY = _FLAGS.string("topology", None, "TPU type and topology, such as v5e:2x4.")
_JSON = _FLAGS.boolean("json", False, "Print JSON.")


def command(argv) -> int:
    """Compiles and prints; returns 1 if the step does not fit in memory."""
    words, overrides = _FLAGS.parse(argv, __doc__, at_least=1, at_most=1, overrides=True)
    if not _TOPOLOGY.value:
        raise UsageError("zoo tpu_check requires --topology, such as v5e:2x4.")
    _, cores = parse_topology(_TOPOLOGY.value)  # fails before TensorFlow is loaded
    config = resolve(words[0], overrides)
    check_tpu(config.trainer, config.task)
    preflight.check_config(config)
    check_batch(config, cores)
    check_sizes(section(config, "compress"))
    check_installed()
    start_tensorflow()

    from trainers.tpu_check.check import check

    outcome = check(config, _TOPOLOGY.value)
    print(
        json.dumps(dataclasses.asdict(outcome), indent=2) if _JSON.value else format_result(outcome)
    )
    return 0 if outcome.fits else FAILED


def format_result(outcome) -> str:
    """Returns the result as text."""
    from trainers.tpu_check.check import MAX_ROWS

    program, chip = outcome.program, CHIPS[outcome.chip]
    times = f"{outcome.micro_batches} times " if outcome.micro_batches > 1 else ""
    lines = [
        f"{outcome.topology:19} {outcome.cores} cores, {times}{outcome.rows} examples per core and "
        f"update; {outcome.parameters:,} parameters, {outcome.precision}"
    ]
    if outcome.depths:
        low, high = outcome.depths
        lines.append(
            f"{'extrapolated':19} from compilations of {low} and {high} blocks to {outcome.depth}"
        )
    lines.append(
        f"{'compiles':19} yes, in {program.seconds:.0f} s"
        if program.flops is not None
        else f"{'compiles':19} no, because the step does not fit in the memory"
    )
    lines.append(
        f"{'peak HBM':19} {_gib(program.peak)} of {_gib(outcome.usable)}: "
        + ("fits" if outcome.fits else "does not fit")
    )
    if program.flops is not None:
        least = "at least " if program.unknown_loops else ""
        lines += [
            f"{'':19} weights, slots and batch {_gib(program.arguments)}, temporaries "
            f"{_gib(program.temporaries)}, program {_gib(program.code)}",
            f"{'FLOPs per step':19} {least}{program.flops / 1e9:,.2f} G per core",
            f"{'bytes per step':19} {least}{program.bytes / 1e9:,.2f} GB per core",
            f"{'minimum step time':19} {outcome.roofline * 1e3:,.3f} ms, bound by {outcome.bound} "
            f"({chip.flops / 1e12:.0f} TFLOP/s, {chip.bandwidth / 1e9:.0f} GB/s: {outcome.source})",
        ]
    limit = "; larger batches were not tried" if outcome.largest_rows == MAX_ROWS else ""
    batch_kind = "micro batch" if outcome.micro_batches > 1 else "batch"
    lines.append(
        f"largest {batch_kind:11} {outcome.largest_rows:,} examples per core, compiled: "
        f"{_gib(outcome.largest_peak)}{limit}"
        if outcome.largest_rows
        else f"largest {batch_kind:11} no compiled batch fits"
    )
    lines.append(f"{'not covered':19} the all-reduce of gradients between cores, and the infeed")
    return "\n".join(lines)


def _gib(count: float) -> str:
    return f"{count / 2**30:,.2f} GiB" if count >= 2**28 else f"{count / 2**20:,.1f} MiB"


if __name__ == "__main__":
    sys.exit(run(command))
