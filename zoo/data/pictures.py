"""Picture files to arrays: one file, or a folder with a folder of pictures for each class.

    FOLDER/train/ants/1.jpg, FOLDER/train/bees/2.png, FOLDER/val/ants/…   splits, then classes
    FOLDER/ants/1.jpg, FOLDER/bees/2.png                                  classes: all of it "train"

AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TIFF and WebP become 8-bit grey or RGB as a viewer would
show them: turned as their EXIF says, CMYK converted, 16 bits scaled to 8, white behind what is
transparent, of an animation the first picture. What cannot be read is left out and named.
"""

import contextlib
import hashlib
import os
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from zoo.data.bounds import check_memory
from zoo.data.datasets import FOLDER, SPLITS, Dataset, cache_dir
from zoo.data.disk import file_digest, lies_at, open_file
from zoo.data.records import SHARD_BYTES, Records, RecordWriter, open_records
from zoo.errors import RunError, UsageError, short
from zoo.locks import one_at_a_time

# Pillow starts Ghostscript for EPS, also inside IPTC, and expands FITS without bound.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_FORMAT = 1  # of what a file becomes; part of the cache's key
_CHUNK = 256
_SHOWN = 20
# Several threads decode; of images that take some 100 MB and more only one at a time does.
_LARGE, _LARGE_PIXELS, _LARGE_FILE = threading.RLock(), 1 << 23, 1 << 26
_LARGEST_FILE = 1 << 30  # bytes, of which some decoders hold two copies
_PIXEL_BYTES = 16  # at worst: 4 as decoded, and copies


# `decode` refuses such images itself.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class Unreadable(Exception):
    """A file that is no picture; the message says why."""


def decode(file: str | os.PathLike, shape: tuple[int, int, int]) -> tuple[np.ndarray, list[str]]:
    """Reads a picture; cuts what does not fit the shape's proportions off evenly, and resizes.

    Args:
      file: its path.
      shape: height, width and channels (1 or 3) wanted.

    Returns:
      `(pixels, remarks)`: uint8 of `shape`, and what had to be done: "CMYK", "16 bits", ….

    Raises:
      Unreadable: where it is not a whole picture.
    """
    height, width, channels = shape
    try:
        if not os.path.exists(file):
            raise Unreadable("there is no such file")
        with open_file(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            if not size:
                raise Unreadable("the file is empty")
            if size > _LARGEST_FILE:
                raise Unreadable(f"it has {size:,} bytes, at most {_LARGEST_FILE:,} are read")
            with (
                _LARGE if size > _LARGE_FILE else contextlib.nullcontext(),
                Image.open(stream, formats=_FORMATS) as picture,
            ):
                pixels = picture.width * picture.height
                if pixels > Image.MAX_IMAGE_PIXELS:
                    # It may be an attack, and it is no picture to train on.
                    raise Unreadable(f"it has {picture.width}x{picture.height} pixels")
                with _LARGE if pixels > _LARGE_PIXELS else contextlib.nullcontext():
                    check_memory(file, _PIXEL_BYTES * pixels)
                    plain, remarks = _plain(picture)
    except Unreadable:
        raise
    except RunError as error:
        raise Unreadable(str(error).rstrip(".")) from None
    except UnidentifiedImageError:
        raise Unreadable(f"cannot identify it as {', '.join(_FORMATS)}") from None
    except Exception as error:  # decoders raise what they like
        raise Unreadable(short(f"{type(error).__name__}: {error}")) from None
    plain = plain.convert("L" if channels == 1 else "RGB")
    plain = ImageOps.fit(plain, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(plain, np.uint8).reshape(shape), remarks


def _plain(picture: Image.Image) -> tuple[Image.Image, list[str]]:
    """8-bit RGB of a picture, and what was special about it."""
    remarks = []
    if getattr(picture, "is_animated", False):  # counting the frames would read all of them
        remarks.append("animated: its first picture")
    if picture.getexif().get(0x0112, 1) != 1:
        remarks.append("turned as its EXIF says")
    mode = picture.mode
    picture = ImageOps.exif_transpose(picture)
    if mode == "F":
        raise Unreadable("its pixels are fractions, of which nothing says what white is")
    if mode.startswith("I"):  # 16-bit grey, which Pillow would cut off at 255
        grey = np.asarray(picture, np.int64)
        if mode == "I" and grey.max() <= 255:  # of 32 bits
            remarks.append("grey")
        else:
            remarks.append("16 bits")
            grey = grey // 256
        grey = np.clip(grey, 0, 255)
        picture = Image.fromarray(grey.astype(np.uint8))
    elif mode in ("CMYK", "YCCK"):
        remarks.append("CMYK")
    elif mode in ("1", "L", "LA"):
        remarks.append("grey")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
        remarks.append("transparent: on white")
    return picture.convert("RGB"), remarks


def load_folder(folder: str | os.PathLike, image_size: tuple[int, ...]) -> Dataset:
    """Returns the pictures of a folder, decoded once by all cores and mapped from the cache then.

    Args:
      folder: as at the top of this file.
      image_size: height and width, and channels if not 3.

    Raises:
      UsageError: see `scan`.
      RunError: where a class has no picture that can be read.
    """
    root, shape = Path(folder).expanduser(), shape_of(image_size)
    splits, names, ignored = scan(root)
    # The order is that of the names, whatever the file system's is.
    files = {
        split: [(file, names.index(name)) for name in sorted(classes) for file in classes[name]]
        for split, classes in splits.items()
    }
    place = cache_dir() / "pictures" / _digest(root, files, names, shape)
    arrays, facts, left_out = {}, {}, []
    for split, members in files.items():
        records = _records(place / split, root, members, names, shape)
        # Held in memory where small, else read from the disk picture by picture.
        image, label = (records.arrays[key] for key in ("image", "label"))
        image = np.asarray(image) if image.nbytes <= SHARD_BYTES else image
        arrays[split] = {"image": image, "label": np.asarray(label)}
        facts[f"{split} pictures"] = len(label)
        for remark, count in records.metadata["remarks"].items():
            facts[remark] = facts.get(remark, 0) + count
        left_out += records.metadata["left_out"]
    facts["left out"] = len(left_out)
    for number, line in enumerate(left_out[:_SHOWN], 1):
        facts[f"left out {number}"] = line
        print(f"zoo: left out {line}", file=sys.stderr)
    if len(left_out) > _SHOWN:
        print(f"zoo: left out {len(left_out) - _SHOWN:,} files more", file=sys.stderr)
    facts |= _say_ignored(root, ignored)
    digest = hashlib.sha256(place.name.encode()).hexdigest()
    return Dataset(f"{FOLDER}{root}", arrays, tuple(names), digest, facts={"Pictures": facts})


def shape_of(image_size) -> tuple[int, int, int]:
    """Returns height, width and channels; raises UsageError where they are none."""
    size = tuple(image_size) if isinstance(image_size, Sequence) else (image_size,)
    if len(size) == 2:
        size = (*size, 3)
    whole = all(type(n) is int for n in size)
    if not whole or len(size) != 3 or min(size) < 1 or size[2] not in (1, 3):
        raise UsageError(
            "data.image_size is the height and width of pictures, and their channels, 1 or 3, if "
            f"not 3: (224, 224). Received: {image_size!r}."
        )
    return size


def scan(root: Path) -> tuple[dict[str, dict[str, list[Path]]], list[str], dict[str, int]]:
    """Lists the files of a folder by split and class, without opening any.

    Args:
      root: as at the top of this file.

    Returns:
      `(splits, class_names, ignored)`: split name -> class name -> files; the sorted names of the
      classes; and what no split and no class holds, as relative path -> number of files.

    Raises:
      UsageError: where there is no such folder, it holds no two classes, or a class is not in the
        training split.
    """
    if not root.is_dir():
        raise UsageError(f"There is no folder {root}. {lies_at(root)}")
    splits, ignored = _splits(root)
    names = sorted({name for classes in splits.values() for name in classes})
    if len(names) < 2:
        raise UsageError(
            f"{root} must hold a folder of pictures for each of two classes or more, or such "
            f"folders in {', '.join(SPLITS)}. {lies_at(root)}"
        )
    known = splits.get("train", names)
    for split, classes in splits.items():
        if unknown := sorted(set(classes) - set(known)):
            raise UsageError(
                f"{root}: each class needs a folder in the training split, and {split!r} has "
                f"classes that 'train' lacks: {', '.join(map(repr, unknown))}. Add their images to "
                f"'train', or move them out of {split!r}."
            )
    for name, files in splits.get("train", {}).items():
        if not files:
            raise UsageError(
                f"{root}: each class needs images in the training split, and the folder of "
                f"{name!r} is empty. Add images, or remove the folder."
            )
    return splits, names, ignored


def _splits(root: Path) -> tuple[dict[str, dict[str, list[Path]]], dict[str, int]]:
    found, ignored = {}, {}
    folders = {entry: SPLITS.get(entry.name.lower()) for entry in _folders(root)}
    if not any(folders.values()):
        return {"train": _classes(root, root, ignored)}, ignored
    _note_files(root, root, ignored)
    for entry, split in folders.items():
        if not split:
            ignored[entry.name] = len(_files(entry))
            continue
        if split in found:
            raise UsageError(f"{root} has two folders for the split {split!r}.")
        found[split] = _classes(entry, root, ignored)
        if not found[split]:
            raise UsageError(
                f"{entry} has no folder for each class: sort its pictures into such, or move "
                "it away."
            )
    return found, ignored


def _classes(folder: Path, root: Path, ignored: dict[str, int]) -> dict[str, list[Path]]:
    """Files by class; adds files beside the classes, and links that are not followed."""
    _note_files(folder, root, ignored)
    found = {}
    for entry in _folders(folder):
        found[entry.name] = _files(entry)
        for link in entry.rglob("*"):
            if link.is_symlink() and not link.is_file():
                ignored[str(link.relative_to(root))] = 1
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(x for x in folder.rglob("*") if x.is_file() and not x.name.startswith("."))


def _note_files(folder: Path, root: Path, ignored: dict[str, int]) -> None:
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir() and not entry.name.startswith("."):
            ignored[str(entry.relative_to(root))] = 1


def _say_ignored(root: Path, ignored: dict[str, int]) -> dict[str, int | str]:
    """Prints what a folder holds besides classes; returns it as facts of the report."""
    if not ignored:
        return {}
    lines = [
        f"{name} ({count:,} file{'s' * (count != 1)})" if (root / name).is_dir() else name
        for name, count in ignored.items()
    ]
    more = f" and {len(lines) - _SHOWN:,} more" if len(lines) > _SHOWN else ""
    count = sum(ignored.values())
    print(
        f"zoo: {root}: {count:,} file{'s are' if count != 1 else ' is'} in no class of a split and "
        f"not used: {', '.join(lines[:_SHOWN])}{more}",
        file=sys.stderr,
    )
    return {
        "not used": count,
        **{f"not used {i}": line for i, line in enumerate(lines[:_SHOWN], 1)},
    }


def _folders(folder: Path) -> list[Path]:
    return sorted(x for x in folder.iterdir() if x.is_dir() and not x.name.startswith("."))


def _digest(root: Path, files, names, shape) -> str:
    """Changes with every byte of every file, their names, and what they are made into."""
    digest = hashlib.sha256(repr((_FORMAT, names, shape)).encode())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split in sorted(files):
            paths = [file for file, _ in files[split]]
            for file, own in zip(paths, pool.map(file_digest, paths), strict=True):
                digest.update(repr((split, str(file.relative_to(root)), own)).encode())
    return digest.hexdigest()


def _records(place: Path, root: Path, members, names, shape) -> Records:
    """A split as records, decoded a chunk at a time unless that was done before."""
    with one_at_a_time(place):
        if place.exists():
            return open_records(place)
        left_out, remarks, seen = [], Counter(), Counter()
        with RecordWriter(place, {"image": (shape, "uint8"), "label": ((), "int64")}) as writer:
            for pixels, label in _decoded(root, members, shape, left_out, remarks):
                writer.append(image=pixels, label=label)
                seen.update(label.tolist())
            # Another split may lack a class, but not all.
            needed = names if place.name == "train" or not seen else ()
            for number, name in enumerate(needed):
                if not seen[number]:
                    why = f" Left out: {left_out[-1]}." if left_out else ""
                    raise RunError(
                        f"{root}, split {place.name!r}: class {name!r} has no picture that can be "
                        f"read.{why}"
                    )
            writer.metadata = {"remarks": dict(sorted(remarks.items())), "left_out": left_out}
        return open_records(place)


def _decoded(root, members, shape, left_out: list, remarks: Counter) -> Iterator:
    """Yields `(pixels, label)` of chunks of files, in order; counts what was special."""

    def one(file):
        try:
            return decode(file, shape)
        except Unreadable as error:
            return None, str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow lets go of the lock
        for start in range(0, len(members), _CHUNK):
            chunk = members[start : start + _CHUNK]
            pixels, labels = [], []
            for (file, label), (found, said) in zip(
                chunk, pool.map(one, [file for file, _ in chunk]), strict=True
            ):
                if found is None:
                    left_out.append(f"{file.relative_to(root)}: {said}")
                    continue
                remarks.update(said)
                pixels.append(found)
                labels.append(label)
            if pixels:
                yield np.stack(pixels), np.array(labels, np.int64)
