"""zoo predict WORKDIR FILE ... [--checkpoint=final|best] [--json]: classify your own images.

If a file cannot be read, the command prints an error for this file, labels the other files, and
ends with exit status 1. Images are converted to gray or RGB and resized to the input of the model.
The digits of MNIST are white on black: pass --invert for dark digits on light paper.
"""

import json
import sys

from trainers.cli.common import FAILED, LOG, Flags, run

_FLAGS = Flags()
_CHECKPOINT = _FLAGS.choice("checkpoint", "final", ["final", "best"], "Weights to load.")
_INVERT = _FLAGS.boolean("invert", False, "Invert the brightness of the images.")
_JSON = _FLAGS.boolean("json", False, "Print JSON.")


def command(argv) -> int:
    """Prints one line per image: file, label, probability."""
    words, _ = _FLAGS.parse(argv, __doc__, at_least=2)
    from trainers.evaluation.predict import predict_images

    rows, errors = predict_images(
        words[0], words[1:], checkpoint=_CHECKPOINT.value, invert=_INVERT.value
    )
    if _JSON.value:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            print(f"{row['file']}\t{row['label']}\t{row['probability']:.4f}")
    for error in errors:
        LOG.error(f"error: {error}")
    return FAILED if errors else 0


if __name__ == "__main__":
    sys.exit(run(command))
