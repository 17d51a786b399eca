"""Whether a recipe's train step compiles for a TPU, fits into it, and how fast it could be."""

import dataclasses
import sys

from trainers.tpu_check.abstract import AbstractStep, Share, check_recipe, depth_of, share_of
from trainers.tpu_check.chips import parse_topology
from trainers.tpu_check.compiler import Compiler, check_installed
from trainers.tpu_check.lowering import lower

# A deeper model is compiled at these two depths: its blocks are equal.
DEEP, DEPTHS = 6, (2, 4)
# Rows of a tile of a TPU's memory; batches are looked for in multiples of it.
_TILE = 8
MOST_ROWS = 2**16


@dataclasses.dataclass(frozen=True)
class Program:
    """What a compiled step takes; all of one core.

    Attributes:
      peak: bytes of HBM: arguments, temporaries and code.
      arguments: weights, optimizer slots and the batch.
      temporaries: gradients, activations and what else lives during a step.
      code: the program itself.
      flops: of one update; None where it does not fit, and so did not compile.
      bytes: read and written in HBM in one update.
      unknown_loops: how many are counted once, for they do not say how often they run.
      seconds: the compilation took.
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
class Checked:
    """The answer.

    Attributes:
      topology: name of it; `cores` devices of a `chip`.
      precision: of the recipe.
      parameters: of the model; with `depths` those of the larger depth compiled.
      rows: examples that a core computes at once, `micro_batches` times an update.
      depth: equal blocks of the model; 0 where it has none.
      depths: those that were compiled, and from which `program` is a line; () for the model itself.
      program: what the step takes.
      usable: bytes of HBM that the compiler gives to a program.
      fits: whether it does.
      roofline: seconds of a step at the chip's peak.
      bound: of "arithmetic" or "memory", which takes that long.
      largest_rows: the most examples at once that fit, by a compilation of their own; 0 for none.
      largest_peak: bytes of HBM that they take.
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


def check(config, topology: str, largest: bool = True) -> Checked:
    """Compiles a recipe's train step for one core of a topology.

    Args:
      config: a resolved recipe.
      topology: as in `v5e:2x4`.
      largest: whether to look for the largest batch, which takes some compilations more.

    Raises:
      UsageError: for an unknown topology, a recipe that no TPU takes, or missing packages.
      RunError: where the step does not compile; it names the operation.
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
            _say("looking for the largest batch that fits")
            rows, peak = largest_rows(
                lambda n: steps.compile(Share(n, share.micro_batches)).peak,
                share.rows, program.peak, chip.usable,
            )  # fmt: skip
    roofline, bound = None, ""
    if program.flops is not None:
        arithmetic, memory = program.flops / chip.flops, program.bytes / chip.bandwidth
        roofline = max(arithmetic, memory)
        bound = "arithmetic" if arithmetic >= memory else "memory"
    return Checked(
        topology, chip.name, cores, config.trainer.precision, steps.parameters, share.rows,
        share.micro_batches, depth, steps.depths, program, chip.usable, fits, roofline, bound,
        rows, peak, chip.source,
    )  # fmt: skip


class Steps:
    """A recipe's step at one depth, or at the two by which a deep model's is found."""

    def __init__(self, config, depth: int, compiler):
        self.depth, self.compiler = depth, compiler
        self.depths = DEPTHS if depth > DEEP else ()
        self.steps = []
        for blocks in self.depths or (0,):
            _say(f"building the train step{_of(blocks)}")
            self.steps.append(AbstractStep(config, blocks) if blocks else AbstractStep(config))
        counts = [step.parameters for step in self.steps]
        self.parameters = int(line(self.depths, counts, depth)) if self.depths else counts[0]

    def compile(self, share: Share) -> Program:
        """Compiles the update of a core's share; for a deep model, twice."""
        found = []
        for blocks, step in zip(self.depths or (0,), self.steps, strict=True):
            what = f"{_of(blocks)}, {share.rows:,} examples a core"
            _say(f"tracing the train step{what}")
            hlo = lower(step, share)
            _say(f"compiling the train step{what}, for the TPU")
            found.append(as_program(self.compiler.compile(hlo)))
        if not self.depths:
            return found[0]
        parts = zip(*(dataclasses.astuple(one) for one in found), strict=True)
        *values, seconds = (
            None if None in pair else line(self.depths, pair, self.depth) for pair in parts
        )
        return Program(*values, sum(one.seconds for one in found))


def _say(stage: str) -> None:
    """Prints what takes the next seconds, or minutes."""
    print(f"zoo: {stage}", file=sys.stderr, flush=True)


def _of(blocks: int) -> str:
    return f" of {blocks} blocks" if blocks else ""


def as_program(answer: dict) -> Program:
    """From what `Compiler.compile` returns."""
    if "used" in answer:
        return Program(answer["used"])
    kept = answer["outputs"] - answer["aliased"]  # what is updated in its place is counted once
    parts = answer["arguments"] + kept, answer["temporaries"], answer["code"]
    cost = answer["flops"], answer["bytes"], answer["unknown_loops"]
    return Program(sum(parts), *parts, *cost, answer["seconds"])


def line(places, values, at: float) -> float:
    """Returns the value at a place of the line through two points."""
    (x, z), (y, w) = places, values
    return y + (w - y) * (at - x) / (z - x)


def largest_rows(peak_of, rows: int, peak: float, usable: int) -> tuple[int, float]:
    """Finds the most rows that fit: memory is nearly a line in them.

    A second size gives the line, a third checks what it says; where that does not fit, or leaves a
    tenth free, a fourth follows from the line through it.

    Args:
      peak_of: from rows to bytes, by a compilation.
      rows: of which `peak` is known.
      peak: see there.
      usable: bytes that there are.

    Returns:
      `(rows, bytes)` of the largest that was compiled and fits; (0, 0.0) where none did.
    """
    known = {rows: peak}

    def fitting():
        return max((n for n, p in known.items() if p <= usable), default=0)

    def measure(number):
        if number not in known:
            known[number] = peak_of(number)
        return known[number]

    measure(max(2 * rows, _TILE) if peak <= usable else max(rows // 2, 1))
    for _ in range(2):
        below = fitting() or min(known)
        other = min((n for n in known if n != below), key=lambda n: abs(n - below), default=None)
        if other is None:
            break
        slope = (known[other] - known[below]) / (other - below)
        free = usable - known[below]
        number = int(below + free / slope) if slope > 0 else MOST_ROWS
        over = min((n for n, p in known.items() if p > usable), default=MOST_ROWS + 1)
        number = min(number, over - 1, MOST_ROWS)
        number -= number % _TILE if number >= _TILE else 0
        if number < 1 or number <= fitting():
            break
        measure(number)
        if 0.9 * usable <= known[number] <= usable:
            break
    found = fitting()
    return found, known[found] if found else 0.0
