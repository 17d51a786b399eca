"""Checks which names in a work directory are files and which are folders.

The check runs before training; otherwise a run would fail hours later, at the first write.
"""

import re
from pathlib import Path

from zoo.errors import RunError

FILES = (
    "config.json", "environment.json", "tokenizer.json", "metrics.jsonl", "model.keras",
    "model.tflite", "float.keras", "report.html", "compression.json", "compression.html",
)  # fmt: skip
# Folder -> pattern of the names of files in it.
FOLDERS = {
    "checkpoints": re.compile(r"step_\d+\.npz"),
    "best": re.compile(r"model\.keras|metrics\.json"),
    "evaluation": re.compile(r".*\.(json|npz)"),
    "samples": re.compile(r".*\.png"),
    "tensorboard": re.compile("(?!)"),
}
_INNER_FOLDERS = ("tensorboard/train", "tensorboard/validation")


def check_layout(workdir: Path) -> None:
    """Raises RunError if a folder or named pipe has the name of a file that the run writes, or a
    file the name of a folder. Links to files and folders are allowed."""
    files = [workdir / name for name in FILES]
    for name in (*FOLDERS, *_INNER_FOLDERS):
        folder, pattern = workdir / name, FOLDERS.get(name)
        # A broken link is not a folder either, and no folder can be created in its place.
        if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
            raise _layout_error(folder, "a folder")
        if folder.is_dir() and pattern:
            files += [path for path in folder.iterdir() if pattern.fullmatch(path.name)]
    for path in files:
        if path.exists() and not path.is_file():
            raise _layout_error(path, "a file")


def _layout_error(path: Path, kind: str) -> RunError:
    return RunError(
        f"{path} must be {kind}, which the run writes. Move it away, or use another work directory."
    )
