"""zoo fetch [NAME ...] [--destination=FOLDER]: downloads datasets.

Downloads the original files of datasets to FOLDER/NAME and checks the size and sha256 of each
file. Existing files are not downloaded again. FOLDER is ZOO_DATA_DIR by default, or a folder in
your cache if ZOO_DATA_DIR is not set. Without NAME, lists the datasets and their state.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from trainers.cli.common import LOG, Flags, run, writes_files
from zoo.data.datasets import dataset_entry, list_datasets
from zoo.data.fetch import fetch, is_present
from zoo.storage.paths import data_dir

_FLAGS = Flags()
_DESTINATION = _FLAGS.string("destination", None, "Folder with one subfolder per dataset.")


@writes_files
def command(argv: Sequence[str]) -> int:
    """Runs `zoo fetch`; returns the exit status."""
    names, _ = _FLAGS.parse(argv, __doc__)
    folder = Path(_DESTINATION.value or data_dir()).expanduser()
    if not names:
        for name in list_datasets():
            entry = dataset_entry(name)
            print(f"{name:18}{_state(entry, folder):14}{entry.description} ({entry.licence})")
        LOG.info(f"Folder: {folder}. For your own arrays set data.source=npz:FILE.npz.")
    # Checks all names before the first download.
    for name in names:
        dataset_entry(name)
    for name in names:
        fetch(name, folder, print)
    return 0


def _state(entry, folder: Path) -> str:
    files = entry.original_files()
    if not files:
        return "built in"
    paths = [folder / entry.name / file.file_name for file in files]
    num_present = sum(is_present(path, file) for path, file in zip(paths, files, strict=True))
    return "downloaded" if num_present == len(files) else f"{num_present} of {len(files)} files"


if __name__ == "__main__":
    sys.exit(run(command))
