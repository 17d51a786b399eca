"""Names and amounts of the augmentations of `task.augment`. Loads no TensorFlow."""

from collections.abc import Collection, Sequence

from zoo.errors import UsageError, near_names

# Name -> (amount where none is given, least, most, what it means). In the order of their turn.
AUGMENTATIONS = {
    "flip": (0.5, 0.5, 0.5, "left and right swapped in half of the pictures"),
    "crop": (0.5, 0.05, 1.0, "a part of at least this share of the area, resized to the whole"),
    "randaugment": (0.5, 0.0, 1.0, "two changes of this strength (Cubuk et al. 2020)"),
    "cutout": (0.3, 0.0, 1.0, "a grey rectangle of at most this share of the area"),
    "mixup": (0.2, 0.01, 10.0, "blended with another picture by Beta(a, a) (Zhang et al. 2018)"),
}


def parse(specs: Sequence[str]) -> dict[str, float]:
    """Returns name -> amount from `("flip", "crop:0.6")`, in the order in which they are applied.

    Raises:
      UsageError: for an unknown name, an amount out of its bounds, or a name given twice.
    """
    found = {}
    for spec in map(str, specs):
        name, colon, text = spec.partition(":")
        if name not in AUGMENTATIONS:
            raise UsageError(
                f"No augmentation is named {name!r}.{near_names(name, AUGMENTATIONS)} Known: "
                + "; ".join(f"{key}: {row[3]}" for key, row in AUGMENTATIONS.items())
                + "."
            )
        default, least, most, _ = AUGMENTATIONS[name]
        try:
            amount = float(text) if colon else default
        except ValueError:
            amount = float("nan")
        if not least <= amount <= most or name in found:
            raise UsageError(
                f"task.augment takes each name once, as NAME or NAME:AMOUNT, {name} with an amount "
                f"from {least} to {most}. Received: {spec!r}."
            )
        found[name] = amount
    return {name: found[name] for name in AUGMENTATIONS if name in found}


def check_channels(names: Collection[str], channels: int) -> None:
    """Raises `UsageError` where images with that number of channels cannot be changed so."""
    if "randaugment" in names and channels != 3:
        raise UsageError(
            "task.augment=randaugment changes colors: images must have three channels. Received: "
            f"{channels}."
        )
