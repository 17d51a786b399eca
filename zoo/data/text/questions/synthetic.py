"""Synthetic questions about short texts, for trials without a download: `synthetic:facts`.

A text tells what some people like, where they live and what they do for a living. A question asks
for one of these facts. One question in eight is about a person whom the text does not mention.
"""

import numpy as np

from zoo.data.text.questions.squad import Question

FORMAT = 1  # increase it when the questions change
ARTICLES = {"train": 60, "test": 10}  # of CONTEXTS texts each
CONTEXTS, PEOPLE, QUESTIONS = 4, 3, 4
_SPLIT_SEEDS = {"train": 0, "test": 1}

_NAMES = ("Anna", "Omid", "Clara", "David", "Elif", "Farid", "Grace", "Hugo", "Irene", "Jamal")
# Statement, question, answers.
_FACTS = (
    ("{} lives in {}.", "Where does {} live?",
     ("Shiraz", "New York", "Berlin", "Cairo", "Rio de Janeiro", "Oslo")),
    ("{} works as a {}.", "What is the job of {}?",
     ("teacher", "taxi driver", "doctor", "pastry chef", "baker", "painter")),
    ("{} likes {}.", "What does {} like?",
     ("green tea", "chess", "old maps", "football", "long walks", "music")),
)  # fmt: skip


def facts() -> dict[str, tuple[Question, ...]]:
    """Returns the questions of each split, the same ones in every run."""
    return {split: tuple(_questions(split)) for split in ARTICLES}


def _questions(split: str):
    generator = np.random.default_rng(_SPLIT_SEEDS[split])
    for article in range(ARTICLES[split]):
        for number in range(CONTEXTS):
            names = generator.permutation(_NAMES)
            statements = [
                (person, fact, str(generator.choice(answers)))
                for person in names[:PEOPLE]
                for fact, (_, _, answers) in enumerate(_FACTS)
            ]
            generator.shuffle(statements)
            context, starts = "", []
            for person, fact, answer in statements:
                sentence = _FACTS[int(fact)][0].format(person, answer)
                starts.append(len(context) + sentence.rindex(answer))
                context += f"{sentence} "
            for asked in range(QUESTIONS):
                index = int(generator.integers(len(statements)))
                person, fact, answer = statements[index]
                answers = ((str(answer), starts[index]),)
                if generator.random() < 1 / 8:
                    person, answers = names[PEOPLE], ()
                yield Question(
                    f"{split}-{article}-{number}-{asked}", f"article {article}",
                    _FACTS[int(fact)][1].format(person), context.rstrip(), answers,
                )  # fmt: skip
