"""Messages are one line, and quoted values take at most 300 characters."""

import pickle

import pytest

from zoo.errors import MAX_QUOTE, RunError, UsageError, short


@pytest.mark.parametrize("kind", [UsageError, RunError])
@pytest.mark.parametrize(
    "value",
    ["x" * 5000, "word " * 5000, 'it\'s "both" ' * 2000, "a\\'b " * 2000, "\x1b[31m\n" * 3000],
    ids=["word", "words", "quotes", "escapes", "controls"],
)
def test_a_long_value_is_cut_and_the_way_out_stays(kind, value):
    message = str(kind(f"The rule. Received: {value!r}. The way out."))
    assert message.startswith("The rule. Received: ")
    assert message.endswith("The way out.")
    assert len(message) <= MAX_QUOTE + 50
    assert message.isprintable()


def test_a_path_and_other_words_without_quotes_are_cut():
    message = str(UsageError(f"There is no file /{'a' * 5000}."))
    assert len(message) <= MAX_QUOTE + 20


def test_a_message_has_a_longest_length_with_both_its_ends():
    message = str(RunError(f"The rule. {'some words ' * 5000} The way out."))
    assert len(message) <= 2000
    assert message.startswith("The rule.")
    assert message.endswith("The way out.")


def test_own_words_with_apostrophes_are_not_cut():
    message = "Keras' own file isn't here. " + "It is the user's to bring. " * 20 + "That's all."
    assert str(UsageError(message)) == message


def test_control_characters_do_not_reach_a_terminal():
    assert str(RunError("a\x1b[2Jb\nc\u2028d")) == "a [2Jb c d"


def test_short():
    assert short("one\n two\x00") == "one two"
    assert len(short("x" * 10_000)) == MAX_QUOTE
    assert short(ValueError("why")) == "why"


def test_errors_travel_between_processes():
    again = pickle.loads(pickle.dumps(UsageError("why")))
    assert (type(again), str(again)) == (UsageError, "why")
