"""Decodes image files to arrays: a single file, or a folder of images per class.

    FOLDER/train/ants/1.jpg, FOLDER/train/bees/2.png, FOLDER/val/ants/…   splits, then classes
    FOLDER/ants/1.jpg, FOLDER/bees/2.png                                  classes, all "train"

AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TIFF and WebP become 8-bit gray or RGB as in an image
viewer: rotated by EXIF, CMYK converted, 16 bits scaled to 8, transparent pixels on white, only the
first frame of an animation. Unreadable files are left out and reported.
"""

import contextlib
import hashlib
import logging
import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from zoo.data.datasets import FOLDER, SPLITS, Dataset
from zoo.errors import RunError, UsageError, short
from zoo.lazy import PIL, Image, ImageOps
from zoo.progress import progress
from zoo.storage.bounds import check_memory
from zoo.storage.disk import content_of, file_digest, open_file
from zoo.storage.locks import one_at_a_time
from zoo.storage.paths import cache_dir
from zoo.storage.records import SHARD_BYTES, Records, RecordWriter, open_records

_LOG = logging.getLogger(__name__)

# Pillow starts Ghostscript for EPS, also inside IPTC, and expands FITS without bound.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_FORMAT = 1  # version of the decoded arrays, in the key of the cache
_CHUNK = 256
_SHOWN = 20
# An automatic size is the median size of some training images, reduced to this longer side.
_SAMPLED, _LONGEST_SIDE = 200, 128
# Several threads decode, but images that take about 100 MB or more are decoded one at a time.
_LARGE, _LARGE_PIXELS, _LARGE_FILE = threading.RLock(), 1 << 23, 1 << 26
_MAX_FILE_BYTES = 1 << 30  # some decoders hold two copies of the file
_PIXEL_BYTES = 16  # worst case: 4 decoded, and copies


# `decode` refuses such images itself.
warnings.filterwarnings("ignore", "Image size .* could be decompression bomb")


class Unreadable(Exception):
    """A file that cannot be decoded; the message is the reason."""


def decode(file: str | os.PathLike, shape: tuple[int, int, int]) -> tuple[np.ndarray, list[str]]:
    """Decodes an image file, crops it centrally to the proportions of `shape`, and resizes it.

    Args:
      file: path of the file.
      shape: height, width and channels (1 or 3) of the result.

    Returns:
      `(pixels, remarks)`: uint8 of `shape`, and the conversions: "CMYK", "16 bits", ….

    Raises:
      Unreadable: if the file is not a complete image.
    """
    height, width, channels = shape
    try:
        if not os.path.exists(file):
            raise Unreadable("the file does not exist")
        with open_file(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            if not size:
                raise Unreadable("the file is empty")
            if size > _MAX_FILE_BYTES:
                raise Unreadable(f"the file has {size:,} bytes, more than {_MAX_FILE_BYTES:,}")
            with (
                _LARGE if size > _LARGE_FILE else contextlib.nullcontext(),
                Image.open(stream, formats=_FORMATS) as image,
            ):
                pixels = image.width * image.height
                if pixels > Image.MAX_IMAGE_PIXELS:  # possibly a decompression bomb
                    raise Unreadable(
                        f"the image has {image.width}x{image.height} pixels, more than "
                        f"{Image.MAX_IMAGE_PIXELS:,}"
                    )
                with _LARGE if pixels > _LARGE_PIXELS else contextlib.nullcontext():
                    check_memory(file, _PIXEL_BYTES * pixels)
                    rgb, remarks = _to_rgb(image)
    except Unreadable:
        raise
    except RunError as error:
        raise Unreadable(str(error).rstrip(".")) from None
    except PIL.UnidentifiedImageError:
        raise Unreadable(f"the file must have one of the formats {', '.join(_FORMATS)}") from None
    except Exception as error:  # decoders raise many types
        raise Unreadable(short(f"{type(error).__name__}: {error}")) from None
    image = rgb.convert("L" if channels == 1 else "RGB")
    image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8).reshape(shape), remarks


def _to_rgb(image) -> tuple:
    """Converts a `PIL.Image.Image` to 8-bit RGB; returns it with remarks on the conversion."""
    remarks = []
    if getattr(image, "is_animated", False):  # counting the frames would read all of them
        remarks.append("animated: first frame")
    if image.getexif().get(0x0112, 1) != 1:
        remarks.append("rotated by EXIF")
    mode = image.mode
    image = ImageOps.exif_transpose(image)
    if mode == "F":
        raise Unreadable("its pixels are floats, whose range is unknown")
    if mode.startswith("I"):  # 16-bit gray, which Pillow would clip at 255
        gray = np.asarray(image, np.int64)
        if mode == "I" and gray.max() <= 255:  # bytes in integers of 32 bits
            remarks.append("gray")
        else:
            remarks.append("16 bits")
            gray = gray // 256
        gray = np.clip(gray, 0, 255)
        image = Image.fromarray(gray.astype(np.uint8))
    elif mode in ("CMYK", "YCCK"):
        remarks.append("CMYK")
    elif mode in ("1", "L", "LA"):
        remarks.append("gray")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
        remarks.append("transparent: on white")
    return image.convert("RGB"), remarks


def load_folder(folder: str | os.PathLike, image_size: tuple[int, ...]) -> Dataset:
    """Loads the images of a folder, which are decoded once and then mapped from the cache.

    Args:
      folder: laid out as described at the top of this file.
      image_size: height, width and optionally channels (default 3); () chooses a size, see
        `choose_size`.

    Raises:
      UsageError: see `scan`.
      RunError: if a class has no readable image.
    """
    root = Path(folder).expanduser()
    shape = shape_of(image_size) if image_size != () else None
    splits, names, ignored_files = scan(root)
    if shape is None:
        sample = splits.get("train") or next(iter(splits.values()))
        shape = choose_size([file for files in sample.values() for file in files])
        _LOG.info(
            f"{root}: images are resized to {'x'.join(map(str, shape))} (height, width, channels); "
            "data.image_size sets another size"
        )
    # Sorted by name, because the order of a file system is arbitrary.
    files = {
        split: [(file, names.index(name)) for name in sorted(classes) for file in classes[name]]
        for split, classes in splits.items()
    }
    cache = cache_dir() / "images" / _digest(root, files, names, shape)
    arrays, facts, left_out = {}, {}, []
    for split, members in files.items():
        records = _records(cache / split, root, members, names, shape)
        # Small arrays are held in memory, large ones are read image by image.
        image, label = (records.arrays[key] for key in ("image", "label"))
        image = np.asarray(image) if image.nbytes <= SHARD_BYTES else image
        arrays[split] = {"image": image, "label": np.asarray(label)}
        facts[f"{split} images"] = len(label)
        for remark, count in records.metadata["remarks"].items():
            facts[remark] = facts.get(remark, 0) + count
        left_out += records.metadata["left_out"]
    facts["left out"] = len(left_out)
    for number, line in enumerate(left_out[:_SHOWN], 1):
        facts[f"left out {number}"] = line
        _LOG.warning(f"left out {line}")
    if len(left_out) > _SHOWN:
        _LOG.warning(f"left out {len(left_out) - _SHOWN:,} more files")
    facts |= _report_ignored(root, ignored_files)
    digest = hashlib.sha256(cache.name.encode()).hexdigest()
    return Dataset(f"{FOLDER}{root}", arrays, tuple(names), digest, facts={"Images": facts})


def shape_of(image_size) -> tuple[int, int, int]:
    """Returns height, width and channels; raises UsageError if `image_size` is invalid."""
    size = tuple(image_size) if isinstance(image_size, Sequence) else (image_size,)
    if len(size) == 2:
        size = (*size, 3)
    are_integers = all(type(n) is int for n in size)
    if not are_integers or len(size) != 3 or min(size) < 1 or size[2] not in (1, 3):
        raise UsageError(
            "data.image_size must be (height, width) or (height, width, channels), with 1 or 3 "
            f"channels, such as (224, 224). Received: {image_size!r}."
        )
    return size


def choose_size(files: Sequence[Path]) -> tuple[int, int, int]:
    """Chooses height, width and channels for images from the headers of up to 200 files.

    Height and width are the medians of the files, reduced to a longer side of 128 pixels. The
    images are gray if all of these files are.

    Raises:
      RunError: if none of these files is an image.
    """
    step = max(1, len(files) // _SAMPLED)
    sizes, is_gray = [], []
    for file in files[::step][:_SAMPLED]:
        # Pillow raises many types for damaged files, which `decode` reports.
        with (
            contextlib.suppress(Exception),
            open_file(file) as stream,
            Image.open(stream, formats=_FORMATS) as image,
        ):
            is_rotated = image.getexif().get(0x0112, 1) >= 5  # by 90 degrees
            sizes.append(image.size[::-1] if is_rotated else image.size)
            is_gray.append(image.mode in ("1", "L", "LA") or image.mode.startswith("I"))
    if not sizes:
        raise RunError(f"None of the files in {files[0].parent} is a readable image.")
    width, height = np.median(sizes, axis=0)
    scale = min(1.0, _LONGEST_SIDE / max(width, height))
    return max(1, round(height * scale)), max(1, round(width * scale)), 1 if all(is_gray) else 3


def scan(root: Path) -> tuple[dict[str, dict[str, list[Path]]], list[str], dict[str, int]]:
    """Lists the files of a folder by split and class, without opening them.

    Args:
      root: laid out as described at the top of this file.

    Returns:
      `(splits, class_names, ignored)`: split name -> class name -> files; the sorted names of the
      classes; and files outside splits and classes, as relative path -> number of files.

    Raises:
      UsageError: if the folder does not exist, has fewer than two classes, or the training split
        lacks a class.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder. {content_of(root)}")
    splits, ignored_files = _splits(root)
    names = sorted({name for classes in splits.values() for name in classes})
    if len(names) < 2:
        raise UsageError(
            f"{root} must have a folder of images per class, of at least two classes, or such "
            f"folders in {', '.join(SPLITS)}. {content_of(root)}"
        )
    training_classes = splits.get("train", names)
    for split, classes in splits.items():
        if unknown := sorted(set(classes) - set(training_classes)):
            raise UsageError(
                f"{root}: each class must have a folder in the training split, but {split!r} has "
                f"classes that are missing in 'train': {', '.join(map(repr, unknown))}. Add their "
                f"images to 'train', or move them out of {split!r}."
            )
    for name, files in splits.get("train", {}).items():
        if not files:
            raise UsageError(
                f"{root}: each class must have images in the training split, but the folder of "
                f"{name!r} is empty. Add images, or remove the folder."
            )
    return splits, names, ignored_files


def _splits(root: Path) -> tuple[dict[str, dict[str, list[Path]]], dict[str, int]]:
    splits, ignored_files = {}, {}
    folders = {entry: SPLITS.get(entry.name.lower()) for entry in _folders(root)}
    if not any(folders.values()):
        return {"train": _classes(root, root, ignored_files)}, ignored_files
    _note_files(root, root, ignored_files)
    for entry, split in folders.items():
        if not split:
            ignored_files[entry.name] = len(_files(entry))
            continue
        if split in splits:
            raise UsageError(f"{root} has two folders for the split {split!r}. Merge them.")
        splits[split] = _classes(entry, root, ignored_files)
        if not splits[split]:
            raise UsageError(
                f"{entry} must have a folder of images per class. Sort its images into folders, or "
                "move it away."
            )
    return splits, ignored_files


def _classes(folder: Path, root: Path, ignored_files: dict[str, int]) -> dict[str, list[Path]]:
    """Returns class name -> files; adds other files and links to folders to `ignored_files`."""
    _note_files(folder, root, ignored_files)
    classes = {}
    for entry in _folders(folder):
        classes[entry.name] = _files(entry)
        for link in entry.rglob("*"):
            if link.is_symlink() and not link.is_file():
                ignored_files[str(link.relative_to(root))] = 1
    return classes


def _files(folder: Path) -> list[Path]:
    return sorted(x for x in folder.rglob("*") if x.is_file() and not x.name.startswith("."))


def _note_files(folder: Path, root: Path, ignored_files: dict[str, int]) -> None:
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir() and not entry.name.startswith("."):
            ignored_files[str(entry.relative_to(root))] = 1


def _report_ignored(root: Path, ignored_files: dict[str, int]) -> dict[str, int | str]:
    """Prints the ignored files of a folder; returns them as facts for the report."""
    if not ignored_files:
        return {}
    lines = [
        f"{name} ({count:,} file{'s' * (count != 1)})" if (root / name).is_dir() else name
        for name, count in ignored_files.items()
    ]
    more = f" and {len(lines) - _SHOWN:,} more" if len(lines) > _SHOWN else ""
    count = sum(ignored_files.values())
    _LOG.warning(
        f"{root}: {count:,} file{'s are' if count != 1 else ' is'} in no class folder and not "
        f"used: {', '.join(lines[:_SHOWN])}{more}"
    )
    return {
        "not used": count,
        **{f"not used {i}": line for i, line in enumerate(lines[:_SHOWN], 1)},
    }


def _folders(folder: Path) -> list[Path]:
    return sorted(x for x in folder.iterdir() if x.is_dir() and not x.name.startswith("."))


def _digest(root: Path, files, names, shape) -> str:
    """Returns a digest of all files, their names, and the format of the decoded arrays."""
    digest = hashlib.sha256(repr((_FORMAT, names, shape)).encode())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split in sorted(files):
            paths = [file for file, _ in files[split]]
            for file, file_hash in zip(paths, pool.map(file_digest, paths), strict=True):
                digest.update(repr((split, str(file.relative_to(root)), file_hash)).encode())
    return digest.hexdigest()


def _records(folder: Path, root: Path, members, names, shape) -> Records:
    """Returns the records of a split; decodes the images if the records do not exist."""
    with one_at_a_time(folder):
        if folder.exists():
            return open_records(folder)
        left_out, remarks, counts = [], Counter(), Counter()
        with RecordWriter(folder, {"image": (shape, "uint8"), "label": ((), "int64")}) as writer:
            for pixels, label in _decode_images(root, members, shape, left_out, remarks):
                writer.append(image=pixels, label=label)
                counts.update(label.tolist())
            # Only the training split needs every class.
            required_names = names if folder.name == "train" or not counts else ()
            for number, name in enumerate(required_names):
                if not counts[number]:
                    reason = f" Left out: {left_out[-1]}." if left_out else ""
                    raise RunError(
                        f"{root}, split {folder.name!r}: class {name!r} has no readable image."
                        f"{reason}"
                    )
            writer.metadata = {"remarks": dict(sorted(remarks.items())), "left_out": left_out}
        return open_records(folder)


def _decode_images(root, members, shape, left_out: list, remarks: Counter) -> Iterator:
    """Yields `(pixels, labels)` of chunks of files in order; updates `left_out` and `remarks`."""

    def decode_or_reason(file):
        try:
            return decode(file, shape)
        except Unreadable as error:
            return None, str(error)

    bar = progress(title="decoding", unit="images", total=len(members))
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the GIL
        for start in range(0, len(members), _CHUNK):
            chunk = members[start : start + _CHUNK]
            images, labels = [], []
            for (file, label), (image, details) in zip(
                chunk, pool.map(decode_or_reason, [file for file, _ in chunk]), strict=True
            ):
                if image is None:
                    left_out.append(f"{file.relative_to(root)}: {details}")
                    continue
                remarks.update(details)
                images.append(image)
                labels.append(label)
            bar.update(len(chunk))
            if images:
                yield np.stack(images), np.array(labels, np.int64)
