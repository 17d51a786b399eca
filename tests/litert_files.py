"""Reads the constants of a LiteRT file."""

import numpy as np


def constants(path, least=1024) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns (values, scales) of the constant arrays with at least `least` elements."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter, arrays = Interpreter(model_path=str(path)), []
    for detail in interpreter.get_tensor_details():
        if np.prod(detail["shape"]) < least:
            continue
        try:
            values = interpreter.get_tensor(detail["index"])
        except ValueError:  # computed, not stored
            continue
        arrays.append((values.copy(), detail["quantization_parameters"]["scales"]))
    return arrays
