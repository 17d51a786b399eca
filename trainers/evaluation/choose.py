"""Chooses among continuations of prompts with the decoder of a work directory."""

from collections.abc import Iterable, Sequence

from scipy import special

from trainers.run.workdir import read_config
from zoo import registry
from zoo.generation.choices import score_choices
from zoo.saved.workdir import model_path, read_tokenizer
from zoo.start import start_tensorflow


class Chooser:
    """Chooses with the model of a work directory, which is loaded with the first prompt.

    Args:
      workdir: work directory of a run with the task `clm`.
      checkpoint: "final" or "best".

    Raises:
      UsageError: if there is no such model.
    """

    def __init__(self, workdir: str, checkpoint: str = "final"):
        self._workdir, self._checkpoint = workdir, checkpoint
        self._config = read_config(workdir)
        model_path(workdir, checkpoint)  # reports a missing file before TensorFlow is loaded
        self._model = self._tokenizer = None

    def __call__(self, prompt: str, choices: Sequence[str]) -> tuple[str, float]:
        """Returns the most likely choice, and its share in the likelihood of all choices.

        A space is put between the prompt and a choice, unless one of them has white space there.
        The shares are the softmax of the mean log-likelihoods per byte.

        Args:
          prompt: text before each choice; "" for none.
          choices: at least two texts.

        Raises:
          UsageError: see `zoo.generation.choices.score_choices`.
        """
        if self._model is None:
            start_tensorflow()
            self._tokenizer = read_tokenizer(self._workdir, self._config)
            self._model = registry.load(self._workdir, self._checkpoint)
        joined = list(_after(prompt, choices))
        length = self._config["config"]["model"].get("sequence_length")
        scores = score_choices(self._model, self._tokenizer, prompt, joined, max_length=length)
        best = int(scores.argmax())
        return choices[best], float(special.softmax(scores)[best])


def _after(prompt: str, choices: Iterable[str]) -> Iterable[str]:
    """Yields the choices, with a space before them if neither side has white space there."""
    for choice in choices:
        needs_space = prompt and not prompt[-1].isspace() and not choice[:1].isspace()
        yield f" {choice}" if needs_space else choice
