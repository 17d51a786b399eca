"""The manifest of an index: its encoder, its parts and the documents deleted from it.

A part holds the documents that one `zoo index` added. The folder of an index:

    manifest.json, tokenizer.json
    trained.faiss             clusters, common to all parts
    part-00000/tokens/        tokens of all documents, see zoo.storage.records
    part-00000/documents/     length and MinHash of each document
    part-00000/shard-00000/   entries, and their keys as index.faiss or bm25/
"""

from pathlib import Path

from zoo.errors import RunError, UsageError
from zoo.storage.disk import content_of, json_digest, read_object, write_json

FORMAT = 1
METHODS = ("states", "pooled", "bm25")
MANIFEST, TOKENIZER, TRAINED = "manifest.json", "tokenizer.json", "trained.faiss"
_TYPES = {
    "method": str, "weights": str, "model": str, "tokenizer": str, "settings": dict, "parts": list,
    "deleted": list,
}  # fmt: skip


def read_manifest(folder: str | Path) -> dict:
    """Returns the manifest of an index, which may be unfinished.

    Raises:
      UsageError: if the folder is not an index, or of another format version.
      RunError: if the manifest is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise UsageError(f"{folder} must be an index written by `zoo index`. {content_of(folder)}")
    manifest = read_object(path, format=int, checksum=str, **_TYPES)
    if manifest["format"] != FORMAT:
        raise UsageError(
            f"{path} must have format {FORMAT}. Received: {manifest['format']}. Build the index "
            "again."
        )
    checksum = manifest.pop("checksum")
    if json_digest(manifest) != checksum:
        raise RunError(f"{path} is damaged: its checksum differs. Build the index again.")
    return manifest


def write_manifest(folder: Path, manifest: dict) -> None:
    """Writes the manifest of an index atomically, with its checksum."""
    write_json(folder / MANIFEST, {**manifest, "checksum": json_digest(manifest)})


def part_folder(folder: Path, number: int) -> Path:
    """Returns the folder of a part."""
    return folder / f"part-{number:05d}"


def shard_folder(folder: Path, part: int, number: int) -> Path:
    """Returns the folder of a shard of a part."""
    return part_folder(folder, part) / f"shard-{number:05d}"


def check_encoder(folder, manifest: dict, *, tokenizer: str = "", weights: str = "") -> None:
    """Raises `UsageError` if an index was built with another tokenizer or encoder.

    Args:
      folder: folder of the index, for the message.
      manifest: result of `read_manifest`.
      tokenizer: fingerprint of the tokenizer; "" to skip the check.
      weights: result of `zoo.retrieval.encoders.weights_digest`; "" to skip the check.
    """
    for name, expected in (("tokenizer", tokenizer), ("weights", weights)):
        if expected and manifest[name] != expected:
            thing = "tokenizer" if name == "tokenizer" else f"encoder (model {manifest['model']!r})"
            raise UsageError(
                f"{folder} was built with another {thing}: its digest is "
                f"{manifest[name][:12] or 'empty'}…, that of the work directory {expected[:12]}…. "
                "Build an index with this work directory."
            )
