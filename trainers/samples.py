"""What a text model writes while it is being trained: a sample an evaluation, for the report."""

from collections.abc import Callable

TOKENS, TEMPERATURE = 200, 0.8


def sample_writer(model, tokenizer, config) -> Callable[[], str]:
    """Returns a function that writes a text with the model's weights of the moment.

    Args:
      model: a model that generates.
      tokenizer: of its data.
      config: the recipe, for the seed and the largest number of positions.
    """
    from trainers.generate import Generator

    # Without XLA: a model is compiled for minutes of training, not for a sample now and then.
    generator = Generator(
        model, tokenizer, sequence_length=config.data.sequence_length, jit_compile=False
    )
    limit = min(TOKENS, config.data.sequence_length - 1)

    def write() -> str:
        options = {"temperature": TEMPERATURE, "seed": config.trainer.seed}
        return generator.text([""], limit, **options)[0]

    return write
