"""Compares short runs of another commit with those of this working tree, to the bit.

    make golden BASE=COMMIT
    python -m tests.golden COMMIT [--only cnn_digits prune] [--folder DIR]

A reorganization of the code must change no result. Each case runs in both trees through `zoo`, as a
user runs it: training of each family, compression, two replicas, two workers, a run that is killed
and resumed, and data preparation. The comparison covers

- the values of the final model's weights, in the order of the model and without their names;
- the lines of metrics.jsonl without times and rates, and with the numbers of each event's text;
- the files of data preparation, except the page and the hash of the source code.

Both trees run at the same time, each case in a separate process. The exit status is 1 if a result
differs. With --folder the runs are kept in that folder.
"""

import argparse
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from tests import pages
from tests.commands import ZOO
from tests.workers import free_addresses

ROOT = Path(__file__).parents[1]
LIMIT = 300  # seconds per command
# Settings that shorten the debug runs further.
SHORT = ("--config.trainer.steps=20", "--config.trainer.log_every=5")

TRAIN = {
    "cnn_digits": ["train", "cnn_digits:debug"],
    "gpt_pydoc": ["train", "gpt_pydoc:debug", *SHORT],
    "lstm_pydoc": ["train", "lstm_pydoc:debug", *SHORT],
    "bert_wiki": ["train", "bert_wiki:debug", *SHORT],
    "seq2seq_multi30k": [
        "train", "seq2seq_multi30k:debug", *SHORT, "--config.data.source=pairs:pairs.tsv",
        "--config.data.vocabulary_size=500",
    ],
    "dcgan_mnist": ["train", "dcgan_mnist:debug", *SHORT],
    "vgg16_transfer": ["train", "vgg16_transfer:debug", *SHORT],
    "mirrored": [
        "train", "cnn_digits:debug", "--config.trainer.strategy=mirrored",
        "--config.trainer.replicas=2", "--config.trainer.ema=0.9",
        "--config.trainer.micro_batch_size=16",
    ],
}  # fmt: skip
COMPRESS = {
    "prune": ["--config.trainer.steps=150"],
    "qat": [],
    "distill": ["--config.compress.distill.hidden=0"],
    "low_rank": ["--config.compress.low_rank.energy=0.9"],
}
CASES = (*TRAIN, *COMPRESS, "two_workers", "killed", "prepare")
# Keys of metrics.jsonl with values that differ between two runs of the same code, and events that
# describe one process.
_TIMES, _PROCESS_EVENTS = ("seconds", "goodput", "time"), ("started", "resumed")
_WEIGHTS = """
import hashlib, json, sys
import keras, numpy as np
import zoo
for folder in sys.argv[1:]:
    digest = hashlib.sha256()
    weights = zoo.load(folder).weights
    for weight in weights:
        value = np.asarray(keras.ops.convert_to_numpy(weight.value))
        digest.update(f"{value.dtype}{value.shape}".encode() +
        np.ascontiguousarray(value).tobytes())
    print(json.dumps([folder, len(weights), digest.hexdigest()]), flush=True)
"""


class Tree:
    """A checkout of the zoo and the folder of its runs."""

    def __init__(self, root: Path, folder: Path):
        self.root, self.folder = root, folder
        folder.mkdir(parents=True, exist_ok=True)
        # Relative paths give both trees the same recipes.
        lines = [line for seed in range(60) for line in pages.sentences(seed)]
        (folder / "pairs.tsv").write_text("".join(f"{x}\t{x.swapcase()}\n" for x in lines))
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(root),
            "PYTHONSAFEPATH": "1",
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "ZOO_CACHE_DIR": str(folder / "cache"),
        }
        self.failures: dict[str, str] = {}

    def start(self, code: str, *words) -> subprocess.Popen:
        return subprocess.Popen(
            [sys.executable, "-c", code, *map(str, words)],
            env=self.environment, cwd=self.folder, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def zoo(self, *words) -> None:
        """Runs one command and waits for its end."""
        _wait(self.start(ZOO, *words))

    def run(self, cases) -> None:
        """Runs the cases; records a failed case in `failures` and continues with the next case."""
        for case in cases:
            start = time.monotonic()
            try:
                self._run(case, self.folder / case)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                self.failures[case] = str(error)
            print(f"{self.root.name} {case}: {time.monotonic() - start:.0f} s", flush=True)

    def _run(self, case: str, out: Path) -> None:
        if case in TRAIN:
            self.zoo(*TRAIN[case], f"--workdir={out}")
        elif case in COMPRESS:
            self.zoo("compress", case, self.folder / "cnn_digits", f"--out={out}", *COMPRESS[case])
        elif case == "two_workers":
            self._two_workers(out)
        elif case == "killed":
            self._killed(out)
        else:
            pages.site(self.folder / "pages")
            self.zoo(
                "prepare", "web_text:debug", "--config.prep.input=pages", f"--out={out}",
                "--workers=2",
            )  # fmt: skip

    def _two_workers(self, out: Path) -> None:
        words = [*TRAIN["cnn_digits"], "--config.trainer.strategy=multi_worker"]
        workers = ",".join(free_addresses(2))
        started = [
            self.start(
                ZOO, *words, f"--workers={workers}", f"--worker_index={index}",
                f"--workdir={out}{index or ''}",
            )
            for index in range(2)
        ]  # fmt: skip
        try:
            for process in started:
                _wait(process)
        finally:
            for process in started:
                process.kill()

    def _killed(self, out: Path) -> None:
        """Kills a run after its first checkpoint and resumes it."""
        words = [
            "train", "gpt_pydoc:debug", "--config.trainer.steps=60", "--config.trainer.log_every=5",
            "--config.trainer.checkpoint_every=10", "--config.trainer.evaluate_every=30",
            f"--workdir={out}",
        ]  # fmt: skip
        process = self.start(ZOO, *words)
        end = time.monotonic() + LIMIT
        while not any((out / "checkpoints").glob("*.npz")) and process.poll() is None:
            if time.monotonic() > end:
                break
            time.sleep(0.02)
        process.kill()
        process.communicate()
        if (out / "model.keras").exists():
            raise RuntimeError("The run ended before it was killed.")
        self.zoo(*words)

    def results(self, cases) -> dict[str, dict]:
        """Returns the results to compare, by case."""
        done = [case for case in cases if case not in self.failures]
        case_results = {case: {"failed": self.failures[case]} for case in self.failures}
        folders = [self.folder / case for case in done if case != "prepare"]
        if folders:
            printed = _wait(self.start(_WEIGHTS, *folders))
            for line in printed.splitlines():
                folder, count, digest = json.loads(line)
                case_results[Path(folder).name] = {"variables": count, "weights": digest}
        for folder in folders:
            case_results[folder.name]["metrics"] = _metrics(folder / "metrics.jsonl")
        if "prepare" in done:
            case_results["prepare"] = {"files": _files(self.folder / "prepare")}
        return case_results


def _wait(process: subprocess.Popen) -> str:
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    if process.returncode:
        raise RuntimeError(f"{' '.join(process.args[3:])}: {err.strip()[-500:]}")
    return out


def _metrics(path: Path) -> list[dict]:
    """Returns the lines of metrics.jsonl without times and process events.

    The text of an event is replaced by its numbers, because its words may change.
    """
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        text = line.pop("detail", "")
        if line.get("event") not in ("finished", "feature cache"):  # contain seconds or a path
            line["numbers"] = re.findall(r"\d+(?:\.\d+)?", text)
    return [
        {k: v for k, v in line.items() if k not in _TIMES and not k.endswith("_per_second")}
        for line in lines
        if line.get("event") not in _PROCESS_EVENTS
    ]


def _files(folder: Path) -> dict[str, str]:
    """Returns hashes of the files of `zoo prepare`, computed without the path of the folder.

    Excludes the page and prepared.json, which contains a hash of the source code.
    """
    contents = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".html", ".lock") and path.name != "prepared.json"
    }
    for name, content in contents.items():
        content = gzip.decompress(content) if name.endswith(".gz") else content
        content = content.replace(str(folder.parent).encode(), b"")
        if name.endswith(".json"):  # whatever the order of the keys
            content = json.dumps(json.loads(content), sort_keys=True).encode()
        contents[name] = hashlib.sha256(content).hexdigest()
    return contents


def differences(base: dict, head: dict) -> list[str]:
    """Returns one line for each difference between two results of `Tree.results`."""
    lines = []
    for case in sorted({*base, *head}):
        one, other = base.get(case, {}), head.get(case, {})
        for key in sorted({*one, *other}):
            if key == "failed" or one.get(key) == other.get(key):
                continue
            old, new = one.get(key), other.get(key)
            if isinstance(old, list) and isinstance(new, list):
                pairs = [(a, b) for a, b in zip(old, new, strict=False) if a != b]
                old, new = pairs[0] if pairs else (f"{len(old)} lines", f"{len(new)} lines")
            elif isinstance(old, dict) and isinstance(new, dict):
                names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
                old, new = {n: old.get(n) for n in names}, {n: new.get(n) for n in names}
            lines.append(f"{case}: {key} differ: {old} and {new}")
        for name, tree in (("base", one), ("this tree", other)):
            if "failed" in tree:
                lines.append(f"{case}: failed in {name}: {tree['failed']}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="commit to compare this working tree with")
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--folder", type=Path, help="where the runs are kept; must be empty")
    arguments = parser.parse_args()
    cases = list(arguments.only)
    if set(cases) & set(COMPRESS) and "cnn_digits" not in cases:
        cases.insert(0, "cnn_digits")
    with tempfile.TemporaryDirectory(prefix="golden-") as temporary:
        folder = arguments.folder.absolute() if arguments.folder else Path(temporary)
        checkout = Path(temporary) / "base"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", checkout, arguments.base], check=True)
        try:
            trees = [Tree(checkout, folder / "of_base"), Tree(ROOT, folder / "of_head")]
            threads = [threading.Thread(target=tree.run, args=(cases,)) for tree in trees]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            diffs = differences(*(tree.results(cases) for tree in trees))
        finally:
            subprocess.run([*git, "remove", "--force", checkout], check=True)
    print("\n".join(diffs) or f"{len(cases)} cases are equal to {arguments.base} to the bit.")
    return 1 if diffs else 0


if __name__ == "__main__":
    sys.exit(main())
