"""TensorFlow's logs: none at start-up, no harmless ones in training."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.commands import ROOT
from zoo.generation import sampling
from zoo.layers.cross_entropy import linear_cross_entropy
from zoo.layers.gather import pick

# The environment of a user, without the settings of the tests.
_PLAIN = {"TF_CPP_MIN_LOG_LEVEL", "CUDA_VISIBLE_DEVICES", "TPU_SKIP_MDS_QUERY"}


def stderr_of(code: str, *words: str, folder=ROOT, **environment) -> str:
    """Returns the stderr of a Python process."""
    inherited = {k: v for k, v in os.environ.items() if k not in _PLAIN}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True,
        timeout=300, env=inherited | {"PYTHONPATH": str(ROOT)} | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


USES = {
    "describe": "import zoo; zoo.describe('cnn_classifier')",
    "zoo": "import zoo; import numpy as np; zoo.build('cnn_classifier')(np.ones((1, 28, 28, 1)))",
    "trainer": "import trainers.train.trainer; import tensorflow as tf; print(tf.ones(3))",
}


@pytest.mark.slow
@pytest.mark.parametrize("use", USES)
def test_python_use_is_as_quiet_as_the_commands(use):
    assert stderr_of(USES[use]) == ""


@pytest.mark.slow
def test_a_module_of_the_user_may_import_keras(tmp_path):
    (tmp_path / "my_layers_in_keras.py").write_text("import keras\nkeras.ops.ones(3)\n")
    code = "import sys; from trainers.cli.main import main; sys.exit(main())"
    words = "zoo", "list", "cnn*", "--import=my_layers_in_keras"
    assert stderr_of(code.replace("main()", f"main({list(words)})"), folder=tmp_path) == ""


@pytest.mark.slow
def test_logs_can_be_asked_for():
    assert "InitializeLog" in stderr_of("import zoo, tensorflow", TF_CPP_MIN_LOG_LEVEL="0")


TRAINING = """
from zoo.start import start_tensorflow
start_tensorflow()
import tensorflow as tf
from trainers.train.build import build_step, update_function
from trainers.input.features import make_synthetic_arrays
from trainers.config.recipe import resolve
from trainers.distributed.strategy import make_strategy, prepare_devices

prepare_devices(0)
strategy = make_strategy("one_device")
for name, size in (("dcgan_mnist:debug", "filters"), ("gpt_pydoc:debug", "vocabulary_size")):
    config = resolve(name)
    config.model[size] = 16
    step, task = build_step(config, strategy, 10)
    rows = {k: tf.constant(v) for k, v in make_synthetic_arrays(task, step.net, 8, 0).items()}
    rows["weight"] = tf.ones(8)
    uniform = lambda count: tf.random.uniform((8, count))
    batches = tf.data.Dataset.from_tensors(task.prepare(rows, uniform, True)).repeat()
    update_function(step, strategy)(iter(batches), tf.constant(1))
"""


@pytest.mark.slow
def test_training_with_onednn_logs_no_error():
    """A GAN with LeakyReLU and a GPT with a chunked loss, on any CPU."""
    assert stderr_of(TRAINING, TF_ENABLE_ONEDNN_OPTS="1") == ""


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_pick_is_indexing(shape):
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    index = np.array([6, 0, 3, 3, 1], "int32")
    assert np.array_equal(pick(x, index), x[np.arange(5), index])


def test_no_graph_transposes_int64():
    """oneDNN has no kernel for it, so TensorFlow would log an error."""

    def computed():
        x = tf.random.stateless_uniform((4, 300), (0, 0))
        targets, ones = tf.range(4), tf.ones(4)
        kernel = tf.ones((300, 300))
        loss = linear_cross_entropy(x, kernel, None, targets, ones, chunk=2)[0]
        return loss, sampling.sample(x, ones / 2), sampling.top_k(x, ones / 2, 3)

    graph = tf.function(computed, autograph=False).get_concrete_function().graph
    assert "GatherV2" in {operation.type for operation in graph.get_operations()}
    transposed = [o for o in graph.get_operations() if o.type == "Transpose"]
    assert not [o.name for o in transposed if o.outputs[0].dtype == tf.int64]
