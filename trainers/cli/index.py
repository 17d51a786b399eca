"""zoo index INDEX --workdir=W [--source=S] [--split=train] [--add]: an index of encoded text.

Encodes the documents of a corpus with the model of a work directory. Run the same command again to
continue after an interruption. Methods: `states` finds positions of a similar context, for `zoo
evaluate W --index=INDEX` and `zoo generate W --index=INDEX`; `pooled` finds passages by the mean
of their states, `bm25` by their words.

--add adds documents to a finished index. --delete=N leaves out document N from all searches.
Without --workdir the command describes the index.
"""

import sys

from trainers.cli.common import RETRIEVAL, Flags, require_extra, run
from zoo.errors import UsageError, check_minimums
from zoo.start import start_tensorflow

_FLAGS = Flags()
_WORKDIR = _FLAGS.string("workdir", None, "Work directory of the encoder.")
_CHECKPOINT = _FLAGS.choice("checkpoint", "final", ["final", "best"], "Weights to load.")
_SOURCE = _FLAGS.string("source", "", "Corpus to index; default: the corpus of the training.")
_SPLIT = _FLAGS.string("split", "train", "Split of the corpus.")
_METHOD = _FLAGS.choice("method", "states", ["states", "pooled", "bm25"], "What is encoded.")
_MAX_TOKENS = _FLAGS.integer("max_tokens", 0, "Tokens after which no document is read; 0 for all.")
_ADD = _FLAGS.boolean("add", False, "Add the documents to a finished index.")
_DELETE = _FLAGS.strings("delete", [], "Number of a document to delete; repeatable.")


def command(argv) -> int:
    """Runs `zoo index`; returns the exit status."""
    words, _ = _FLAGS.parse(argv, __doc__, at_least=1, at_most=1)
    check_minimums("index", {"max_tokens": _MAX_TOKENS.value})
    require_extra("zoo index", "retrieval", RETRIEVAL)
    if _DELETE.value:
        return _delete(words[0])
    if _WORKDIR.value is None:
        from zoo.retrieval.manifest import read_manifest

        return _print(words[0], read_manifest(words[0]))
    from trainers.run.workdir import read_config
    from zoo.saved.workdir import model_path

    # Checks without TensorFlow come first, so that a wrong request fails at once.
    saved_config = read_config(_WORKDIR.value)
    model_path(_WORKDIR.value, _CHECKPOINT.value)
    start_tensorflow()
    from trainers.evaluation.with_index import build_index

    manifest = build_index(
        words[0], _WORKDIR.value, saved_config, _CHECKPOINT.value, _METHOD.value, _SOURCE.value,
        _SPLIT.value, _MAX_TOKENS.value, _ADD.value,
    )  # fmt: skip
    return _print(words[0], manifest)


def _delete(folder: str) -> int:
    from zoo.retrieval.build import delete

    if _WORKDIR.value is not None or _ADD.value:
        raise UsageError("--delete supports neither --workdir nor --add.")
    if not all(number.isdecimal() for number in _DELETE.value):
        raise UsageError(f"--delete must be the number of a document. Received: {_DELETE.value}.")
    return _print(folder, delete(folder, map(int, _DELETE.value)))


def _print(folder: str, manifest: dict) -> int:
    print(f"{folder}: {manifest['method']} of {manifest['model'] or 'no model'}")
    for part in manifest["parts"]:
        state = "" if part["complete"] else "  unfinished"
        print(
            f"{part['source']} ({part['split']}){part['documents']:12,} documents "
            f"{part['tokens']:14,} tokens {part['entries']:14,} entries{state}"
        )
    if manifest["deleted"]:
        print(f"deleted: {', '.join(map(str, manifest['deleted']))}")
    return 0


if __name__ == "__main__":
    sys.exit(run(command))
