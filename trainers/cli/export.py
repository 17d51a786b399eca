"""zoo export WORKDIR --format=saved_model|litert|onnx|keras --out=D: a file for other runtimes.

The exported model computes in float32. Its inputs are uint8 images or token ids, as in the data;
the generator of a GAN requires noise. The command runs the file in its runtime and compares the
outputs with the Keras model on examples of the data. D.json describes inputs, outputs and labels. A
LiteRT file requires one example per call, and sequences of the length of the training data.
"""

import json
import sys

from trainers.cli.common import Flags, run, writes_files
from zoo.errors import UsageError

_FLAGS = Flags()
_FORMAT = _FLAGS.choice("format", None, ["saved_model", "litert", "onnx", "keras"], "File format.")
_OUT = _FLAGS.string("out", None, "Output path: a folder for saved_model, otherwise a file.")
_CHECKPOINT = _FLAGS.choice("checkpoint", "final", ["final", "best"], "Weights to load.")
_JSON = _FLAGS.boolean("json", False, "Print JSON.")


@writes_files
def command(argv) -> int:
    """Exports the model of a work directory and checks the result."""
    words, _ = _FLAGS.parse(argv, __doc__, at_least=1, at_most=1)
    for flag in (_FORMAT, _OUT):
        if not flag.value:
            raise UsageError(f"zoo export requires --{flag.name}. See `zoo export --help`.")
    from trainers.export.export import export_workdir

    description = export_workdir(
        words[0], _FORMAT.value, _OUT.value, _CHECKPOINT.value, _FLAGS["import"].value
    )
    if _JSON.value:
        print(json.dumps(description))
        return 0
    print(f"{_OUT.value}: {description['bytes']:,} bytes")
    print(
        f"largest difference: {description['largest_difference']:.1e} of the largest output "
        f"({description['examples']})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
