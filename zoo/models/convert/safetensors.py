"""Float32 weights in safetensors files, read one tensor at a time."""

import errno
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from zoo.errors import RunError, UsageError, short
from zoo.storage.bounds import JSON_EXPANSION, MAX_AXES, check_memory
from zoo.storage.disk import atomic_path, open_file, read_json, unreadable

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_TYPES = ("F32", "F16", "BF16")


class Tensors(Mapping):
    """Tensors of one or more safetensors files by name; values are read on access.

    Args:
      paths: paths of the files.

    Raises:
      RunError: if a file is missing, truncated or otherwise damaged.
    """

    def __init__(self, paths: list[Path]):
        self._files, self._paths = {}, {}
        for path in paths:
            self._files[path] = _open(path)
            for name in self._files[path].keys():  # noqa: SIM118  not a mapping
                if name in self._paths:
                    raise RunError(f"Tensor {name!r} is in both {self._paths[name]} and {path}.")
                self._paths[name] = path
                if len(self._slice(name).get_shape()) > MAX_AXES:
                    raise RunError(f"{path} is damaged: its tensor {name!r} has too many axes.")

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, name: str) -> Path:
        """Returns the path of the file that contains a tensor."""
        return self._paths[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor without reading it."""
        return tuple(self._slice(name).get_shape())

    def _slice(self, name: str):
        return self._files[self._paths[name]].get_slice(name)

    def __getitem__(self, name: str) -> np.ndarray:
        """Returns a tensor as float32.

        Raises:
          RunError: if the stored values are not floating-point numbers of 16 or 32 bits.
        """
        path, dtype = self._paths[name], self._slice(name).get_dtype()
        if dtype not in _TYPES:
            raise RunError(
                f"Tensor {name!r} of {path} must have one of the types {', '.join(_TYPES)}. "
                f"Received: {dtype}."
            )
        # Up to three copies: as stored, as float32, and transposed for the model.
        check_memory(path, 12 * int(np.prod(self.shape(name), dtype=np.int64)))
        return self._files[path].get_tensor(name).astype(np.float32, copy=False)


def _open(path: Path):
    """Opens a file; the library checks that its tensors fill the file."""
    try:
        with open_file(path) as file:
            check_memory(path, JSON_EXPANSION * min(int.from_bytes(file.read(8), "little"), 10**8))
        return safe_open(path, framework="numpy")
    except OSError as error:
        raise unreadable(path, error) from None
    except SafetensorError as error:
        raise RunError(f"{path} is damaged: {short(error)}") from None


def open_folder(folder: Path) -> Tensors:
    """Opens the weights in a folder: model.safetensors, or the shards listed in an index.

    Raises:
      UsageError: if the folder contains neither.
      RunError: if a file is damaged.
    """
    if (folder / SINGLE).exists():
        return Tensors([folder / SINGLE])
    index = folder / INDEX
    if not index.exists():
        pickles = [path.name for path in sorted(folder.glob("*.bin"))]
        hint = f" {pickles[0]} is not supported: loading a pickle can run code." if pickles else ""
        raise UsageError(f"{folder} contains neither {SINGLE} nor {INDEX}.{hint}")
    weight_map = read_json(index)
    weight_map = weight_map.get("weight_map") if isinstance(weight_map, dict) else None
    if not isinstance(weight_map, dict) or not all(
        isinstance(file_name, str) and file_name == Path(file_name).name
        for file_name in weight_map.values()
    ):
        raise RunError(
            f"{index} is damaged: weight_map must map tensors to files in the same folder."
        )
    tensors = Tensors([folder / name for name in sorted(set(weight_map.values()))])
    for name, file_name in weight_map.items():
        if name not in tensors or tensors.path(name).name != file_name:
            raise RunError(
                f"{folder / file_name} lacks tensor {name!r}, which {INDEX} assigns to this file."
            )
    return tensors


def write(path: Path, tensors: Mapping[str, tuple[tuple[int, ...], Callable]]) -> None:
    """Writes float32 tensors to one file, with a copy of all of them in memory.

    Args:
      path: path of the file.
      tensors: `{name: (shape, function that returns the values)}`.

    Raises:
      OSError: if the file cannot be written.
    """
    arrays = {}
    for name, (shape, values) in tensors.items():
        arrays[name] = np.ascontiguousarray(values(), np.float32)
        assert arrays[name].shape == tuple(shape), name
    with atomic_path(path) as temporary:
        # transformers refuses a file without the framework of its layout in the metadata.
        try:
            save_file(arrays, temporary, metadata={"format": "pt"})
        except SafetensorError as error:  # also raised if the disk is full
            raise OSError(errno.EIO, short(error), str(path)) from None
