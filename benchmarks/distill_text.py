"""Trains a small language model alone and by distillation, and compares the gap to the teacher.

    python -m benchmarks.distill_text [--recipe=gpt_pydoc] [--steps=300] [--seeds 0 1 2]
        [--student model.hidden_dim=64 model.num_layers=3] [--settings alpha=0.5 temperature=2.0]
        [--change trainer.precision=float32 data.sequence_length=128] [--teacher=W] [--cut=0.83]

Teacher and students train with the same recipe, number of steps and data, each in a separate
process. Metrics are those of the test split, or of the validation split if there is no test split
(nothing is selected by it). Rows go to results/distill.csv; "recovered" is the share of the gap
between student and teacher that distillation closes.

With `--cut` the student has the layers of the teacher without that share of heads and neurons. The
student "alone" starts from random weights. The distilled student ("taught") starts from the most
important weights of the teacher, as in Sun et al. 2019 (arXiv:1908.09355), Sanh et al. 2019
(DistilBERT, arXiv:1910.01108) and Muralidharan et al. 2024 (Minitron, arXiv:2407.14679). A third
one ("cut") has the same start without distillation, which shows the effect of the start.

`gpt_shakespeare` (16 sequences of 128 tokens per batch) cut to 21 % of its parameters, three seeds,
300 updates, a teacher of 600 updates: distillation closes 54, 57, 57 % of the gap, the start alone
60, 62, 59 %.

Other settings, on the validation split of gpt_pydoc with one seed (student alone 3.859, teacher
3.570): alpha 0.5 at temperature 2: 3.742; alpha 0.9 at 1: 3.773, with hidden=1.0 3.796; alpha 1.0
at 2: 3.810. After 900 updates the student alone is better than this teacher of 300 updates (test
loss 3.018 and 3.108), and distillation makes it worse (3.072): train the teacher as long.
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


def results(workdir: Path) -> dict:
    """Returns the parameters and metrics of a work directory."""
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
    """Trains the teacher, then the students of each seed; writes each row once it is measured."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="gpt_pydoc")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--student", nargs="+", default=["model.hidden_dim=64", "model.num_layers=3"]
    )
    parser.add_argument("--settings", nargs="*", default=["alpha=0.5", "temperature=2.0"])
    parser.add_argument("--change", nargs="*", default=[])
    parser.add_argument("--teacher", default="", help="work directory, instead of training one")
    parser.add_argument("--cut", type=float, default=0, help="share to cut, instead of --student")
    arguments = parser.parse_args()
    steps = arguments.steps
    length = [f"trainer.{key}={steps}" for key in ("steps", "evaluate_every", "checkpoint_every")]
    change = [f"--config.{text}" for text in (*arguments.change, *length)]
    settings = [f"--config.compress.distill.{text}" for text in arguments.settings]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        teacher = Path(arguments.teacher or root / "teacher")
        if not arguments.teacher:
            zoo("train", arguments.recipe, f"--workdir={teacher}", *change)
        teacher_results = results(teacher)

        def write(what, seed, measured, recovered=""):
            cut = [f"cut={arguments.cut}"] if arguments.cut else []
            row = {
                "recipe": arguments.recipe, "what": what, "seed": seed, **measured,
                "recovered": recovered,
                "settings": " ".join([*arguments.change, *settings, *cut]),
            }  # fmt: skip
            append("distill", [row])
            print(row, flush=True)

        write("teacher", "", teacher_results)
        if arguments.cut:
            start = [
                f"--config.init_from={teacher}",
                f"--config.compress.structured.sparsity={arguments.cut}",
            ]
        else:
            alone = distilled = [f"--config.{text}" for text in arguments.student]
        for seed in arguments.seeds:
            common = [*change, f"--config.trainer.seed={seed}"]
            # All students use the tokenizer of the teacher.
            plain = ["train", arguments.recipe, *common, f"--config.data.tokenizer={teacher}"]
            workdirs = {
                "alone": root / f"alone-{seed}",
                "cut": root / f"cut-{seed}",
                "taught": root / f"taught-{seed}",
            }
            if arguments.cut:
                zoo(*plain, f"--workdir={workdirs['cut']}", *start)
                distilled = start
                recipe = json.loads((workdirs["cut"] / "config.json").read_text())["config"]
                widths = tuple(recipe["compress"]["structured"]["widths"])
                alone = [f"--config.compress.structured.widths={widths}"]
            zoo(*plain, f"--workdir={workdirs['alone']}", *alone)
            zoo(
                "compress", "distill", str(teacher), f"--out={workdirs['taught']}", *common,
                *distilled, *settings,
            )  # fmt: skip
            measured = {what: results(path) for what, path in workdirs.items() if path.exists()}
            loss_alone = measured["alone"]["loss"]
            gap = loss_alone - teacher_results["loss"]
            for what, values in measured.items():
                recovered = round((loss_alone - values["loss"]) / gap, 4) if gap > 0 else "no gap"
                write(f"student {what}", seed, values, "" if what == "alone" else recovered)


if __name__ == "__main__":
    main()
