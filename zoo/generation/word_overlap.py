"""Answers without a model: the part of a context that shares the most words with the question.

A baseline for extractive question answering, after the sliding window of Richardson et al. 2013
(MCTest) and Rajpurkar et al. 2016 (SQuAD, section 5.1). It knows no language but the English words
that carry no content.
"""

import math
import re
from collections import Counter

_SENTENCE_END = re.compile(r"(?<=[.!?؟。])\s+|\n+")
_WORD = re.compile(r"\w+(?:[.,'’\-–]\w+)*")
# Where a phrase ends, apart from words of the question.
_BREAK = re.compile(r"[,;:()\[\]\"“”«»،؛]|\s[-–—]\s")
_FUNCTION_WORDS = frozenset(
    [
        "a", "an", "the", "this", "that", "these", "those", "and", "or", "but", "nor", "of", "in",
        "on", "at", "by", "for", "from", "to", "with", "without", "into", "over", "under", "about",
        "as", "than", "is", "are", "was", "were", "be", "been", "being", "am", "do", "does", "did",
        "done", "has", "have", "had", "having", "will", "would", "can", "could", "may", "might",
        "must", "shall", "should", "not", "no", "it", "its", "he", "she", "they", "them", "his",
        "her", "their", "we", "you", "i", "who", "whom", "whose", "which", "what", "when", "where",
        "why", "how", "there", "then", "also", "such", "so", "if", "any", "some",
    ]
)  # fmt: skip
_NUMBER = re.compile(r"\d")
# Question words whose answers contain a number, or a name.
_ASKS_NUMBER = re.compile(r"\b(when|how (?:many|much|long|old|far)|year|date|number)\b")
_ASKS_NAME = re.compile(r"\b(who|whom|whose|where)\b")


def sentence_answer(question: str, context: str) -> str:
    """Returns the sentence of a context that shares the most words with a question.

    A word counts more if it is in fewer sentences. Function words do not count. Among equal
    sentences, the first one is returned.
    """
    start, end, _ = _best_sentence(question, context)
    return context[start:end].strip()


def phrase_answer(question: str, context: str) -> str:
    """Returns a phrase of the sentence that shares the most words with a question.

    A phrase has no words of the question and no punctuation inside, and no function words at its
    ends. Phrases with a number are preferred if the question asks for one, and phrases in upper
    case if it asks for a person or a place; among these, the one that is closest to the words of
    the question.
    """
    start, end, shared = _best_sentence(question, context)
    sentence = context[start:end]
    words = [(m.start(), m.end(), m.group()) for m in _WORD.finditer(sentence)]
    phrases = _phrases(sentence, words, shared)
    if not phrases:
        return sentence.strip()
    places = [i for i, (_, _, word) in enumerate(words) if _stem(word) in shared]
    lower = question.lower()

    def rank(phrase):
        first, last = phrase
        text = sentence[words[first][0] : words[last][1]]
        has_kind = True
        if _ASKS_NUMBER.search(lower):
            has_kind = bool(_NUMBER.search(text))
        elif _ASKS_NAME.search(lower):
            has_kind = text[:1].isupper() and first > 0 or sum(map(str.isupper, text)) > 1
        closeness = sum(1 / min(abs(place - first), abs(place - last)) for place in places)
        return has_kind, closeness

    first, last = max(phrases, key=rank)
    return sentence[words[first][0] : words[last][1]]


def _best_sentence(question: str, context: str) -> tuple[int, int, set[str]]:
    """Returns start and end of the best sentence, and the words that it has of the question."""
    bounds = [0, *(m.end() for m in _SENTENCE_END.finditer(context)), len(context)]
    sentences = [(a, b) for a, b in zip(bounds, bounds[1:], strict=False) if context[a:b].strip()]
    contents = [_content(context[a:b]) for a, b in sentences]
    counts = Counter(word for content in contents for word in content)
    asked = _content(question)

    def score(index):
        shared = asked & contents[index]
        return sum(math.log(1 + len(sentences) / counts[word]) for word in shared)

    best = max(range(len(sentences)), key=score)
    return *sentences[best], asked & contents[best]


def _phrases(sentence: str, words: list, shared: set[str]) -> list[tuple[int, int]]:
    """Returns the first and the last word of each phrase."""
    runs = [[]]
    for i, (start, _, word) in enumerate(words):
        if runs[-1] and _BREAK.search(sentence[words[runs[-1][-1]][1] : start]):
            runs.append([])
        if _stem(word) in shared:
            runs.append([])
        else:
            runs[-1].append(i)
    phrases = []
    for run in runs:
        content = [i for i in run if words[i][2].lower() not in _FUNCTION_WORDS]
        if content:
            phrases.append((content[0], content[-1]))
    return phrases


def _content(text: str) -> set[str]:
    words = (m.group() for m in _WORD.finditer(text))
    return {_stem(word) for word in words if word.lower() not in _FUNCTION_WORDS}


def _stem(word: str) -> str:
    """Returns a word in lower case without the most frequent English endings."""
    word = word.lower().removesuffix("'s").removesuffix("’s")
    for ending in ("ing", "ed", "es", "s"):
        if len(word) > len(ending) + 3 and word.endswith(ending):
            return word.removesuffix(ending)
    return word
