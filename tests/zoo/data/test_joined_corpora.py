"""Corpora joined by "+", and corpora that read the files of another one."""

import os
from pathlib import Path

import pytest

from zoo.data.text.corpora import load_corpus
from zoo.errors import UsageError


def needs(name):
    if not (Path(os.environ.get("ZOO_DATA_DIR") or "/nowhere") / name).is_dir():
        pytest.skip(f"ZOO_DATA_DIR holds no {name}: set it and run `zoo fetch {name}`")


def read(name):
    return {split: list(documents()) for split, documents in load_corpus(name).splits.items()}


def test_joined_corpora_have_the_documents_of_all():
    needs("persian_news")
    needs("persian_poems")
    news, poems = read("persian_news"), read("persian_poems")
    joined = load_corpus("persian_news+persian_poems")
    assert {s: list(d()) for s, d in joined.splits.items()} == {s: news[s] + poems[s] for s in news}
    assert joined.languages == ("fa",)
    other = load_corpus("persian_poems+persian_news")
    assert (
        len({joined.fingerprint, other.fingerprint, load_corpus("persian_news").fingerprint}) == 3
    )


def test_corpora_of_different_languages_are_not_joined():
    needs("persian_news")
    with pytest.raises(UsageError, match="one common language"):
        load_corpus("pydoc+persian_news")


def test_a_folder_does_not_fit_several_corpora(tmp_path):
    with pytest.raises(UsageError, match="manual_dir must be empty"):
        load_corpus("pydoc+pydoc", tmp_path)


def test_articles_of_squad_are_left_out():
    needs("wikipedia_en")
    whole, part = read("wikipedia_en"), read("wikipedia_en_without_squad")
    left_out = []
    for split, documents in whole.items():
        assert set(part[split]) <= set(documents)
        left_out += [text.split("\n")[0] for text in documents if text not in set(part[split])]
    assert sorted(left_out) == [
        "Computational complexity theory", "French and Indian War",
        "Intergovernmental Panel on Climate Change", "Islamism", "Packet switching",
        "Steam engine",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "corpus", "count"),
    [("wikipedia_titles", "wikipedia_en", 2691), ("persian_titles", "persian_news", 894)],
)
def test_titles_are_not_in_front_of_their_texts(name, corpus, count):
    needs(corpus)
    splits = read(name)
    assert len(splits["train"]) > 0.85 * count
    for source, title in splits["train"]:
        assert 100 <= len(source) <= 400
        assert title
        assert "\n" not in source + title
    assert sum(map(len, splits.values())) == count
    # Titles are no prefix of the text: the title's own line was removed.
    assert sum(s.startswith(t + " " + t) for s, t in splits["train"]) < 10
