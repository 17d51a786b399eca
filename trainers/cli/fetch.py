"""zoo fetch [NAME ...] [--destination=FOLDER]: download data sets.

Downloads the original files of data sets into FOLDER/NAME, each file checked against its size
and sha256; what is there already is kept. FOLDER is ZOO_DATA_DIR by default, and where that is
not set, a folder in your cache. Without a NAME: lists the data sets and whether they are there.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from trainers.cli.common import LOG, Flags, leaves_files, run
from zoo.data.datasets import dataset_entry, list_datasets
from zoo.data.fetch import fetch, is_present
from zoo.storage.paths import data_dir

_FLAGS = Flags()
_DESTINATION = _FLAGS.string("destination", None, "Folder in which a folder a data set is made.")


@leaves_files
def command(argv: Sequence[str]) -> int:
    """Downloads, or lists."""
    names, _ = _FLAGS.parse(argv, __doc__)
    folder = Path(_DESTINATION.value or data_dir()).expanduser()
    if not names:
        for name in list_datasets():
            entry = dataset_entry(name)
            print(f"{name:18}{_state(entry, folder):14}{entry.description} ({entry.licence})")
        LOG.info(f"Folder: {folder}. Your own arrays need no fetching: data.source=npz:FILE.npz.")
    # All names first: a typing error in the second must not show after a long download.
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
    there = sum(is_present(path, file) for path, file in zip(paths, files, strict=True))
    return "there" if there == len(files) else f"{there} of {len(files)} files"


if __name__ == "__main__":
    sys.exit(run(command))
