"""Profiles the training step of a GPT by kind of operation, in float32 and bfloat16.

    python -m benchmarks.text_profile [--steps=4]

The model is that of benchmarks/text_speed.py. TensorFlow's profiler gives the thread time of each
operation; the share of each kind goes to results/text_profile.csv.

Why bfloat16 was 1.76 times as fast as KerasHub's float32 (1.77 on 2026-11-24,
results/text_speed.csv) and not twice: on 2 cores of an AMD EPYC with AVX512_BF16, 2026-11-26,
matrix products took 47 % of the thread time, at the speed of the machine's large product;
elementwise operations 25 %, casts 9 %, sums 7 %, copies 4 %, random numbers 4 %, softmax and
cross-entropy 3 %. Except for matrix products, these are as slow in bfloat16 as in float32, the
casts are extra, and a fifth of the time of the two threads is idle between thousands of short
operations. Adam's step as one operation per variable, new since 2026-11-24, takes 2 %. The rows of
2026-11-25 are from a CPU without AVX512, which emulates bfloat16: a step takes 1.5 times as long.
"""

import argparse
import glob
import re
import subprocess
import sys
import tempfile

KINDS = {
    "matrix products": r"MatMul|Einsum|Conv",
    "softmax and cross-entropy": r"Softmax|Xent|Exp$|Log$|Log1p|LogSumExp|Max$",
    "casts between precisions": r"^Cast$",
    "random numbers": r"Random|Philox|Bernoulli",
    "transposes and copies": r"Transpose|Concat|Split|Slice|Gather|Scatter|Pack|Tile|Pad|Reshape",
    "sums and means": r"Sum$|Mean$|Prod$|AddN|BiasAddGrad|SquaredDifference",
    "elementwise": r"Mul$|Add|Sub$|Div|Sqrt|Rsqrt|Square|Tanh|Erf|Select|Greater|Less|Neg|Pow|Relu"
    r"|Gelu|Resource|Assign|Maximum|Minimum|BiasAdd",
}


def kind(operation: str) -> str:
    """Returns the first kind with a pattern that matches the type of the operation."""
    return next((name for name, pattern in KINDS.items() if re.search(pattern, operation)), "other")


def operations(folder: str) -> dict[str, float]:
    """Returns the seconds per type of operation from a profile of TensorFlow."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    seconds: dict[str, float] = {}
    for path in glob.glob(f"{folder}/**/*.xplane.pb", recursive=True):
        space = xplane_pb2.XSpace()
        with open(path, "rb") as file:
            space.ParseFromString(file.read())
        for plane in space.planes:
            names = {key: value.name for key, value in plane.event_metadata.items()}
            for line in plane.lines:
                for event in line.events:
                    # The event of an operation has the name "name:Type".
                    name = names.get(event.metadata_id, "")
                    match = re.fullmatch(r"[^:]+:([A-Z_]\w*)", name)
                    if match and not re.search(r"While|If$|Call|Function", match[1]):
                        seconds[match[1]] = seconds.get(match[1], 0) + event.duration_ps / 1e12
    return seconds


def measure(precision: str, steps: int) -> list[dict]:
    """Profiles `steps` steps; returns one row per kind."""
    import tensorflow as tf

    from benchmarks.text_speed import zoo

    train = zoo(precision)
    train(2)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            wall, _ = train(steps)
        by_type = operations(folder)
    total = sum(by_type.values())
    by_kind: dict[str, float] = {}
    for operation, seconds in by_type.items():
        by_kind[kind(operation)] = by_kind.get(kind(operation), 0) + seconds
    return [
        {
            "precision": precision,
            "kind": name,
            "share": round(seconds / total, 3),
            "thread_milliseconds_a_step": round(1e3 * seconds / steps),
            "milliseconds_a_step": round(1e3 * wall / steps),
        }
        for name, seconds in sorted(by_kind.items(), key=lambda x: -x[1])
    ]


def main() -> None:
    """Profiles each precision in a separate process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--precision", choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    if not arguments.precision:
        for precision in ("float32", "bfloat16"):
            command = [sys.executable, "-m", "benchmarks.text_profile", f"--precision={precision}"]
            subprocess.run([*command, f"--steps={arguments.steps}"], check=True)
        return
    from benchmarks.results_file import append

    rows = measure(arguments.precision, arguments.steps)
    for row in rows:
        print(row)
    append("text_profile", rows)


if __name__ == "__main__":
    main()
