"""Samples of a generative model during training, for the report."""

from collections.abc import Callable
from pathlib import Path

from zoo.generation.decoding import can_generate
from zoo.generation.generate import Generator
from zoo.generation.image_grids import arrange_grid, interpolation, make_images, save_png

TOKENS, TEMPERATURE = 200, 0.8


def sample_writer(step, dataset, config, folder: Path) -> Callable[[], dict] | None:
    """Returns a function that generates a sample with the current weights.

    Args:
      step: a `TrainStep`.
      dataset: data of the run, with a tokenizer for text.
      config: resolved configuration.
      folder: the work directory.

    Returns:
      None if the task or the model generates nothing. The function returns values for
      metrics.jsonl: {"detail": text}, or {"picture": file in the work directory}.
    """
    if step.task.sample_kind == "images":
        return _image_writer(step, config, folder)
    # The generator may not support a user's own model.
    text = step.task.sample_kind == "text" and dataset.tokenizer is not None
    return (
        _text_writer(step.net, dataset.tokenizer, config)
        if text and can_generate(step.net)
        else None
    )


def _text_writer(model, tokenizer, config) -> Callable[[], dict]:
    # Without XLA: compilation would take longer than it saves for a few samples.
    generator = Generator(
        model, tokenizer, sequence_length=config.data.sequence_length, jit_compile=False
    )
    limit = min(TOKENS, config.data.sequence_length - 1)

    def write() -> dict:
        options = {"temperature": TEMPERATURE, "seed": config.trainer.seed}
        return {"detail": generator.text([""], limit, **options)[0]}

    return write


def _image_writer(step, config, folder: Path) -> Callable[[], dict]:
    def write() -> dict:
        name = f"samples/step_{int(step.count.numpy()):010d}.png"
        save_png(folder / name, arrange_grid(make_images(step.net, 64, config.trainer.seed), 16))
        strip = interpolation(step.net, rows=4, columns=16, seed=config.trainer.seed)
        save_png(folder / "samples" / "interpolation.png", strip)
        return {"picture": name}

    return write
