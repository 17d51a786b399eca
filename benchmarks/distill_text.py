"""A small language model alone, and taught by a large one: how much of the gap it makes up.

    python -m benchmarks.distill_text [--recipe=gpt_pydoc] [--steps=300] [--seeds 0 1 2]
        [--student model.hidden_dim=64 model.num_layers=3] [--settings alpha=0.5 temperature=2.0]
        [--change trainer.precision=float32 data.sequence_length=128] [--teacher=W] [--cut=0.83]

Teacher and students are trained with the same recipe, number of steps and data, each in a process
of its own; the metrics are those of the test split, or where a text has none of the validation
split, of which nothing is chosen. Rows go to results/distill.csv; "recovered" is the share of the
gap between the student alone and the teacher that the taught student makes up.

With `--cut` the student has the layers of the teacher, without that share of heads and neurons. The
one alone starts from nothing; the taught one from the teacher's weights that matter most, as Sun et
al. 2019 (arXiv:1908.09355) and Sanh et al. 2019 (DistilBERT, arXiv:1910.01108) start theirs and
Muralidharan et al. 2024 (Minitron, arXiv:2407.14679) cut them. A third starts there too and is not
taught ("student cut"), which tells what of the gain is the start's.

`gpt_shakespeare` (sequences of 128, 16 a batch) cut to 21 % of its parameters, three seeds, 300
updates, a teacher of 600: taught 54, 57, 57 %, cut and not taught 60, 62, 59 % of the gap.

Tried on the validation split of gpt_pydoc with one seed (alone 3.859, teacher 3.570): alpha 0.5 at
a temperature of 2, 3.742; alpha 0.9 at 1, 3.773, with hidden=1.0 3.796; alpha 1.0 at 2, 3.810. With
900 updates for the student alone it is better than this teacher of 300 (test loss 3.018 against
3.108), and taught it is worse than alone (3.072): a teacher must have had as many.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.results_file import append


def zoo(*words: str) -> None:
    """Runs `zoo WORD ...`."""
    subprocess.run([sys.executable, "-m", "trainers.cli.main", *words], check=True)


def reached(workdir: Path) -> dict:
    """Parameters and metrics of a work directory."""
    import zoo as library

    lines = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    test = workdir / "evaluation" / "test.json"
    split = "test" if test.exists() else "validation"
    if test.exists():
        metrics = json.loads(test.read_text())["metrics"]
    else:
        last = next(line for line in reversed(lines) if "val_loss" in line)
        metrics = {key[4:]: last[key] for key in last if key.startswith("val_")}
    return {
        "steps": max(line.get("step", 0) for line in lines),
        "split": split,
        "parameters": library.load(str(workdir)).count_params(),
        "loss": round(metrics["loss"], 5),
        "bits_per_byte": round(metrics["bits_per_byte"], 5),
        "training_seconds": max(line.get("seconds", 0) for line in lines),
    }


def main() -> None:
    """Trains the teacher, then the students of each seed, writing rows as they come."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="gpt_pydoc")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--student", nargs="+", default=["model.hidden_dim=64", "model.num_layers=3"]
    )
    parser.add_argument("--settings", nargs="*", default=["alpha=0.5", "temperature=2.0"])
    parser.add_argument("--change", nargs="*", default=[])
    parser.add_argument("--teacher", default="", help="a work directory, in place of training one")
    parser.add_argument("--cut", type=float, default=0, help="a share, in place of --student")
    arguments = parser.parse_args()
    steps = arguments.steps
    length = [f"trainer.{key}={steps}" for key in ("steps", "evaluate_every", "checkpoint_every")]
    change = [f"--config.{text}" for text in (*arguments.change, *length)]
    settings = [f"--config.compress.distill.{text}" for text in arguments.settings]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        teacher = Path(arguments.teacher or place / "teacher")
        if not arguments.teacher:
            zoo("train", arguments.recipe, f"--workdir={teacher}", *change)
        goal = reached(teacher)

        def keep(what, seed, found, recovered=""):
            said = [f"cut={arguments.cut}"] if arguments.cut else []
            row = {
                "recipe": arguments.recipe, "what": what, "seed": seed, **found,
                "recovered": recovered,
                "settings": " ".join([*arguments.change, *settings, *said]),
            }  # fmt: skip
            append("distill", [row])
            print(row, flush=True)

        keep("teacher", "", goal)
        if arguments.cut:
            start = [
                f"--config.init_from={teacher}",
                f"--config.compress.structured.sparsity={arguments.cut}",
            ]
        else:
            alone = taught = [f"--config.{text}" for text in arguments.student]
        for seed in arguments.seeds:
            same = [*change, f"--config.trainer.seed={seed}"]
            # The teacher's own tokenizer, whatever was trained since.
            plain = ["train", arguments.recipe, *same, f"--config.data.tokenizer={teacher}"]
            ways = {
                "alone": place / f"alone-{seed}",
                "cut": place / f"cut-{seed}",
                "taught": place / f"taught-{seed}",
            }
            if arguments.cut:
                zoo(*plain, f"--workdir={ways['cut']}", *start)
                taught = start
                recipe = json.loads((ways["cut"] / "config.json").read_text())["config"]
                widths = tuple(recipe["compress"]["structured"]["widths"])
                alone = [f"--config.compress.structured.widths={widths}"]
            zoo(*plain, f"--workdir={ways['alone']}", *alone)
            zoo(
                "compress", "distill", str(teacher), f"--out={ways['taught']}", *same, *taught,
                *settings,
            )  # fmt: skip
            found = {what: reached(path) for what, path in ways.items() if path.exists()}
            gap = found["alone"]["loss"] - goal["loss"]
            for what, its in found.items():
                made_up = (
                    round((found["alone"]["loss"] - its["loss"]) / gap, 4) if gap > 0 else "no gap"
                )
                keep(f"student {what}", seed, its, "" if what == "alone" else made_up)


if __name__ == "__main__":
    main()
