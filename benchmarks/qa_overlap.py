"""Scores answers by word overlap, without a model, as a baseline of the task `qa`.

    python -m benchmarks.qa_overlap [--sets squad persian_qa] [--workdirs D1 D2]

Answers are the sentence of the context that shares the most words with the question, and a phrase
of this sentence (`zoo.generation.word_overlap`), which needed no training and was written while
looking at squadshifts alone. Of each work directory of the recipe squad, the result on its test
split is added. Rows go to results/qa.csv.
"""

import argparse
from pathlib import Path

from benchmarks.results_file import append
from trainers.evaluation.evaluate import read_evaluation
from trainers.run.workdir import read_config
from zoo.data.text.questions.catalog import load_questions
from zoo.errors import UsageError
from zoo.generation.scores.answers import scores
from zoo.generation.word_overlap import phrase_answer, sentence_answer

SETS = {  # source, languages
    "squad": ("squad", ()),
    "xquad.en": ("xquad", ("en",)),
    "xquad.de": ("xquad", ("de",)),
    "xquad.ar": ("xquad", ("ar",)),
    "persian_qa": ("persian_qa", ()),
}
WAYS = {"sentence with the largest overlap": sentence_answer, "phrase in it": phrase_answer}


def rows_of_set(name: str) -> list[dict]:
    """Returns one row per way to answer the questions of a set's test split."""
    source, languages = SETS[name]
    questions = load_questions(source, None, languages).splits["test"]
    references = [[text for text, _ in question.answers] for question in questions]
    rows = []
    for way, find_answer in WAYS.items():
        predictions = [find_answer(q.question, q.context) for q in questions]
        rows.append(_row(name, way, scores(predictions, references)))
    return rows


def row_of_run(workdir: str) -> dict:
    """Returns the row of a model's test split."""
    evaluation, config = read_evaluation(Path(workdir), "test"), read_config(workdir)["config"]
    if evaluation is None or "f1" not in evaluation.metrics:
        raise UsageError(f"{workdir} must have an evaluation of the task qa on a test split.")
    start = "pretrained" if config["init_from"] else "random weights"
    name = {"squadshifts": "squad"}.get(config["data"]["source"], config["data"]["source"])
    return _row(name, f"{config['model']['name']}, {start}", evaluation.metrics)


def _row(name: str, way: str, metrics) -> dict:
    return {
        "test_questions": name,
        "answers": way,
        "exact_match": round(metrics["exact_match"], 2),
        "f1": round(metrics["f1"], 2),
        "scoring": metrics["scoring"],
    }


def main() -> None:
    """Scores each set and each run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--workdirs", nargs="*", default=[])
    arguments = parser.parse_args()
    rows = [row for name in arguments.sets for row in rows_of_set(name)]
    rows += map(row_of_run, arguments.workdirs)
    for row in rows:
        print(row, flush=True)
    append("qa", rows)


if __name__ == "__main__":
    main()
