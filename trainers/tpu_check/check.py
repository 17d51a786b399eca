"""Checks whether a recipe's train step compiles for a TPU; estimates its memory and speed."""

import dataclasses
import logging

from trainers.tpu_check.abstract import AbstractStep, Share, check_recipe, depth_of, share_of
from trainers.tpu_check.chips import parse_topology
from trainers.tpu_check.compiler import Compiler, check_installed
from trainers.tpu_check.lowering import lower

_LOG = logging.getLogger(__name__)

# Models with more than MAX_DEPTH equal blocks are compiled at two smaller depths.
MAX_DEPTH, DEPTHS = 6, (2, 4)
# Rows of a tile in a TPU's memory; the search for the largest batch uses multiples of it.
_TILE = 8
MAX_ROWS = 2**16


@dataclasses.dataclass(frozen=True)
class Program:
    """Memory and cost of a compiled step on one core.

    All but `peak` are None if the step does not fit and therefore did not compile.

    Attributes:
      peak: bytes of HBM for arguments, temporaries and code.
      arguments: bytes of weights, optimizer slots and the batch.
      temporaries: bytes of gradients, activations and other values during a step.
      code: bytes of the program.
      flops: FLOPs of one update.
      bytes: bytes read from and written to HBM in one update.
      unknown_loops: number of loops with an unknown number of iterations, counted once.
      seconds: time of the compilation.
    """

    peak: float
    arguments: float | None = None
    temporaries: float | None = None
    code: float | None = None
    flops: float | None = None
    bytes: float | None = None
    unknown_loops: float | None = None
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """Result of `check`.

    Attributes:
      topology: name of the topology, with `cores` devices of type `chip`.
      precision: precision of the recipe.
      parameters: number of parameters of the model.
      rows: examples per forward pass on one core, with `micro_batches` of them per update.
      depth: number of equal blocks of the model; 0 if it has none.
      depths: depths that were compiled, from which `program` is extrapolated linearly; () if the
        model itself was compiled.
      program: memory and cost of the step.
      usable: bytes of HBM available to a program.
      fits: whether the step fits.
      roofline: seconds of a step at the chip's peak.
      bound: "arithmetic" or "memory", whichever takes longer.
      largest_rows: largest number of examples per forward pass that fits, compiled to verify it; 0
        if none fits.
      largest_peak: bytes of HBM with `largest_rows`.
      source: source of the chip's figures.
    """

    topology: str
    chip: str
    cores: int
    precision: str
    parameters: int
    rows: int
    micro_batches: int
    depth: int
    depths: tuple[int, ...]
    program: Program
    usable: int
    fits: bool
    roofline: float | None
    bound: str
    largest_rows: int
    largest_peak: float
    source: str


def check(config, topology: str, largest: bool = True) -> CheckResult:
    """Compiles a recipe's train step for one core of a topology.

    Args:
      config: a resolved recipe.
      topology: name of a topology, such as `v5e:2x4`.
      largest: whether to search for the largest batch, which takes more compilations.

    Raises:
      UsageError: for an unknown topology, a recipe that TPUs do not support, or missing packages.
      RunError: if the step does not compile; the message names the operation.
    """
    chip, cores = parse_topology(topology)
    check_recipe(config)
    share, depth = share_of(config, cores), depth_of(config)
    check_installed()
    with Compiler(topology) as compiler:
        steps = Steps(config, depth, compiler)
        program = steps.compile(share)
        fits = program.peak <= chip.usable
        rows, peak = share.rows if fits else 0, program.peak if fits else 0.0
        if largest:
            _LOG.info("searching for the largest batch that fits")
            rows, peak = largest_rows(
                lambda n: steps.compile(Share(n, share.micro_batches)).peak,
                share.rows, program.peak, chip.usable,
            )  # fmt: skip
    roofline, bound = None, ""
    if program.flops is not None:
        arithmetic, memory = program.flops / chip.flops, program.bytes / chip.bandwidth
        roofline = max(arithmetic, memory)
        bound = "arithmetic" if arithmetic >= memory else "memory"
    return CheckResult(
        topology, chip.name, cores, config.trainer.precision, steps.parameters, share.rows,
        share.micro_batches, depth, steps.depths, program, chip.usable, fits, roofline, bound,
        rows, peak, chip.source,
    )  # fmt: skip


class Steps:
    """A recipe's step, or its steps at the two depths from which a deep model is extrapolated."""

    def __init__(self, config, depth: int, compiler):
        self.depth, self.compiler = depth, compiler
        self.depths = DEPTHS if depth > MAX_DEPTH else ()
        self.steps = []
        for blocks in self.depths or (0,):
            _LOG.info(f"building the train step{_of(blocks)}")
            self.steps.append(AbstractStep(config, blocks) if blocks else AbstractStep(config))
        counts = [step.parameters for step in self.steps]
        self.parameters = int(line(self.depths, counts, depth)) if self.depths else counts[0]

    def compile(self, share: Share) -> Program:
        """Compiles the update of a core's share; a deep model is compiled at two depths."""
        programs = []
        for blocks, step in zip(self.depths or (0,), self.steps, strict=True):
            description = f"{_of(blocks)}, {share.rows:,} examples per core"
            _LOG.info(f"tracing the train step{description}")
            hlo = lower(step, share)
            _LOG.info(f"compiling the train step{description} for the TPU")
            programs.append(as_program(self.compiler.compile(hlo)))
        if not self.depths:
            return programs[0]
        parts = zip(*(dataclasses.astuple(program) for program in programs), strict=True)
        *values, seconds = (
            None if None in pair else line(self.depths, pair, self.depth) for pair in parts
        )
        return Program(*values, sum(program.seconds for program in programs))


def _of(blocks: int) -> str:
    return f" of {blocks} blocks" if blocks else ""


def as_program(result: dict) -> Program:
    """Returns the `Program` for a result of `Compiler.compile`."""
    if "used" in result:
        return Program(result["used"])
    outputs = result["outputs"] - result["aliased"]  # values updated in place count once
    parts = result["arguments"] + outputs, result["temporaries"], result["code"]
    cost = result["flops"], result["bytes"], result["unknown_loops"]
    return Program(sum(parts), *parts, *cost, result["seconds"])


def line(places, values, at: float) -> float:
    """Returns the value at `at` of the line through two points."""
    (x, z), (y, w) = places, values
    return y + (w - y) * (at - x) / (z - x)


def largest_rows(peak_of, rows: int, peak: float, usable: int) -> tuple[int, float]:
    """Searches the largest number of rows that fits, since memory is nearly linear in rows.

    A second size gives the line, and a third verifies the number that follows from it. If the third
    does not fit, or leaves more than a tenth free, a fourth size follows from a new line.

    Args:
      peak_of: function from rows to bytes, by a compilation.
      rows: number of rows with the known peak.
      peak: bytes for `rows`.
      usable: available bytes.

    Returns:
      `(rows, bytes)` of the largest size that was compiled and fits; (0, 0.0) if none fits.
    """
    peaks = {rows: peak}

    def largest_fitting():
        return max((n for n, p in peaks.items() if p <= usable), default=0)

    def measure(candidate):
        if candidate not in peaks:
            peaks[candidate] = peak_of(candidate)
        return peaks[candidate]

    measure(max(2 * rows, _TILE) if peak <= usable else max(rows // 2, 1))
    for _ in range(2):
        nearest_rows = largest_fitting() or min(peaks)
        other = min(
            (n for n in peaks if n != nearest_rows),
            key=lambda n: abs(n - nearest_rows),
            default=None,
        )
        if other is None:
            break
        slope = (peaks[other] - peaks[nearest_rows]) / (other - nearest_rows)
        free = usable - peaks[nearest_rows]
        candidate = int(nearest_rows + free / slope) if slope > 0 else MAX_ROWS
        too_many_rows = min((n for n, p in peaks.items() if p > usable), default=MAX_ROWS + 1)
        candidate = min(candidate, too_many_rows - 1, MAX_ROWS)
        candidate -= candidate % _TILE if candidate >= _TILE else 0
        if candidate < 1 or candidate <= largest_fitting():
            break
        measure(candidate)
        if 0.9 * usable <= peaks[candidate] <= usable:
            break
    best = largest_fitting()
    return best, peaks[best] if best else 0.0
