"""TPUs by name: what a chip can do, and which topologies there are. Loads no TensorFlow."""

import dataclasses
import math

from zoo.errors import UsageError, near_names


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPUs, each chip of which is one device with one replica on it.

    Attributes:
      name: as in a topology's name.
      flops: peak of products in bfloat16, FLOPs a second; products of float32 take the same units,
        in bfloat16, unless a program asks for more.
      bandwidth: of the memory, bytes a second.
      memory: bytes of HBM by the data sheet.
      usable: what the compiler leaves to a program, as it says itself to one that is too large.
      topologies: shapes of chips that can be had.
      source: of the numbers.
    """

    name: str
    flops: float
    bandwidth: float
    memory: int
    usable: int
    topologies: tuple[str, ...]
    source: str


_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_DOCS = "https://cloud.google.com/tpu/docs/"
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 197e12, 819e9, 16 * 10**9, int(15.75 * 2**30), _SQUARES, _DOCS + "v5e"),
        Chip(
            "v5p", 459e12, 2765e9, 95 * 10**9, int(95.74 * 2**30),
            ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"), _DOCS + "v5p",
        ),
        Chip("v6e", 918e12, 1640e9, 32 * 10**9, int(31.25 * 2**30), _SQUARES, _DOCS + "v6e"),
    )
}  # fmt: skip
_SEVENTH = ("v7", "v7x", "tpu7", "tpu7x", "ironwood")


def topology_names() -> list[str]:
    """Returns the names of all topologies: `v5e:2x4`."""
    return [f"{chip.name}:{shape}" for chip in CHIPS.values() for shape in chip.topologies]


def parse_topology(name: str) -> tuple[Chip, int]:
    """Returns the chip of a topology, and how many of them it has.

    Raises:
      UsageError: for a name that is not known, or of a chip that TensorFlow cannot use.
    """
    kind, _, shape = name.partition(":")
    if kind.lower() in _SEVENTH:
        raise UsageError(
            "TensorFlow's TPU interface does not support TPU7x, and its TPU wheels end at 2.20. "
            f"Received: --topology={name}; known are {', '.join(CHIPS)}."
        )
    if kind not in CHIPS or shape not in CHIPS[kind].topologies:
        raise UsageError(
            f"No topology is named {name!r}.{near_names(name, topology_names())} "
            f"Known: {', '.join(topology_names())}."
        )
    return CHIPS[kind], math.prod(map(int, shape.split("x")))
