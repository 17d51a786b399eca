"""`synthetic:modular` and `synthetic:parity`: chains of operations on one number.

A row of `modular` is a chain of operations modulo `MODULUS`, a byte each: byte x below `MODULUS`
adds x, byte `MODULUS` + x - 1 multiplies by x. The chain begins with 0 and an addition. A row of
`parity` is a chain of bits, each of which is added modulo 2. Each position asks for the value so
far, and its depth is the number of operations up to it. With written-out steps, the row has one
question: "=" after the chain, then all values in order.
"""

from zoo.data.text.synthetic.question import Question

MODULUS = 7
EQUALS = 255


def modular(generator, depth: int, largest: int, steps: bool):
    """Returns the row of one chain of operations; see `zoo.data.text.synthetic.chase.chase`."""
    adds = generator.integers(0, MODULUS, depth)
    factors = generator.integers(1, MODULUS, depth)
    is_sum = generator.random(depth) < 0.5
    is_sum[0] = True
    operations, values, value = [], [], 0
    for is_added, x, factor in zip(is_sum, adds, factors, strict=True):
        value = int(value + x if is_added else value * factor) % MODULUS
        operations.append(int(x if is_added else MODULUS + factor - 1))
        values.append(value)
    return _row(operations, values, steps)


def parity(generator, depth: int, largest: int, steps: bool):
    """Returns the row of one chain of bits; see `zoo.data.text.synthetic.chase.chase`."""
    bits = generator.integers(0, 2, depth)
    return _row(bits.tolist(), (bits.cumsum() % 2).tolist(), steps)


def _row(operations: list[int], values: list[int], steps: bool):
    if steps:
        return operations, [Question([EQUALS], values, len(values))], bytes(operations)
    questions = [
        Question([x], [value], i)
        for i, (x, value) in enumerate(zip(operations, values, strict=True), 1)
    ]
    return [], questions, bytes(operations)


def chain_length(depth: int, steps: bool) -> int:
    """Returns the length of a row of a depth."""
    return 2 * depth if steps else depth


def modular_guess(depth: int) -> float:
    """Returns the accuracy of the best guess that skips an operation.

    The first sum makes all values equally likely, and so does every later sum; a product by a
    number other than 0 is a permutation of the values.
    """
    return 1 / MODULUS


def parity_guess(depth: int) -> float:
    """Returns the accuracy of the best guess that skips a bit."""
    return 1 / 2
