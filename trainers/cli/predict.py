"""zoo predict WORKDIR FILE ... [--checkpoint=final|best] [--json]: classify your own images.

A file that cannot be read is named on stderr, the others are labeled, and the exit status is 1.
Images are converted to gray or RGB and resized to what the model takes. MNIST's digits are white on
black: pass --invert for dark digits on light paper.
"""

import json
import sys

from trainers.cli.common import FAILED, LOG, Flags, run

_FLAGS = Flags()
_CHECKPOINT = _FLAGS.choice("checkpoint", "final", ["final", "best"], "Which weights.")
_INVERT = _FLAGS.boolean("invert", False, "Swap light and dark.")
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
