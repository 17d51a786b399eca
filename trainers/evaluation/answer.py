"""Answers questions about any text with the model of a work directory."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trainers.evaluation.evaluate import read_evaluation
from trainers.run.workdir import read_config
from zoo import registry
from zoo.data.text.questions.dataset import UNANSWERABLE, question_rows
from zoo.data.text.questions.squad import Question
from zoo.errors import UsageError
from zoo.saved.workdir import model_path, read_tokenizer
from zoo.start import start_tensorflow
from zoo.tasks.qa import QuestionAnswering


class Answerer:
    """Answers questions with the model of a work directory, which is loaded once.

    Args:
      workdir: work directory of a run with the task `qa`.
      checkpoint: `"final"` or `"best"`.

    Raises:
      UsageError: if the model has another task, or there is no such model.
    """

    def __init__(self, workdir: str | Path, checkpoint: str = "final"):
        saved_config = read_config(workdir)
        self._config = saved_config["config"]
        arguments = dict(self._config["task"])
        if (name := arguments.pop("name")) != "qa":
            raise UsageError(
                "Answers to questions require a model of the task 'qa'. Received: "
                f"{workdir}, a model of the task {name!r}."
            )
        model_path(workdir, checkpoint)  # reports a missing file before TensorFlow is loaded
        self._tokenizer = read_tokenizer(workdir, saved_config)
        self._task = QuestionAnswering(**arguments)
        facts = saved_config["facts"].get("Questions", {})
        self._may_have_none = bool(facts.get(UNANSWERABLE))
        self._threshold = 0.0
        for split in ("validation", "test"):
            evaluation = read_evaluation(Path(workdir), split)
            if evaluation and "null_threshold" in evaluation.metrics:
                self._threshold = evaluation.metrics["null_threshold"]
        start_tensorflow()
        self._model = registry.load(str(workdir), checkpoint)

    def __call__(self, question: str, context: str, count: int = 5) -> list[dict]:
        """Returns the most probable answers to a question.

        Args:
          question: text of the question.
          context: text that contains the answer.
          count: number of answers.

        Returns:
          Dicts, best first: "text", "start" and "end" (`context[start:end] == text`) and "score",
          the share of the answer in the probability of the 20 best answers. If the model was
          trained on questions without an answer, one of the answers may be "" for no answer, with
          "start" and "end" None; it is the first one if its score exceeds that of the best answer
          by more than the threshold of the run's evaluation.

        Raises:
          UsageError: if the question or the context is empty, or `count` is not positive.
        """
        for name, text in (("question", question), ("context", context)):
            if not text.strip():
                raise UsageError(f"The {name} must not be empty. Received: {text!r}.")
        if count < 1:
            raise UsageError(f"count must be positive. Received: {count}.")
        return self.answer_all([(question, context)], count)[0]

    def answer_all(self, pairs: Sequence[tuple[str, str]], count: int = 5) -> list[list[dict]]:
        """Returns the answers to each of N pairs (question, context), which must not be blank."""
        # Loads TensorFlow.
        question_answers = registry.resolve("zoo.generation.answers:question_answers")
        task = self._task
        questions = [Question(str(i), "", *pair, ()) for i, pair in enumerate(pairs)]
        windows = list(
            question_rows(
                questions, self._tokenizer, self._config["data"]["sequence_length"], task.stride,
                task.max_question,
            )
        )  # fmt: skip
        arrays = {key: np.concatenate([rows[key] for rows in windows]) for key in windows[0]}
        return [
            self._ranked(answers, count)
            for answers in question_answers(
                self._model, arrays, questions, self._tokenizer, task.max_answer
            )
        ]

    def _ranked(self, answers, count: int) -> list[dict]:
        rows = [(span.score, span.text, span.start, span.end) for span in answers.spans]
        if self._may_have_none:
            rows.append((answers.null_score - self._threshold, "", None, None))
        scores = np.array([row[0] for row in rows])
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        return [
            {"text": text, "score": float(shares[i]), "start": start, "end": end}
            for i in np.argsort(-scores, kind="stable")[:count]
            for _, text, start, end in [rows[i]]
        ]


def answer(workdir: str | Path, question: str, context: str) -> list[dict]:
    """Returns the most probable answers to one question; see `Answerer`."""
    return Answerer(workdir)(question, context)
