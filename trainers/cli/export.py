"""zoo export WORKDIR --format=saved_model|litert|onnx|keras --out=D: a file for other runtimes.

The exported model computes in float32. Its inputs are those of the data: uint8 images or token ids;
the generator of a GAN takes noise. The file is opened in its runtime and compared with the Keras
model on examples of the data. D.json describes its inputs, outputs and labels. A LiteRT file takes
one example per call, and sequences of the length of the training data.
"""

import json
import sys

from trainers.cli.common import Flags, leaves_files, run
from zoo.errors import UsageError

_FLAGS = Flags()
_FORMAT = _FLAGS.choice("format", None, ["saved_model", "litert", "onnx", "keras"], "File format.")
_OUT = _FLAGS.string("out", None, "Path of the result: a folder for saved_model, else a file.")
_CHECKPOINT = _FLAGS.choice("checkpoint", "final", ["final", "best"], "Which weights.")
_JSON = _FLAGS.boolean("json", False, "Print JSON.")


@leaves_files
def command(argv) -> int:
    """Exports the model of a work directory and checks the result."""
    words, _ = _FLAGS.parse(argv, __doc__, at_least=1, at_most=1)
    for flag in (_FORMAT, _OUT):
        if not flag.value:
            raise UsageError(f"zoo export needs --{flag.name}. See `zoo export --help`.")
    from trainers.export.export import export_workdir

    description = export_workdir(
        words[0], _FORMAT.value, _OUT.value, _CHECKPOINT.value, _FLAGS["import"].value
    )
    if _JSON.value:
        print(json.dumps(description))
        return 0
    print(f"{_OUT.value}: {description['bytes']:,} bytes")
    print(
        f"opened and compared: differs by {description['largest_difference']:.1e} of the largest "
        f"output ({description['examples']})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
