"""Metrics of generated images, on sets with known results."""

import dataclasses

import numpy as np
import pytest

from tests import toys
from trainers.config.base import optimizer
from zoo import registry
from zoo.data import Dataset
from zoo.errors import UsageError
from zoo.generation import image_grids
from zoo.generation.image_grids import arrange_grid, interpolation
from zoo.tasks import gan_metrics
from zoo.tasks.gan import GenerativeAdversarial


def test_frechet_distance_against_scipy():
    from scipy.linalg import sqrtm

    generator = np.random.default_rng(0)
    one = generator.standard_normal((400, 5)) @ generator.standard_normal((5, 5))
    other = generator.standard_normal((300, 5)) @ generator.standard_normal((5, 5)) + 1
    a, b = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    shift = one.mean(0) - other.mean(0)
    expected = shift @ shift + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert gan_metrics.frechet_distance(one, other) == pytest.approx(expected, rel=1e-9)
    assert gan_metrics.frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    shifted = one + [3, 0, 0, 0, 0]
    assert gan_metrics.frechet_distance(one, shifted) == pytest.approx(9, rel=1e-9)


def test_precision_and_recall_against_the_definition():
    generator = np.random.default_rng(0)
    real, generated = (
        generator.standard_normal((1300, 3)),
        0.5 * generator.standard_normal((1100, 3)),
    )

    def inside(points, centers):
        distances = np.sqrt(((centers[:, None] - centers) ** 2).sum(-1))
        radii = np.sort(distances, 1)[:, 3]
        between = np.sqrt(((points[:, None] - centers) ** 2).sum(-1))
        return (between <= radii).any(1).mean()

    precision, recall = gan_metrics.precision_recall(real, generated)
    assert precision == pytest.approx(inside(generated, real), abs=2e-3)
    assert recall == pytest.approx(inside(real, generated), abs=2e-3)
    assert precision > recall + 0.2  # the generated points are narrow, but inside the real ones


@pytest.mark.parametrize(("center", "expected"), [(0.0, (1, 0)), (50.0, (0, 0))])
def test_one_mode_and_none(center, expected):
    generator = np.random.default_rng(0)
    real = generator.standard_normal((200, 2)) * 10
    generated = generator.standard_normal((200, 2)) * 1e-3 + center
    precision, recall = gan_metrics.precision_recall(real, generated)
    assert (round(precision), round(recall)) == expected


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """Returns a work directory of a classifier of images by brightness."""
    from trainers.train.trainer import Trainer

    generator = np.random.default_rng(0)
    label = generator.integers(0, 2, 200).astype("int32")
    image = np.broadcast_to(label[:, None, None, None] * 200 + 20, (200, 28, 28, 1))
    splits = {name: {"image": image.astype("uint8"), "label": label} for name in ("train", "test")}
    data = Dataset("bright", splits, ("dark", "bright"), "bright")
    sizes = {"input_shape": (28, 28, 1), "filters": (4, 4, 4), "hidden_dim": 8, "num_classes": 2}
    config = toys.recipe("cnn_classifier", "image_classification", model_arguments=sizes, steps=60)
    config.optimizer = optimizer("adam", learning_rate=0.01)
    path = tmp_path_factory.mktemp("judge") / "run"
    trainer = Trainer(config, path, dataset=data)
    assert trainer.train()["accuracy"] == 1
    return path, data


def constant(value):
    """Returns a GAN whose generator always returns the same image."""
    model = registry.build("gan_mnist", noise_dim=4, hidden_dim=4)
    pixels = model.generator.get_layer("pixels")
    pixels.kernel.assign(np.zeros(pixels.kernel.shape))
    pixels.bias.assign(np.full(pixels.bias.shape, np.arctanh(value)))
    return model


def test_a_generator_of_one_class(judge):
    path, data = judge
    metrics = gan_metrics.measure(constant(-0.8), data, "test", str(path), 200)
    assert metrics["classes_covered"] == 1
    assert metrics["smallest_class_share"] == 0
    assert metrics["class_entropy"] == 0
    assert metrics["real_frechet_distance"] == pytest.approx(0, abs=1e-6)
    assert metrics["frechet_distance"] > 0.1
    assert 0.5 < metrics["top_probability"] <= 1
    name, _, digest = metrics["classifier"].partition(" sha256:")
    assert name == "run"
    assert len(digest) == 16


def test_classes_that_the_split_lacks_are_not_missed(judge):
    """A generator of all classes of the split covers them, even rare ones."""
    path, data = judge
    test = data.splits["test"]
    dark = {key: array[test["label"] == 0] for key, array in test.items()}
    few = {key: array[:2] for key, array in dark.items()}
    for split in (dark, few):
        dataset = dataclasses.replace(data, splits={**data.splits, "test": split})
        metrics = gan_metrics.measure(constant(-0.8), dataset, "test", str(path), 100)
        assert (metrics["classes_covered"], metrics["real_classes"]) == (1, 1)
        assert (metrics["smallest_class_share"], metrics["real_smallest_class_share"]) == (1, 1)
        assert metrics["class_entropy"] == metrics["real_class_entropy"] == 0
        # Third neighbors need four images.
        assert ("precision" in metrics) == ("recall" in metrics) == (split is dark)


def test_a_rare_class_is_covered_by_its_share():
    def probabilities(*counts):
        return np.repeat(np.eye(len(counts)), counts, axis=0)

    shares = gan_metrics.class_shares(probabilities(95, 5))
    np.testing.assert_allclose(shares, [0.95, 0.05])
    assert gan_metrics.classes_covered(np.array([0.96, 0.04]), shares) == 2
    assert gan_metrics.classes_covered(np.array([0.99, 0.01]), shares) == 1
    assert gan_metrics.entropy(shares) == pytest.approx(0.1985, abs=1e-4)


def test_the_hash_is_that_of_the_weights(judge, tmp_path):
    import shutil

    path, data = judge
    copy = tmp_path / "run"
    shutil.copytree(path, copy)
    model = constant(0.5)
    one = gan_metrics.measure(model, data, "test", str(path), 200)
    assert gan_metrics.measure(model, data, "test", str(copy), 200) == one
    with open(copy / "model.keras", "ab") as file:
        file.write(b"\0")
    assert gan_metrics._model_hash(str(copy)) != gan_metrics._model_hash(str(path))


def test_the_run_measures_its_samples(judge, run):
    path, data = judge
    task = {"classifier": str(path), "samples": 100}
    config = toys.recipe(
        "gan_mnist", "gan", model_arguments={"noise_dim": 4, "hidden_dim": 4}, task_arguments=task
    )
    trainer = run(config, data)
    assert trainer.metrics["classifier"].startswith("run sha256:")
    assert {"frechet_distance", "precision", "recall", "discriminator"} <= set(trainer.metrics)
    assert "sha256:" in (trainer.workdir / "report.html").read_text()


def test_train_prints_by_whom_it_was_measured(judge, tmp_path, zoo_command):
    path, _ = judge
    answer = zoo_command(
        "train", "gan_mnist:debug", f"--workdir={tmp_path / 'run'}", "--config.trainer.steps=1",
        f"--config.task.classifier={path}", "--config.task.samples=100",
    )  # fmt: skip
    assert answer.status == 0, answer.err
    assert "  classifier run sha256:" in answer.out.splitlines()[-2]


def test_refused_classifiers(judge, tmp_path, run):
    path, data = judge
    with pytest.raises(UsageError, match="is not a work directory"):
        GenerativeAdversarial(classifier=str(tmp_path)).check_arguments({}, data)
    small = Dataset("small", {"train": {"image": np.zeros((9, 8, 8, 1), "uint8")}}, (), "small")
    with pytest.raises(UsageError, match=r"task.classifier must accept .* \(8, 8, 1\)"):
        GenerativeAdversarial(classifier=str(path)).check_arguments({}, small)
    gan = run(
        toys.recipe("gan_mnist", "gan", model_arguments={"noise_dim": 4, "hidden_dim": 4}), data
    )
    with pytest.raises(UsageError, match="of the task 'gan'"):
        GenerativeAdversarial(classifier=str(gan.workdir.path)).check_arguments({}, data)


def test_a_sheet_has_each_picture_in_its_place():
    pixels = np.arange(5, dtype="uint8")[:, None, None, None] * np.ones((5, 2, 3, 1), "uint8") + 1
    grid = arrange_grid(pixels, 2)
    assert grid.shape == (8, 7, 1)
    for number, (y, x) in enumerate([(0, 0), (0, 4), (3, 0), (3, 4), (6, 0)]):
        assert (grid[y : y + 2, x : x + 3] == number + 1).all()
    assert grid[2].max() == grid[:, 3].max() == grid[6:, 4:].max() == 0


def test_an_interpolation_keeps_the_length_of_the_noise(monkeypatch):
    model = registry.build("gan_mnist", noise_dim=30, hidden_dim=4)
    noises = []
    real = image_grids.predict_in_batches
    monkeypatch.setattr(
        image_grids,
        "predict_in_batches",
        lambda m, noise: (noises.append(noise), real(m, noise))[1],
    )
    pixels = interpolation(model, rows=2, columns=5, seed=0)
    assert pixels.shape == (2 * 29 - 1, 5 * 29 - 1, 1)
    lengths = np.linalg.norm(noises[0].reshape(2, 5, 30), axis=-1)
    ends = np.sort(lengths[:, [0, -1]], 1)
    assert (lengths > ends[:, :1] * 0.9).all()
    steps = np.diff(noises[0].reshape(2, 5, 30), axis=1)
    assert np.ptp(np.linalg.norm(steps, axis=-1), axis=1).max() < 1.0
