"""TPU chips and topologies by name. Importing this module does not import TensorFlow."""

import dataclasses
import math

from zoo.errors import UsageError, near_names


@dataclasses.dataclass(frozen=True)
class Chip:
    """A generation of TPUs; each chip is one device with one replica.

    Attributes:
      name: name of the chip in topologies.
      flops: peak FLOPs per second of bfloat16 matrix products. Products of float32 also run in
        bfloat16 unless a program requests more precision.
      bandwidth: memory bandwidth in bytes per second.
      memory: bytes of HBM according to the data sheet.
      usable: bytes of HBM available to a program, according to the compiler's error message.
      topologies: available shapes.
      source: source of these figures.
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
_TPU7X_NAMES = ("v7", "v7x", "tpu7", "tpu7x", "ironwood")


def topology_names() -> list[str]:
    """Returns the names of all topologies, such as `v5e:2x4`."""
    return [f"{chip.name}:{shape}" for chip in CHIPS.values() for shape in chip.topologies]


def parse_topology(name: str) -> tuple[Chip, int]:
    """Returns `(chip, number of chips)` of a topology.

    Raises:
      UsageError: for an unknown topology, or a chip that TensorFlow does not support.
    """
    kind, _, shape = name.partition(":")
    if kind.lower() in _TPU7X_NAMES:
        raise UsageError(
            "TensorFlow's TPU interface, whose last release is 2.20, does not support TPU7x. "
            f"Received: --topology={name}; supported chips: {', '.join(CHIPS)}."
        )
    if kind not in CHIPS or shape not in CHIPS[kind].topologies:
        raise UsageError(
            f"No topology is named {name!r}.{near_names(name, topology_names())} "
            f"Known: {', '.join(topology_names())}."
        )
    return CHIPS[kind], math.prod(map(int, shape.split("x")))
