"""zoo export WORKDIR --format=saved_model|litert|onnx|keras --out=D: a file for other runtimes.

The exported model computes in float32 and takes what the data hold: pictures as bytes, tokens as
numbers; a GAN's generator takes noise. It is opened in its own runtime and compared with the Keras
model on examples of the data before it counts. D.json, beside it, tells its inputs, outputs and
labels. LiteRT files take one example at a time, and sequences of the length that was trained.
"""

import json
import sys

from absl import flags

from trainers.cli.common import checkpoint_flag, json_flag, leaves_files, modules_flag, parse, run
from zoo.errors import UsageError

_FLAGS = flags.FlagValues()
_FORMAT = flags.DEFINE_enum(
    "format", None, ["saved_model", "litert", "onnx", "keras"], "Of the file.", flag_values=_FLAGS
)
_OUT = flags.DEFINE_string(
    "out", None, "What is made: a folder for saved_model, else a file.", flag_values=_FLAGS
)
_CHECKPOINT = checkpoint_flag(_FLAGS)
_JSON = json_flag(_FLAGS)
_IMPORT = modules_flag(_FLAGS)


@leaves_files
def command(argv) -> int:
    """Exports and checks a work directory's model."""
    words, _ = parse(_FLAGS, argv, __doc__, at_least=1, at_most=1, modules=_IMPORT)
    for flag in (_FORMAT, _OUT):
        if not flag.value:
            raise UsageError(f"zoo export needs --{flag.name}. See `zoo export --help`.")
    from trainers.export.export import export_workdir

    found = export_workdir(words[0], _FORMAT.value, _OUT.value, _CHECKPOINT.value, _IMPORT.value)
    if _JSON.value:
        print(json.dumps(found))
        return 0
    print(f"{_OUT.value}: {found['bytes']:,} bytes")
    print(
        f"opened and compared: differs by {found['largest_difference']:.1e} of the largest output "
        f"({found['examples']})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
