"""Datasets of TensorFlow Datasets (TFDS), converted once to memory-mapped records.

TFDS runs in a process of its own, because decoding initializes TensorFlow's runtime: afterwards
the CPU cannot be split into logical devices, and the GPU's memory is allocated. The first run of a
recipe would then differ from later runs. That process imports TensorFlow first: otherwise a thread
of TFDS does so later, while `zoo.quiet` discards stderr, and an error message may be lost.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from zoo import processes
from zoo.data import fetch
from zoo.data.datasets import Dataset, list_datasets
from zoo.data.fetch import FetchFile
from zoo.errors import RunError, UsageError
from zoo.storage.locks import one_at_a_time
from zoo.storage.paths import cache_dir, data_dir
from zoo.storage.records import Records, RecordWriter, open_records

_LOG = logging.getLogger(__name__)


def load(
    name: str, version: str, manual_dir: Path | None = None, shape: tuple[int, ...] = ()
) -> Dataset:
    """Loads a TFDS dataset as memory-mapped arrays; does not import TensorFlow.

    Args:
      name: name of the dataset in TFDS.
      version: version of the dataset, such as "3.0.1".
      manual_dir: folder of the original files; by default `data_dir()/name` if it exists, otherwise
        they are downloaded to the cache.
      shape: height, width and channels for images of several sizes; then only "image" and "label"
        are loaded.

    Raises:
      RunError: if files are missing, invalid or cannot be downloaded, or TFDS fails.
    """
    folder = _records_folder(name, version, shape)
    records = _open_if_complete(folder)
    if records is None:
        _LOG.info(f"preparing {name} (once, about half a minute)")
        processes.call(
            f"Preparing {name!r}", "zoo.data.arrays.tfds:prepare", name, version,
            str(manual_dir or ""), *map(str, shape), extra={"CUDA_VISIBLE_DEVICES": "-1"},
            tensorflow=True,
        )  # fmt: skip
        records = open_records(folder)
    return _dataset(name, records)


def original_files(name: str) -> tuple:
    """Returns the original files that TFDS has registered for a dataset."""
    import tensorflow_datasets as tfds

    return tuple(
        FetchFile(url, info.filename or url.rsplit("/", 1)[-1], int(info.size), info.checksum)
        for url, info in tfds.builder_cls(name).url_infos.items()
    )


def _records_folder(name: str, version: str, shape: tuple[int, ...] = ()) -> Path:
    size = "-" + "x".join(map(str, shape)) if shape else ""
    return cache_dir() / "arrays" / f"{name.replace('/', '-')}-{version}{size}"


def _open_if_complete(folder: Path) -> Records | None:
    try:
        return open_records(folder)
    except (UsageError, RunError):
        # Missing, damaged or of an older version: the records are created again.
        return None


def _dataset(name: str, records: Records) -> Dataset:
    # The records hold all splits, one after the other.
    splits, start = {}, 0
    for split, examples in records.metadata["splits"]:
        splits[split] = {
            key: array.part(start, start + examples) for key, array in records.arrays.items()
        }
        start += examples
    return Dataset(name, splits, tuple(records.metadata["class_names"]), records.fingerprint)


def _create_records(folder: Path, produce: Callable[[], tuple[dict, tuple[str, ...]]]):
    """Creates the records unless they are complete; several processes may call this at once.

    Args:
      folder: folder of the records; a damaged one is replaced.
      produce: returns the splits and the class names; called by one process at a time.
    """
    with one_at_a_time(folder):
        if _open_if_complete(folder) is not None:
            return
        splits, class_names = produce()
        arrays = next(iter(splits.values()))
        layout = {key: (array.shape[1:], array.dtype) for key, array in arrays.items()}
        examples = [[split, len(next(iter(rows.values())))] for split, rows in splits.items()]
        metadata = {"splits": examples, "class_names": list(class_names)}
        if folder.exists():
            shutil.rmtree(folder)
        with RecordWriter(folder, layout, metadata=metadata) as writer:
            for rows in splits.values():
                writer.append(**rows)


def _prepare(name: str, version: str, manual_dir: Path | None, shape: tuple[int, ...] = ()):
    """Runs the builder of TFDS; returns the splits and the class names."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    records_dir = Path(os.environ.get("TFDS_DATA_DIR") or cache_dir() / "tfds").expanduser()
    builder = tfds.builder(f"{name}:{version}", data_dir=records_dir)
    if not Path(builder.data_path).exists() and name not in list_datasets():
        # The zoo has no checksums of these files, but TFDS has.
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
        )
    if not Path(builder.data_path).exists():
        originals = _original_folder(name, manual_dir)
        # TFDS reuses unpacked files by their name, and mnist and fashion_mnist have files of the
        # same names, so each needs a folder of its own.
        with tempfile.TemporaryDirectory(prefix="zoo-unpacked-") as unpacked_folder:
            builder.download_and_prepare(
                download_dir=unpacked_folder,
                download_config=tfds.download.DownloadConfig(
                    manual_dir=originals, extract_dir=unpacked_folder, try_download_gcs=False
                ),
            )
    features = builder.info.features
    if shape and not {"image", "label"} <= set(features):
        raise UsageError(
            f"data.image_size requires the features image and label. Received: {name!r} with "
            f"{', '.join(features)}."
        )
    if not shape and "image" in features and None in features["image"].shape:
        raise UsageError(
            f"The images of {name!r} have several sizes: set data.image_size, such as 224,224."
        )
    decode = _decode_resized if shape else _decode
    splits = {split: decode(tfds, builder, split, *shape) for split in builder.info.splits}
    return splits, tuple(features["label"].names) if "label" in features else ()


def _original_folder(name: str, manual_dir: Path | None) -> Path:
    """Returns a folder with every original file of `name`; downloads missing files."""
    folder = manual_dir or data_dir() / name
    if manual_dir or folder.is_dir():
        files = [file.file_name for file in original_files(name)]
        if missing := [file for file in files if not (folder / file).is_file()]:
            raise RunError(
                f"{folder} does not contain {', '.join(missing)}. "
                f"`zoo fetch {name}` downloads them."
            )
        return folder
    try:
        # Without a network, TFDS' own download fails only after minutes. data_dir() may be shared
        # and read-only.
        return fetch.fetch(name, cache_dir() / "data", log=_LOG.debug)
    except RunError as error:
        raise RunError(
            f"{name!r} is not in {data_dir()} and could not be downloaded: {error} Run `zoo fetch "
            f"{name}` with a network, or set ZOO_DATA_DIR, or set data.manual_dir to the folder of "
            "its files."
        ) from None


def _decode(tfds, builder, split: str) -> dict:
    batches = list(
        builder.as_dataset(
            split=split,
            batch_size=1000,
            shuffle_files=False,
            # Reads files one after the other, so that the order is independent of the cores.
            read_config=tfds.ReadConfig(interleave_cycle_length=1),
        ).as_numpy_iterator()
    )
    # Records hold no strings, such as names of examples.
    left_out = [key for key, values in batches[0].items() if values.dtype == object]
    if left_out:
        _LOG.warning(f"left out of {builder.name}: {', '.join(left_out)}")
    arrays = {
        key: np.concatenate([batch[key] for batch in batches])
        for key in batches[0]
        if key not in left_out
    }
    expected = builder.info.splits[split].num_examples
    for key, array in arrays.items():
        if len(array) != expected:
            raise RunError(
                f"{builder.data_path} is damaged: {split!r} has {len(array):,} {key}s instead of "
                f"{expected:,}. Delete that folder and run again."
            )
    return arrays


def _decode_resized(tfds, builder, split: str, height: int, width: int, channels: int) -> dict:
    """Returns images of any size, cropped and resized as those of a folder, and their labels."""
    from PIL import Image, ImageOps

    examples = builder.as_dataset(
        split=split, shuffle_files=False, read_config=tfds.ReadConfig(interleave_cycle_length=1)
    )
    images, labels = [], []
    for example in examples.as_numpy_iterator():
        pixels = example["image"]
        image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        image = image.convert("L" if channels == 1 else "RGB")
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
        images.append(np.asarray(image, np.uint8).reshape(height, width, channels))
        labels.append(example["label"])
    return {"image": np.stack(images), "label": np.array(labels, np.int64)}


def prepare(name: str, version: str, manual_dir: str, *shape: str) -> None:
    """Prepares a dataset in this process; see `load`."""
    originals, size = Path(manual_dir) if manual_dir else None, tuple(map(int, shape))
    folder = _records_folder(name, version, size)
    _create_records(folder, lambda: _prepare(name, version, originals, size))
