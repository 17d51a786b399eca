"""The safetensors format: eight bytes of header length, a JSON header, raw little-endian values.

Written out here because reading it takes neither PyTorch nor transformers
(https://github.com/huggingface/safetensors, section Format).
"""

import itertools
import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from zoo.data.bounds import JSON_EXPANSION, MOST_AXES, check_memory
from zoo.data.disk import atomic, open_file, read_json, unreadable
from zoo.errors import RunError, UsageError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# bfloat16 is the upper half of a float32 and has no name in NumPy.
_TYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}
_LARGEST_HEADER = 100_000_000  # bytes, as the format has it


class Tensors(Mapping):
    """The tensors of one or more safetensors files by name; values are read when asked for.

    Args:
      paths: the files.

    Raises:
      RunError: where a file is missing, cut short or otherwise damaged.
    """

    def __init__(self, paths: list[Path]):
        self._entries = {}
        for path in paths:
            for name, entry in _read_header(path).items():
                if name in self._entries:
                    raise RunError(
                        f"Tensor {name!r} is in both {self._entries[name][0]} and {path}."
                    )
                self._entries[name] = (path, *entry)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def path(self, name: str) -> Path:
        """Returns the file that holds a tensor."""
        return self._entries[name][0]

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor without reading it."""
        return self._entries[name][2]

    def __getitem__(self, name: str) -> np.ndarray:
        """Returns a tensor as float32.

        Raises:
          RunError: where it holds no floating-point numbers of 16 or 32 bits, or cannot be read.
        """
        path, kind, shape, start = self._entries[name]
        if kind not in _TYPES:
            raise RunError(
                f"Tensor {name!r} of {path} is of type {kind}; {', '.join(_TYPES)} are read."
            )
        count = math.prod(shape)
        try:
            with open_file(path) as file:
                # As stored, as float32, and transposed by the model.
                check_memory(path, 12 * count)
                file.seek(start)
                values = np.fromfile(file, _TYPES[kind], count)
        except OSError as error:
            raise unreadable(path, error) from None
        if values.size != count:
            raise RunError(f"{path} is damaged: it ends inside tensor {name!r}.")
        if kind == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.astype(np.float32, copy=False).reshape(shape)


def open_folder(folder: Path) -> Tensors:
    """Opens the weights in a folder: model.safetensors, or the shards that an index names.

    Raises:
      UsageError: where there are none.
      RunError: where they are damaged.
    """
    if (folder / SINGLE).exists():
        return Tensors([folder / SINGLE])
    index = folder / INDEX
    if not index.exists():
        other = [path.name for path in sorted(folder.glob("*.bin"))]
        hint = f" {other[0]} is not read: opening a pickle can run code." if other else ""
        raise UsageError(f"{folder} holds neither {SINGLE} nor {INDEX}.{hint}")
    places = read_json(index)
    places = places.get("weight_map") if isinstance(places, dict) else None
    if not isinstance(places, dict) or not all(
        isinstance(place, str) and place == Path(place).name for place in places.values()
    ):
        raise RunError(f"{index} is damaged: it has no weight_map from tensors to files beside it.")
    tensors = Tensors([folder / name for name in sorted(set(places.values()))])
    for name, place in places.items():
        if name not in tensors or tensors.path(name).name != place:
            raise RunError(f"Tensor {name!r} is not in {folder / place}, where {INDEX} has it.")
    return tensors


def write(path: Path, tensors: Mapping[str, tuple[tuple[int, ...], Callable]]) -> None:
    """Writes one file of float32 tensors, one tensor in memory at a time.

    Args:
      path: of the file.
      tensors: name to `(shape, function that returns the values)`.

    Raises:
      OSError: as the disk says.
    """
    # transformers refuses a file that does not say what framework's layout it has.
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, _) in tensors.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values start at a multiple of eight
    with atomic(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, (shape, values) in tensors.items():
            array = np.ascontiguousarray(values(), _TYPES["F32"])
            assert array.shape == tuple(shape), name
            file.write(array.data)


def _read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Returns `{name: (type, shape, first byte)}` of a file whose every tensor lies inside it."""
    try:
        with open_file(path) as file:
            total = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if total < 8 or length > min(total - 8, _LARGEST_HEADER):
                raise RunError(f"{path} is damaged: it is no safetensors file, or is cut short.")
            check_memory(path, JSON_EXPANSION * length)
            header = json.loads(file.read(length))
    except OSError as error:
        raise unreadable(path, error) from None
    except (ValueError, RecursionError):
        raise RunError(f"{path} is damaged: its header is no JSON.") from None
    if not isinstance(header, dict):
        raise RunError(f"{path} is damaged: its header is no table of tensors.")
    header.pop("__metadata__", None)
    entries, places = {}, []
    for name, entry in header.items():
        try:
            kind, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            if len(shape) > MOST_AXES:
                raise ValueError
            size = _TYPES[kind].itemsize * math.prod(shape) if kind in _TYPES else end - start
            integers = all(type(number) is int for number in (*shape, start, end))
            whole = integers and 0 <= start <= end and end - start == size
            whole = whole and min(shape, default=0) >= 0
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise RunError(f"{path} is damaged: its header describes tensor {name!r} wrongly.")
        if 8 + length + end > total:
            raise RunError(f"{path} is cut short: it ends before the end of tensor {name!r}.")
        entries[name] = (kind, shape, 8 + length + start)
        places.append((start, end))
    places.sort()
    if any(end > start for (_, end), (start, _) in itertools.pairwise(places)):
        raise RunError(f"{path} is damaged: its header has tensors that overlap.")
    return entries
