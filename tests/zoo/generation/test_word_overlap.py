"""Answers by word overlap: the best sentence, and a phrase of it."""

import pytest

from zoo.data.text.questions.catalog import load_questions
from zoo.generation.scores.answers import scores
from zoo.generation.word_overlap import phrase_answer, sentence_answer
from zoo.storage.paths import data_dir

CONTEXT = (
    "The museum opened in 1911, after a long debate. Its first director was Marie Lang, a painter "
    "from Vienna. The painter sold the old museum to a bank.\nبهترین کتاب را علی نوشت."
)


@pytest.mark.parametrize(
    ("question", "sentence", "phrase"),
    [
        ("When did the museum open?", "The museum opened in 1911, after a long debate.", "1911"),
        (
            "Who was the first director?",
            "Its first director was Marie Lang, a painter from Vienna.",
            "Marie Lang",
        ),
        ("بهترین کتاب را چه کسی نوشت؟", "بهترین کتاب را علی نوشت.", "علی"),
        # Nothing is shared: the first sentence.
        ("Why?", "The museum opened in 1911, after a long debate.", "museum opened in 1911"),
    ],
)
def test_answers(question, sentence, phrase):
    assert sentence_answer(question, CONTEXT) == sentence
    assert phrase_answer(question, CONTEXT) == phrase


def test_rare_words_count_more():
    context = "A dog and a cat ran. A dog and a cat sat. A dog saw a bird. A cat saw birds and ate."
    assert sentence_answer("Which dog or cat saw the bird?", context) == "A dog saw a bird."


def test_a_sentence_of_the_questions_words_is_its_own_answer():
    assert phrase_answer("Cats ran?", "The cats ran.") == "The cats ran."


@pytest.mark.parametrize("question", ["?", "the", "\n", "a b"])
def test_any_text_has_an_answer(question):
    for context in ("x", "  x. \n\n y", "،؛", "...", "the"):
        for answer in (sentence_answer(question, context), phrase_answer(question, context)):
            assert answer
            assert answer in context


def test_phrases_are_better_than_sentences_on_real_questions():
    if not (data_dir() / "squadshifts").is_dir():
        pytest.skip("ZOO_DATA_DIR has no folder squadshifts")
    questions = load_questions("squadshifts").splits["validation"][:300]
    references = [[text for text, _ in q.answers] for q in questions]
    sentences, phrases = (
        scores([find(q.question, q.context) for q in questions], references)
        for find in (sentence_answer, phrase_answer)
    )
    assert phrases["f1"] > sentences["f1"] > 15
    assert phrases["exact_match"] > 5 + sentences["exact_match"]
