"""Data sets that TensorFlow Datasets prepares: once by TFDS, from then on as mapped records.

TFDS runs in a process of its own. Decoding starts TensorFlow's runtime, after which a strategy
can no longer split the CPU in logical devices, and takes the GPU's memory: the first run of a
recipe would behave differently from all later ones.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from zoo import processes
from zoo.data.datasets import Dataset, cache_dir, data_dir, list_datasets
from zoo.data.records import Records, RecordWriter, open_records
from zoo.errors import RunError, UsageError, short
from zoo.locks import one_at_a_time


def load(
    name: str, version: str, manual_dir: Path | None = None, shape: tuple[int, ...] = ()
) -> Dataset:
    """Returns the TFDS data set `name`, memory-mapped; imports no TensorFlow.

    Args:
      name: as TFDS calls it.
      version: "3.0.1"; TFDS refuses one that it does not have.
      shape: height, width and channels of its pictures, where they differ in size; then nothing
        but "image" and "label" is kept.
      manual_dir: folder with its original files; otherwise `data_dir()/name` where that exists,
        otherwise they are downloaded into the cache.

    Raises:
      RunError: files are missing, wrong or cannot be downloaded, or TFDS fails on them.
    """
    folder = _folder_of(name, version, shape)
    records = _open_if_whole(folder)
    if records is None:
        print(f"zoo: preparing {name} (once, about half a minute)", file=sys.stderr, flush=True)
        _prepare_in_a_process(name, version, manual_dir, shape)
        records = open_records(folder)
    return _dataset(name, records)


def original_files(name: str) -> tuple:
    """Returns the `FetchFile`s that TFDS has registered for `name`, named as it expects them."""
    import tensorflow_datasets as tfds

    from zoo.data.fetch import FetchFile

    return tuple(
        FetchFile(url, info.filename or url.rsplit("/", 1)[-1], int(info.size), info.checksum)
        for url, info in tfds.builder_cls(name).url_infos.items()
    )


def _folder_of(name: str, version: str, shape: tuple[int, ...] = ()) -> Path:
    size = "-" + "x".join(map(str, shape)) if shape else ""
    return cache_dir() / "arrays" / f"{name.replace('/', '-')}-{version}{size}"


def _open_if_whole(folder: Path) -> Records | None:
    try:
        return open_records(folder)
    except (UsageError, RunError):
        # Absent, damaged or of an older version: all of it can be made again.
        return None


def _dataset(name: str, records: Records) -> Dataset:
    # All splits lie in the same records, one after the other.
    splits, start = {}, 0
    for split, examples in records.metadata["splits"]:
        splits[split] = {
            key: array.part(start, start + examples) for key, array in records.arrays.items()
        }
        start += examples
    return Dataset(name, splits, tuple(records.metadata["class_names"]), records.fingerprint)


def _keep(folder: Path, produce: Callable[[], tuple[dict, tuple[str, ...]]]):
    """Makes the records unless they are there and whole; safe with others doing the same.

    Args:
      folder: from `_folder_of`. A damaged one is replaced.
      produce: returns the splits and the class names; called by one process at a time.
    """
    with one_at_a_time(folder):
        if _open_if_whole(folder) is not None:
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


def _prepare_in_a_process(name: str, version: str, manual_dir: Path | None, shape: tuple):
    done = processes.run(
        "zoo.data.tfds:main", name, version, str(manual_dir or ""), *map(str, shape),
        more={"CUDA_VISIBLE_DEVICES": "-1"},
    )  # fmt: skip
    if done.returncode < 0:
        raise RunError(f"Preparing {name!r} was ended by signal {-done.returncode}.")
    remarks = [line for line in done.stderr.splitlines() if line.startswith("zoo: ")]
    if remarks and not done.returncode:
        print(*remarks, sep="\n", file=sys.stderr)
    if done.returncode:
        # Its last words on stdout are ours; without any, stderr ends with what Python said.
        words = done.stdout.strip() or done.stderr.strip() or f"exit status {done.returncode}"
        raise RunError(words.splitlines()[-1])


def _prepare(name: str, version: str, manual_dir: Path | None, shape: tuple[int, ...] = ()):
    """Runs the genuine TFDS builder; returns the splits and the class names."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    records_dir = Path(os.environ.get("TFDS_DATA_DIR") or cache_dir() / "tfds").expanduser()
    builder = tfds.builder(f"{name}:{version}", data_dir=records_dir)
    if not Path(builder.data_path).exists() and name not in list_datasets():
        # Its files are not known to us by their hashes; TFDS has its own.
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=manual_dir)
        )
    if not Path(builder.data_path).exists():
        originals = _originals(name, manual_dir)
        # TFDS keeps what it unpacks under the bare file name and uses it again, and mnist's and
        # fashion_mnist's files are named alike: in one folder, the second would be the first.
        with tempfile.TemporaryDirectory(prefix="zoo-unpacked-") as unpacked:
            builder.download_and_prepare(
                download_dir=unpacked,
                download_config=tfds.download.DownloadConfig(
                    manual_dir=originals, extract_dir=unpacked, try_download_gcs=False
                ),
            )
    features = builder.info.features
    if shape and not {"image", "label"} <= set(features):
        raise UsageError(
            f"data.image_size is for pictures with a label each. {name!r} has: "
            f"{', '.join(features)}."
        )
    if not shape and "image" in features and None in features["image"].shape:
        raise UsageError(
            f"The pictures of {name!r} have several sizes: set data.image_size=224,224."
        )
    decode = _decode_pictures if shape else _decode
    splits = {split: decode(tfds, builder, split, *shape) for split in builder.info.splits}
    return splits, tuple(features["label"].names) if "label" in features else ()


def _originals(name: str, manual_dir: Path | None) -> Path:
    """Returns a folder that holds every original file of `name`, downloading them at need."""
    from zoo.data import fetch

    folder = manual_dir or data_dir() / name
    if manual_dir or folder.is_dir():
        files = [file.file_name for file in original_files(name)]
        if missing := [file for file in files if not (folder / file).is_file()]:
            raise RunError(f"{folder} lacks {', '.join(missing)}. `zoo fetch {name}` gets them.")
        return folder
    try:
        # Not TFDS's own download: it takes minutes to find out that there is no network. And not
        # into data_dir(), which may be shared and read-only.
        return fetch.fetch(name, cache_dir() / "data", progress=lambda line: None)
    except RunError as error:
        raise RunError(
            f"{name!r} is not in {data_dir()} and could not be downloaded: {error} Run "
            f"`zoo fetch {name}` where there is a network, or set ZOO_DATA_DIR, or "
            f"data.manual_dir to the folder of its files."
        ) from None


def _decode(tfds, builder, split: str) -> dict:
    batches = list(
        builder.as_dataset(
            split=split,
            batch_size=1000,
            shuffle_files=False,
            # One file after the other: the order must not hang on the number of cores.
            read_config=tfds.ReadConfig(interleave_cycle_length=1),
        ).as_numpy_iterator()
    )
    # Text, such as names of examples, is nothing that a classifier's records hold.
    left_out = [key for key, values in batches[0].items() if values.dtype == object]
    if left_out:
        print(f"zoo: left out of {builder.name}: {', '.join(left_out)}", file=sys.stderr)
    arrays = {
        key: np.concatenate([batch[key] for batch in batches])
        for key in batches[0]
        if key not in left_out
    }
    expected = builder.info.splits[split].num_examples
    for key, array in arrays.items():
        if len(array) != expected:
            raise RunError(
                f"{builder.data_path} is damaged: {split!r} holds {len(array):,} {key}s of "
                f"{expected:,}. Delete that folder and run again."
            )
    return arrays


def _decode_pictures(tfds, builder, split: str, height: int, width: int, channels: int) -> dict:
    """Pictures of any size, cut to the proportions wanted and resized, as those of a folder."""
    from PIL import Image, ImageOps

    found = builder.as_dataset(
        split=split, shuffle_files=False, read_config=tfds.ReadConfig(interleave_cycle_length=1)
    )
    images, labels = [], []
    for example in found.as_numpy_iterator():
        pixels = example["image"]
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
        picture = picture.convert("L" if channels == 1 else "RGB")
        picture = ImageOps.fit(picture, (width, height), Image.Resampling.BILINEAR)
        images.append(np.asarray(picture, np.uint8).reshape(height, width, channels))
        labels.append(example["label"])
    return {"image": np.stack(images), "label": np.array(labels, np.int64)}


def main(name: str, version: str, manual_dir: str, *shape: str) -> int:
    originals = Path(manual_dir) if manual_dir else None
    try:
        size = tuple(map(int, shape))
        folder = _folder_of(name, version, size)
        _keep(folder, lambda: _prepare(name, version, originals, size))
    except (RunError, UsageError) as error:
        message = str(error)
    except Exception as error:
        # TFDS and TensorFlow raise what they like, often over many lines.
        message = f"TFDS could not prepare {name!r}: {type(error).__name__}: {short(error)}"
    else:
        return 0
    print(" ".join(message.split()), flush=True)
    return 1
