"""Names and amounts of the augmentations of `task.augment`. Does not import TensorFlow."""

from collections.abc import Collection, Sequence

from zoo.errors import UsageError, near_names

# Name -> (default amount, minimum, maximum, description), in the order of application.
AUGMENTATIONS = {
    "flip": (0.5, 0.5, 0.5, "flips half of the images horizontally"),
    "crop": (
        0.5,
        0.05,
        1.0,
        "a crop of at least this share of the area, resized back",
    ),
    "randaugment": (0.5, 0.0, 1.0, "two operations of this strength (Cubuk et al. 2020)"),
    "cutout": (0.3, 0.0, 1.0, "a gray rectangle of at most this share of the area"),
    "mixup": (0.2, 0.01, 10.0, "blended with another image by Beta(a, a) (Zhang et al. 2018)"),
}


def parse(specs: Sequence[str]) -> dict[str, float]:
    """Parses `("flip", "crop:0.6")` to a dict name -> amount, in the order of application.

    Raises:
      UsageError: if a name is unknown or occurs twice, or an amount is out of bounds.
    """
    amounts = {}
    for spec in map(str, specs):
        name, colon, text = spec.partition(":")
        if name not in AUGMENTATIONS:
            raise UsageError(
                f"No augmentation is named {name!r}.{near_names(name, AUGMENTATIONS)} Known: "
                + "; ".join(f"{key}: {row[3]}" for key, row in AUGMENTATIONS.items())
                + "."
            )
        default, minimum, maximum, _ = AUGMENTATIONS[name]
        try:
            amount = float(text) if colon else default
        except ValueError:
            amount = float("nan")
        if not minimum <= amount <= maximum or name in amounts:
            raise UsageError(
                "task.augment must have each name once, as NAME or NAME:AMOUNT; the amount of "
                f"{name} must be from {minimum} to {maximum}. Received: {spec!r}."
            )
        amounts[name] = amount
    return {name: amounts[name] for name in AUGMENTATIONS if name in amounts}


def check_channels(names: Collection[str], channels: int) -> None:
    """Raises `UsageError` if an augmentation does not support the number of channels."""
    if "randaugment" in names and channels != 3:
        raise UsageError(
            f"task.augment=randaugment requires images with three channels. Received: {channels}."
        )
