"""Headers of .npy files: read as NumPy does, in several threads, never as Python code."""

import gc
import io
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from zoo.storage.arrays import array_of, read_npy_header

ARRAYS = {
    "scalar": np.array(3.5),
    "vector": np.arange(7, dtype="uint8"),
    "empty": np.zeros((0, 3), "float32"),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(4, dtype=">i8"),
    "bool": np.array([[True], [False]]),
    "text": np.array(["a", "bcd"]),
    "bytes": np.array([b"ab", b"c"]),
    "half": np.ones((2, 2, 2), "float16"),
    "complex": np.ones(2, "complex64"),
    "dates": np.array(["2020-01-01"], "datetime64[D]"),
}


def stored(array, version=(1, 0), **options) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version, **options)
    return file.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_are_read_as_numpy_reads_them(name, version):
    array = ARRAYS[name]
    back = array_of(stored(array, version))
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0)])
def test_objects_and_records_are_refused(version):
    with pytest.raises(ValueError, match="pickled Python objects"):
        array_of(stored(np.array([{}], object), version, allow_pickle=True))
    with pytest.raises(ValueError, match="invalid .npy header"):
        array_of(stored(np.zeros(2, [("a", "f4")]), version))


def test_a_long_header_is_refused():
    with pytest.raises(ValueError, match="header of 4000000000 bytes"):
        array_of(b"\x93NUMPY\x02\x00" + (4_000_000_000).to_bytes(4, "little") + b"{")


def test_threads_read_headers_at_once():
    """Python's parser miscounts its depth if another thread parses at the same time."""
    data = stored(ARRAYS["vector"])
    threshold = gc.get_threshold()

    def switch_threads(*_):
        time.sleep(1e-4)

    gc.callbacks.append(switch_threads)
    gc.set_threshold(20)
    try:
        with ThreadPoolExecutor(4) as threads:
            headers = list(
                threads.map(lambda _: read_npy_header(io.BytesIO(data)), range(500), timeout=60)
            )
    finally:
        gc.callbacks.remove(switch_threads)
        gc.set_threshold(*threshold)
    assert headers == [((7,), False, np.dtype("uint8"))] * 500
