"""Fixtures of all tests: quiet TensorFlow, four logical CPU devices, offline, no user caches."""

import dataclasses
import gc
import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # TPU builds query a metadata server
# tf2onnx copies the graph before each optimization, so that it can continue after an error. Without
# these copies an error raises, and an export takes 0.7 of the time.
os.environ["TF2ONNX_CATCH_ERRORS"] = "FALSE"

import pytest
from filelock import FileLock

from tests import commands
from tests.third_party import keras_hub, torch, transformers  # noqa: F401 (fixtures)

# PyTorch, the reference of some model tests, loads Triton if Triton is installed. Triton contains
# its own LLVM, and a process that has already loaded TensorFlow's LLVM is aborted.
sys.modules["triton"] = None

CONTRACT = "train/test_contract.py"
# Files with few tests that take long, the longest first.
LONG = (
    "tests/trainers/compression/test_distill.py",
    "tests/trainers/distributed/test_multi_worker.py",
    "tests/zoo/data/test_tfds.py",
    "tests/trainers/train/test_reversible.py",
    "tests/trainers/train/test_contract_attention.py",
    "tests/zoo/test_processes.py",
    "tests/trainers/cli/test_text_runs.py",
    "tests/zoo/saved/test_load.py",
)


@pytest.hookimpl(optionalhook=True)  # called if pytest-xdist is installed
def pytest_xdist_make_scheduler(config, log):
    """Gives each file to one worker, and of the contract, the longest file, each model to one.

    Files of `LONG` come first. By default they would come last, because they have few tests, and
    one worker would finish long after the others.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _assign_work_unit(self, node):
            scope = next((f"{file}[]" for file in LONG if f"{file}[]" in self.workqueue), None)
            if scope:
                self.workqueue.move_to_end(scope, last=False)
            super()._assign_work_unit(node)

        def _split_scope(self, nodeid):
            file, _, test = nodeid.partition("::")
            model = test.partition("[")[2].partition("-")[0] if CONTRACT in file else ""
            return f"{file}[{model}]"

    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def devices():
    """Splits the CPU into four logical devices, before any test starts TensorFlow."""
    from zoo.start import without_jax

    with without_jax():
        from trainers.distributed.strategy import prepare_devices

    prepare_devices(4)


@pytest.fixture(scope="session", autouse=True)
def without_curves():
    """Replaces plots of reports by empty ones: drawing them takes a fifth of a short run."""
    from trainers.report import figures

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "line_plot", lambda lines, name: "<svg></svg>")
        patch.setattr(figures, "group_plot", lambda lines, name: "<svg></svg>")
        patch.setattr(figures, "calibration", lambda bins, name: "<svg></svg>")
        yield


@pytest.fixture(scope="module", autouse=True)
def frozen(devices):
    """Excludes objects that outlive a test file from the garbage collections of `collected`.

    Imported packages and TensorFlow's graph caches live as long as the process. Each collection
    would visit these objects, which takes 0.6 s and more.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Sets the cache folder to a path of this test that does not exist yet; returns the path."""
    monkeypatch.setenv("ZOO_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def trained_once(devices, tmp_path_factory):
    """Returns `trained_once(config, dataset) -> Trainer`, for tests that only read the trainer.

    Within a test file, equal recipes on equal data are trained once.
    """
    from trainers.config.recipe import as_dict
    from trainers.train.trainer import Trainer

    runs = {}

    def train(config, dataset):
        rows = [array.tobytes() for split in dataset.splits.values() for array in split.values()]
        key = json.dumps(as_dict(config), sort_keys=True), *rows
        if key not in runs:
            workdir = tmp_path_factory.mktemp("once") / "run"
            runs[key] = Trainer(config, workdir, dataset=dataset)
            runs[key].metrics = runs[key].train()
            gc.collect()  # see `collected`
        return runs[key]

    return train


@pytest.fixture
def run(collected, tmp_path):
    """Returns `run(config, dataset, **trainer_arguments) -> Trainer`, trained in a new folder."""
    from trainers.train.trainer import Trainer

    counter = iter(range(1000))

    def train(config, dataset, workdir=None, **arguments):
        workdir = workdir or tmp_path / f"run_{next(counter)}"
        trainer = Trainer(config, workdir, dataset=dataset, **arguments)
        trainer.metrics = trainer.train()
        return trainer

    return train


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Runs `zoo train cnn_digits:debug` in a separate process; returns `(workdir, Answer)`.

    All workers of pytest-xdist read one run. Tests must not change the work directory; they may
    copy it.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # each worker has a folder of its own in it
    path, answer_path = folder / "trained" / "digits", folder / "trained" / "answer.json"
    answer_path.parent.mkdir(exist_ok=True)
    with FileLock(folder / "trained.lock"):
        if not answer_path.exists():
            answer = commands.zoo_process("train", "cnn_digits:debug", f"--workdir={path}")
            answer_path.write_text(json.dumps(dataclasses.asdict(answer)))
    answer = commands.Answer(**json.loads(answer_path.read_text()))
    assert answer.status == 0, answer.err
    return path, answer


@pytest.fixture
def zoo_command(capsys):
    """Returns `zoo_command(*words) -> commands.Answer`, run inside this process."""
    from trainers.cli.main import main

    def command(*words):
        capsys.readouterr()
        status = main(["zoo", *(str(word) for word in words)])
        return commands.Answer(status, *capsys.readouterr())

    return command


@pytest.fixture
def children_here():
    with commands.children_here():
        yield


@pytest.fixture(scope="session")
def xla():
    """Skips the test if TensorFlow cannot compile for CPUs, e.g. in TPU builds."""
    from zoo.layers.xla import compiles

    if not compiles():
        pytest.skip("XLA does not compile for CPUs here")


@pytest.fixture
def collected():
    """Collects iterators at the end of a test. Later collections wait longer (up to a minute) for
    the tuning thread of tf.data, because this thread wakes up at growing intervals."""
    yield
    gc.collect()


@pytest.fixture
def one(collected):
    from trainers.distributed.strategy import make_strategy

    return make_strategy("one_device")


@pytest.fixture
def two(collected):
    from trainers.distributed.strategy import make_strategy

    return make_strategy("mirrored", 2)
