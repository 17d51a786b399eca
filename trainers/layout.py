"""Which names of a work directory are files and which are folders.

Checked before a run starts: it would fail hours later otherwise, when it writes the first of them.
"""

import re
from pathlib import Path

from zoo.errors import RunError

FILES = (
    "config.json", "environment.json", "tokenizer.json", "metrics.jsonl", "model.keras",
    "model.tflite", "float.keras", "report.html", "compression.json", "compression.html",
)  # fmt: skip
# Folder -> the names in it that are files.
FOLDERS = {
    "checkpoints": re.compile(r"step_\d+\.npz"),
    "best": re.compile(r"model\.keras|metrics\.json"),
    "evaluation": re.compile(r".*\.(json|npz)"),
    "samples": re.compile(r".*\.png"),
    "tensorboard": re.compile("(?!)"),
}
_INNER_FOLDERS = ("tensorboard/train", "tensorboard/validation")


def check_layout(workdir: Path) -> None:
    """Raises RunError where a folder or a named pipe lies where a file is written, or a file where
    a folder is. Links to files and folders are fine."""
    files = [workdir / name for name in FILES]
    for name in (*FOLDERS, *_INNER_FOLDERS):
        folder, pattern = workdir / name, FOLDERS.get(name)
        # A link that leads nowhere is no folder either, and none can be made there.
        if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
            raise _wrong(folder, "a folder")
        if folder.is_dir() and pattern:
            files += [path for path in folder.iterdir() if pattern.fullmatch(path.name)]
    for path in files:
        if path.exists() and not path.is_file():
            raise _wrong(path, "a file")


def _wrong(path: Path, kind: str) -> RunError:
    return RunError(
        f"{path} must be {kind}: the run writes one there. Move it away, or take another "
        "work directory."
    )
