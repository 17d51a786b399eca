"""The zoo's corpora: the content of their splits, and checks of their files."""

import gzip
import hashlib
import html
import json
import os
import re
import shutil
from pathlib import Path

import pytest

import zoo.data
from zoo.data import datasets, fetch
from zoo.data.text import originals
from zoo.data.text.corpus_files import original_files
from zoo.errors import RunError

# Documents (or pairs) and characters per split.
COUNTS = {
    "tiny_shakespeare": {"train": (1, 1_003_854), "validation": (1, 111_540)},
    "wikipedia_en": {
        "train": (2_831, 38_923_736),
        "validation": (59, 843_343),
        "test": (59, 919_200),
    },
    "novels_en": {
        "train": (39, 24_679_402),
        "validation": (2, 1_165_000),
        "test": (2, 1_235_584),
    },
    "wikitext2": {"validation": (60, 1_120_192)},
    "multi30k": {
        "train": (29_000, 3_819_194),
        "validation": (1_014, 135_975),
        "test": (1_000, 129_585),
        "test_2017": (1_000, 116_193),
    },
    "tatoeba_en_fa": {
        "train": (2_353, 153_086),
        "validation": (129, 8_412),
        "test": (134, 8_267),
    },
    "persian_poems": {
        "train": (1_619, 4_618_873),
        "validation": (90, 263_003),
        "test": (90, 256_315),
    },
    "persian_news": {
        "train": (810, 1_689_569),
        "validation": (45, 131_427),
        "test": (45, 63_864),
    },
}

FIRST_FILES = {
    "tiny_shakespeare": "karpathy/char-rnn/data/tinyshakespeare/input.txt",
    "wikipedia_en": "jason-feng/wikiVisual/text/AA/wiki_03",
    "novels_en": "computationalstylistics/100_english_novels/corpus/Bennet_Babylon_1902.txt",
    "wikitext2": "pytorch/examples/word_language_model/data/wikitext-2/valid.txt",
    "multi30k": "multi30k/dataset/data/task1/raw/test_2016_flickr.de.gz",
    "tatoeba_en_fa": "rezalahmi/English-Persian-Translator/pes.txt",
    "persian_poems": "amnghd/Persian_poems_corpus/original/hafez.txt",
    "persian_news": (
        "language-ml/course-nlp-ir-1-text-exploring/exploring-datasets/news/fars-news-1.json"
    ),
}


def _read(corpus):
    return {split: list(documents()) for split, documents in corpus.splits.items()}


def _all(corpus):
    return [document for documents in _read(corpus).values() for document in documents]


def _size(document):
    return len(document if isinstance(document, str) else "".join(document))


def _folder_or_skip(name):
    folder = Path(os.environ.get("ZOO_DATA_DIR") or "/nowhere") / name
    if not folder.is_dir():
        pytest.skip(f"ZOO_DATA_DIR holds no {name}: set it and run `zoo fetch {name}`")
    return folder


# --- the corpora --------------------------------------------------------------------------------


def test_pydoc_needs_no_files(monkeypatch, tmp_path):
    from pydoc_data.topics import topics

    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path))
    corpus = zoo.data.load_corpus("pydoc")
    assert sorted(_all(corpus)) == sorted(set(topics.values()))
    assert [len(documents) // 5 for documents in _read(corpus).values()] == [12, 1, 1]
    assert (corpus.languages, corpus.licence) == (("en",), "PSF-2.0")
    changed = dict(topics, **{"if": topics["if"] + "!"})
    monkeypatch.setattr("pydoc_data.topics.topics", changed)
    assert zoo.data.load_corpus("pydoc").fingerprint != corpus.fingerprint


@pytest.fixture(scope="module")
def loaded():
    """Returns a function that loads and reads a corpus of ZOO_DATA_DIR, once."""
    known = {}

    def load(name):
        _folder_or_skip(name)
        if name not in known:
            corpus = zoo.data.load_corpus(name)
            known[name] = corpus, _read(corpus)
        return known[name]

    return load


@pytest.mark.parametrize("name", COUNTS)
def test_the_splits_hold_what_they_held(loaded, name):
    corpus, splits = loaded(name)
    assert {
        split: (len(documents), sum(map(_size, documents))) for split, documents in splits.items()
    } == COUNTS[name]
    assert corpus.unreadable == {}
    assert all(_size(document) for documents in splits.values() for document in documents)


@pytest.mark.parametrize("name", [name for name in COUNTS if name != "multi30k"])
def test_no_document_is_in_two_splits(loaded, name):
    splits = [set(documents) for documents in loaded(name)[1].values()]
    assert sum(map(len, splits)) == len(set.union(*splits))


def _original_text(name):
    folder = _folder_or_skip(name)
    paths = sorted(path for path in folder.iterdir() if path.name != "sha256sums.txt")
    return [
        (gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode(
            "utf-8-sig"
        )
        for path in paths
    ]


@pytest.mark.parametrize("name", ["tiny_shakespeare", "wikitext2", "novels_en", "wikipedia_en"])
def test_no_character_is_lost(loaded, name):
    documents = [text for documents in loaded(name)[1].values() for text in documents]
    originals = _original_text(name)
    if name == "novels_en":
        assert sorted(documents) == sorted(originals)
    elif name == "wikipedia_en":
        whole = "".join(originals)
        # Articles are between <doc …> and </doc>; nothing is between </doc> and <doc …>.
        expected = filter(None, re.split(r"^<(?:doc id=[^\n]*|/doc)>\n", whole, flags=re.M))
        assert sorted(documents) == sorted(expected)
        titles = re.findall(r'^<doc id=.* title="(.*)">$', whole, re.M)
        firsts = {text.partition("\n")[0] for text in documents}
        assert set(map(html.unescape, firsts)) == set(map(html.unescape, titles))
    else:
        assert "".join(documents) == "".join(originals)


def test_shakespeare_is_split_as_in_nanogpt(loaded):
    text = _original_text("tiny_shakespeare")[0]
    at = int(len(text) * 0.9)
    assert loaded("tiny_shakespeare")[1] == {"train": [text[:at]], "validation": [text[at:]]}


def test_wikitext_articles_begin_at_their_titles(loaded):
    articles = loaded("wikitext2")[1]["validation"]
    assert all(article.startswith(" \n = ") for article in articles)
    assert not any(article.startswith(" \n = = ") for article in articles)
    assert articles[0].startswith(" \n = Homarus gammarus = \n \n")


def test_poems_hold_every_hemistich_and_no_header(loaded):
    splits = loaded("persian_poems")[1]
    lines = [text.removesuffix("\n").split("\n") for part in splits.values() for text in part]
    assert max(map(len, lines)) == 100
    assert sum(len(document) == 100 for document in lines) >= len(lines) - 7
    everything = [line for document in lines for line in document]
    assert all(line == line.strip() and line for line in everything)
    originals = [line for text in _original_text("persian_poems") for line in text.split("\n")]
    expected = sorted(line.strip() for line in originals if line.strip())
    dropped = [line for line in expected if ".txt" in line or "number of beyts" in line]
    assert len(dropped) == 14
    assert sorted(everything + dropped) == expected


def test_news_articles_hold_title_abstract_and_paragraphs(loaded):
    articles = [json.loads(text) for text in _original_text("persian_news")]
    expected = sorted(
        "".join(f"{part}\n" for part in (a["title"], a["abstract"], *a["paragraphs"]) if part)
        for a in sum(articles, [])
    )
    assert sorted(sum(loaded("persian_news")[1].values(), [])) == expected


def test_translations_go_both_ways_and_keep_their_splits(loaded):
    forth = loaded("tatoeba_en_fa")[1]
    back = zoo.data.load_corpus("tatoeba_en_fa", languages=["fa", "en"])
    assert back.languages == ("fa", "en")
    assert {split: [(b, a) for a, b in pairs] for split, pairs in forth.items()} == _read(back)
    sources = [{english for english, _ in pairs} for pairs in forth.values()]
    assert sum(map(len, sources)) == len(set.union(*sources)) == 2_452
    assert {"Who?"} == {english for part in forth.values() for english, p in part if p == "چه کسی؟"}


def test_multi30k_holds_the_pair_that_is_asked_for(loaded):
    corpus, german = loaded("multi30k")
    french = zoo.data.load_corpus("multi30k", languages=["fr", "en"])
    assert corpus.languages == ("en", "de")
    assert corpus.fingerprint != french.fingerprint
    for split, pairs in _read(french).items():
        assert [english for _, english in pairs] == [english for english, _ in german[split]]
    assert german["train"][0] == (
        "Two young, White males are outside near many bushes.",
        "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche.",
    )


# --- original files -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", COUNTS)
def test_the_registered_files_are_the_real_ones(name):
    files = original_files(name)
    assert files == datasets.dataset_entry(name).original_files()
    repository, commit, path = re.fullmatch(
        r"https://raw.githubusercontent.com/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", files[0].url
    ).groups()
    assert f"{repository}/{path}" == FIRST_FILES[name]
    assert len({file.url for file in files}) == len(files)
    assert all(commit in file.url for file in files)
    folder = _folder_or_skip(name)
    there = {path.name for path in folder.iterdir()} - {"sha256sums.txt"}
    assert len(there) == len({file.file_name for file in files}) == len(files)
    for file in files:
        if file.file_name in there:
            data = (folder / file.file_name).read_bytes()
        else:
            data = gzip.decompress((folder / f"{file.file_name}.gz").read_bytes())
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size, file.sha256)


def test_what_is_fetched_reads_like_what_was_compressed(tmp_path, loaded):
    # These files are uncompressed at the source, but a data folder may compress them.
    for file in original_files("persian_news"):
        packed = _folder_or_skip("persian_news") / f"{file.file_name}.gz"
        (tmp_path / file.file_name).write_bytes(gzip.decompress(packed.read_bytes()))
        assert fetch.is_valid(tmp_path / file.file_name, file)
    corpus = zoo.data.load_corpus("persian_news", manual_dir=tmp_path)
    assert corpus.fingerprint == loaded("persian_news")[0].fingerprint
    assert _read(corpus) == loaded("persian_news")[1]


def test_missing_files_and_their_way_out_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path))
    with pytest.raises(
        RunError, match=f"no folder {tmp_path}/novels_en: run `zoo fetch novels_en`"
    ):
        zoo.data.load_corpus("novels_en")
    (tmp_path / "novels_en").mkdir()
    (tmp_path / "novels_en" / "Bennet_Babylon_1902.txt.gz").touch()
    with pytest.raises(RunError) as error:
        zoo.data.load_corpus("novels_en")
    assert str(error.value) == (
        f"{tmp_path}/novels_en does not contain Bennet_Helen_1910.txt, Burnett_Garden_1911.txt, "
        "Burnett_Lord_1886.txt and 39 more. `zoo fetch novels_en` downloads them."
    )
    monkeypatch.setattr(originals, "TextFile", None)
    (tmp_path / "multi30k").mkdir()
    with pytest.raises(RunError, match="does not contain .*[.](fr|de)[.]gz") as error:
        zoo.data.load_corpus("multi30k", languages=["fr", "de"])
    assert "en.gz" not in str(error.value)
    assert "and 5 more" in str(error.value)


@pytest.mark.parametrize(
    ("name", "file_name", "damage", "words"),
    [
        ("tatoeba_en_fa", "pes.txt", lambda data: data[:-1], "is not the registered file"),
        ("wikitext2", "valid.txt.gz", lambda data: data[:-9], "cannot be read: Compressed file"),
        (
            "wikitext2",
            "valid.txt.gz",
            lambda data: gzip.compress(b"text"),
            "is not the registered file",
        ),
    ],
)
def test_a_damaged_original_is_refused(tmp_path, name, file_name, damage, words):
    shutil.copyfile(_folder_or_skip(name) / file_name, tmp_path / file_name)
    zoo.data.load_corpus(name, manual_dir=tmp_path)
    (tmp_path / file_name).write_bytes(damage((tmp_path / file_name).read_bytes()))
    with pytest.raises(RunError, match=words) as error:
        zoo.data.load_corpus(name, manual_dir=tmp_path)
    message = str(error.value)
    assert message.startswith(str(tmp_path / file_name))
    assert f"`zoo fetch {name}`" in message
    assert "\n" not in message
