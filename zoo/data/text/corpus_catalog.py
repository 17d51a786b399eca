"""Registers the zoo's own corpora.

All but `pydoc` are read from original files. Loading a corpus checks their sha256 against
`corpus_files`, so that results are always of the same text.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from zoo.data.datasets import refuse_manual_dir
from zoo.data.text import corpus_readers as readers
from zoo.data.text.corpora import Corpus, fingerprint, register_corpus
from zoo.data.text.corpus_files import original_files
from zoo.data.text.corpus_splits import split_by_hash
from zoo.data.text.originals import checked_files
from zoo.errors import RunError, UsageError


def _originals(name: str, manual_dir: Path | None, stems: Sequence[str] = ()) -> tuple:
    """Returns the original files of a corpus, or those of `stems`, and the sha256 of each file.

    Raises:
      RunError: if a file is missing or is not the registered one.
    """
    files = [
        file
        for file in original_files(name)
        if not stems or file.file_name.removesuffix(".gz") in stems
    ]
    texts = checked_files(name, files, manual_dir, advice="use your own files as text:PATH")
    return texts, [file.sha256 for file in files]


def _chosen_languages(
    name: str, known_languages: Sequence[str], count: int, chosen_languages: tuple
) -> tuple:
    if not chosen_languages:
        return tuple(known_languages[:count])
    if (
        len(chosen_languages) != count
        or len(set(chosen_languages)) != count
        or not set(chosen_languages) <= set(known_languages)
    ):
        rule = "two different languages" if count > 1 else "one language"
        raise UsageError(
            f"The corpus {name!r} requires {rule} of {', '.join(known_languages)}. "
            f"Received: {', '.join(chosen_languages)}."
        )
    return chosen_languages


def _register(
    name, languages, splits, description, licence, count=1, stems=lambda languages: (), folder=""
):
    """Registers a corpus of `corpus_files`, of which users choose `count` languages.

    `splits(files, chosen)` returns the splits for the chosen languages, `stems(chosen)` the names
    (without .gz) of the files to read, or () for all. `folder` names another corpus whose files the
    corpus reads.
    """
    folder = folder or name

    def loader(manual_dir, chosen):
        chosen = _chosen_languages(name, languages, count, chosen)
        files, hashes = _originals(folder, manual_dir, stems(chosen))
        content = fingerprint(name, chosen, hashes)
        return Corpus(name, splits(files, chosen), chosen, content, licence)

    def files():
        return original_files(folder) if folder == name else ()

    register_corpus(name, loader, files, description, licence)


# --- from CPython itself ------------------------------------------------------------------------


def _load_pydoc(manual_dir: Path | None, languages: tuple[str, ...]) -> Corpus:
    refuse_manual_dir("pydoc", manual_dir)
    languages = _chosen_languages("pydoc", ["en"], 1, languages)
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise RunError("The corpus 'pydoc' requires a Python with the module pydoc_data.") from None
    # "else" has the text of "if"; the first name is used for both.
    names = {text: name for name, text in sorted(topics.items(), reverse=True)}
    sorted_topics = sorted((name, text) for text, name in names.items())
    splits = _by_hash("pydoc", lambda: iter(sorted_topics), 0.1)
    return Corpus("pydoc", splits, languages, fingerprint("pydoc", sorted_topics), "PSF-2.0")


register_corpus(
    "pydoc",
    _load_pydoc,
    description="Python's language reference, about 80 topics of the module pydoc_data; results "
    "depend on the version of Python",
    licence="PSF-2.0",
)


# --- from original files ------------------------------------------------------------------------


def _by_hash(
    name: str, read_documents: Callable[[], Iterator[tuple[str, object]]], share: float
) -> dict:
    # The name is part of the key, so that corpora with equal keys are split differently.
    return split_by_hash(lambda: ((f"{name}:{key}", text) for key, text in read_documents()), share)


def _documents(name: str, read: Callable, share: float) -> Callable:
    """Returns `splits(files, languages)` by the hash of the keys that `read(files)` yields."""
    return lambda files, languages: _by_hash(name, lambda: read(files), share)


def _shakespeare(files, languages):
    def part(is_train):
        text = files[0].text()
        at = int(len(text) * 0.9)
        yield text[:at] if is_train else text[at:]

    return {"train": lambda: part(True), "validation": lambda: part(False)}


def _tatoeba(files, languages):
    swap = languages == ("fa", "en")

    def keyed():
        # 164 sentences have several translations, so English is the key in both directions.
        for english, persian in readers.tab_separated_pairs(files[0], readers.Tally()):
            yield english, (persian, english) if swap else (english, persian)

    return _by_hash("tatoeba_en_fa", keyed, 0.05)


# Page ids of the articles that SQuAD's development set has, too.
_IN_SQUAD = {"7543", "15012", "15030", "27692", "39062", "43339"}


def _wikipedia_without_squad(files):
    for page_id, article in readers.wikipedia_articles(files):
        if page_id not in _IN_SQUAD:
            yield page_id, article


_MULTI30K_SPLITS = {
    "train": "train",
    "validation": "val",
    "test": "test_2016_flickr",
    "test_2017": "test_2017_flickr",
}


def _multi30k(files, languages):
    by_name = {file.path.name: file for file in files}

    def pairs(stem):
        source, target = (by_name[f"{stem}.{language}.gz"] for language in languages)
        return readers.aligned_lines(source, target)

    return {split: functools.partial(pairs, stem) for split, stem in _MULTI30K_SPLITS.items()}


_register(
    "tiny_shakespeare",
    ["en"],
    _shakespeare,
    "1.1 million characters of Shakespeare's plays, one document; the last 10 % validation, as in "
    "nanoGPT",
    "not stated by its source; the text is in the public domain",
)
_register(
    "wikipedia_en",
    ["en"],
    _documents("wikipedia_en", readers.wikipedia_articles, 0.02),
    "2,949 English Wikipedia articles of 2015, 41 million characters; 2 % validation, 2 % test",
    "CC BY-SA 3.0",
)
_register(
    "wikipedia_en_without_squad",
    ["en"],
    _documents("wikipedia_en", _wikipedia_without_squad, 0.02),
    "wikipedia_en without its six articles that are in SQuAD's development set, too",
    "CC BY-SA 3.0",
    folder="wikipedia_en",
)
_register(
    "wikipedia_titles",
    ["en"],
    _documents("wikipedia_en", readers.wikipedia_titles, 0.05),
    "beginnings of the articles of wikipedia_en, and their titles; 5 % validation, 5 % test",
    "CC BY-SA 3.0",
    folder="wikipedia_en",
)
_register(
    "persian_titles",
    ["fa"],
    _documents("persian_news", readers.news_titles, 0.05),
    "beginnings of the articles of persian_news, and their titles; 5 % validation, 5 % test",
    "Apache-2.0; the articles belong to the news agency",
    folder="persian_news",
)
_register(
    "novels_en",
    ["en"],
    _documents("novels_en", readers.named_texts, 0.05),
    "43 English novels of 1839 to 1927, 27 million characters, one document per book; 2 books "
    "validation, 2 test",
    "not stated by its source; published before 1928",
)
_register(
    "wikitext2",
    ["en"],
    # Named validation, because it is not the test split of published perplexities.
    lambda files, languages: {"validation": lambda: readers.wikitext_articles(files)},
    "WikiText-2's validation split, 60 articles, for evaluation only",
    "CC BY-SA 3.0",
)
_register(
    "multi30k",
    ["en", "de", "fr"],
    _multi30k,
    "29,000 + 1,014 + 1,000 captions in English, German and French; choose two languages",
    "non-commercial research and education",
    count=2,
    stems=lambda languages: [
        f"{stem}.{language}" for stem in _MULTI30K_SPLITS.values() for language in languages
    ],
)
_register(
    "tatoeba_en_fa",
    ["en", "fa"],
    _tatoeba,
    "2,616 English sentences in Persian; 5 % validation, 5 % test",
    "CC BY 2.0 FR; each line of pes.txt names its authors",
    count=2,
)
_register(
    "persian_poems",
    ["fa"],
    _documents("persian_poems", readers.verses, 0.05),
    "7 Persian poets, 178,000 hemistichs, 100 per document; 5 % validation, 5 % test. A poem may "
    "continue in the next document",
    "not stated by its source; classical texts",
)
_register(
    "persian_news",
    ["fa"],
    _documents("persian_news", readers.news_articles, 0.05),
    "900 Persian news articles; 5 % validation, 5 % test",
    "Apache-2.0; the articles belong to the news agency",
)
