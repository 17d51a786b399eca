"""Where the time of a GPT's training step goes, kind of operation by kind, in both precisions.

    python -m benchmarks.text_profile [--steps=4]

The model is that of benchmarks/text_speed.py. TensorFlow's own profiler says how long each
operation held a thread; rows with the share of each kind go to results/text_profile.csv.

Why bfloat16 was 1.76 times KerasHub's float32 (1.77 on 2026-11-24, results/text_speed.csv) and not
twice: on 2 cores of an AMD EPYC with AVX512_BF16, 2026-11-26, matrix products were 47 % of the time
that operations held a thread, and they run at what the machine's large product reaches; elementwise
operations 25 %, casts between the precisions 9 %, sums 7 %, copies 4 %, random numbers 4 %, softmax
and cross-entropy 3 %. All but the first are as slow in bfloat16 as in float32, the casts are extra,
and a fifth of the two threads' time is idle, between some thousand short operations. Adam's step as
one operation a variable, which is new since 2026-11-24, is 2 % of it. The rows of 2026-11-25 are of
a CPU without AVX512, where bfloat16 is computed by float32 and a step takes 1.5 times as long.
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
    """Returns the first kind whose pattern the operation's type matches."""
    return next((name for name, pattern in KINDS.items() if re.search(pattern, operation)), "other")


def operations(folder: str) -> dict[str, float]:
    """Returns seconds by type of operation, of a profile that TensorFlow wrote."""
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
                    # An operation's event is called "name:Type"; other events are none.
                    name = names.get(event.metadata_id, "")
                    match = re.fullmatch(r"[^:]+:([A-Z_]\w*)", name)
                    if match and not re.search(r"While|If$|Call|Function", match[1]):
                        seconds[match[1]] = seconds.get(match[1], 0) + event.duration_ps / 1e12
    return seconds


def measure(precision: str, steps: int) -> list[dict]:
    """Profiles some steps; returns a row a kind."""
    import tensorflow as tf

    from benchmarks.text_speed import zoo

    train = zoo(precision)
    train(2)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            wall, _ = train(steps)
        found = operations(folder)
    whole = sum(found.values())
    shares: dict[str, float] = {}
    for operation, seconds in found.items():
        shares[kind(operation)] = shares.get(kind(operation), 0) + seconds
    return [
        {
            "precision": precision,
            "kind": name,
            "share": round(seconds / whole, 3),
            "thread_milliseconds_a_step": round(1e3 * seconds / steps),
            "milliseconds_a_step": round(1e3 * wall / steps),
        }
        for name, seconds in sorted(shares.items(), key=lambda x: -x[1])
    ]


def main() -> None:
    """Profiles each precision in a process of its own."""
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
