"""Tests that planted duplicates are found, and nothing else."""

import itertools
import json
import random

import numpy as np
import pytest

from tests import pages

pytest.importorskip("datasketch", reason="needs the extra `prep`")

from zoo.prep import pipeline, steps, store
from zoo.prep.cleaning import dedup
from zoo.prep.document import Document, key_of, key_range, record_of, shard_of
from zoo.prep.engine import LocalEngine

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("", "n", "r", "st")]


def planted(originals, seed=0):
    """Yields (group, text): originals of 60 to 600 words, each with four edited copies."""
    draw = random.Random(seed)
    for group in range(originals):
        words = draw.choices(WORDS, k=draw.randint(60, 600))
        yield group, " ".join(words)
        for rate in (0.005, 0.01, 0.03, 0.05):
            edited = [
                draw.choice(WORDS) if draw.random() < rate else word
                for word in words
                if draw.random() >= rate / 4
            ]
            yield group, " ".join(edited)


def near_pairs(texts, tmp_path, **changes):
    """Returns (verified pairs, dropped document -> document that stays), as indices of `texts`."""
    prep = pages.settings(**changes)
    common = {"work": str(tmp_path), "out": str(tmp_path), "prep": prep, "shards": 3}
    (tmp_path / "filter_documents").mkdir()
    place = {}
    for shard in range(3):
        path = steps.path_of(tmp_path, "filter_documents", shard, ".jsonl.zst")
        with store.open_line_writer(path) as write:
            for number in range(shard, len(texts), 3):
                key = key_of(0, number, 3)
                place[key] = number
                write(Document(text=texts[number], key=key).to_json())

    def on(step, title, tasks):
        with LocalEngine(1) as engine:
            list(engine.run(step, tasks))

    def on_shards(step, title, **more):
        on(step, title, [{**common, "name": shard, **more} for shard in range(3)])

    on_shards(steps.hash_documents, "", parts=0)
    on(steps.exact_duplicates, "", [{**common, "name": part, "parts": 2} for part in range(2)])
    pipeline._near_duplicates(on, on_shards, common, tmp_path, 2, 2)
    pairs = [steps.load_output(tmp_path, "verified_pairs", shard) for shard in range(3)]
    pairs = {tuple(sorted((place[a], place[b]))) for a, b in np.concatenate(pairs).tolist()}
    dropped = {place[a]: place[b] for a, b in store.load_array(tmp_path / "near.npy").tolist()}
    return pairs, dropped


def test_planted_near_duplicates_are_found_and_nothing_else(tmp_path):
    # Exact duplicates are dropped before this step.
    groups, texts = zip(
        *{text: (group, text) for group, text in planted(100)}.values(), strict=True
    )
    sets = [
        {tuple(text.split()[i : i + 5]) for i in range(len(text.split()) - 4)} for text in texts
    ]
    expected = set()
    for _, members in itertools.groupby(range(len(texts)), lambda i: groups[i]):
        for a, b in itertools.combinations(members, 2):
            if len(sets[a] & sets[b]) >= 0.8 * len(sets[a] | sets[b]):
                expected.add((a, b))
    assert len(expected) > 200
    pairs, dropped = near_pairs(texts, tmp_path)
    assert len(pairs & expected) / len(expected) >= 0.98
    assert len(pairs & expected) / len(pairs) >= 0.98
    # Every dropped document is a duplicate of an earlier document that stays.
    assert all(b < a for a, b in dropped.items())
    assert all(groups[a] == groups[b] for a, b in dropped.items())
    assert not set(dropped) & set(dropped.values())
    assert all(len(sets[a] & sets[b]) >= 0.8 * len(sets[a] | sets[b]) for a, b in dropped.items())


def test_candidate_probability_matches_the_documented_table():
    """Measures the probability of becoming candidates on sets of known similarity."""
    draw = np.random.default_rng(0)
    size, tries = 400, 150
    for similarity, expected in ((0.6, 0.345), (0.7, 0.773), (0.8, 0.990)):
        hits = 0
        shared = round(size * 2 * similarity / (1 + similarity))
        for _ in range(tries):
            values = draw.choice(2**32, 2 * size - shared, replace=False).astype(np.uint32)
            a, b = np.sort(values[:size]), np.sort(values[size - shared :])
            bands = zip(dedup.band_hashes(a, 25, 8), dedup.band_hashes(b, 25, 8), strict=True)
            hits += any(x == y for x, y in bands)
        deviation = (expected * (1 - expected) / tries) ** 0.5
        assert abs(hits / tries - expected) < 4 * deviation + 0.01, similarity


def test_jaccard_and_shingles():
    a, b = (
        dedup.shingles(dedup.normalize_words(text), 2)
        for text in ("One two, THREE four", "two three five")
    )
    assert len(a) == 3
    assert dedup.jaccard(a, b) == pytest.approx(1 / 4)
    assert dedup.jaccard(a, a) == 1.0
    assert len(dedup.shingles("one", 5)) == 1
    assert len(dedup.shingles("", 5)) == 1
    assert dedup.normalize_words("می‌رود «خانه»!") == "می‌رود خانه"


def test_repeats_candidates_and_frequent_lines():
    hashes, keys = np.array([4, 1, 4, 4, 1, 3], np.uint64), np.array([9, 8, 2, 5, 1, 7], np.uint64)
    assert sorted(dedup.find_repeats(hashes, keys).tolist()) == [[5, 2], [8, 1], [9, 2]]
    assert dedup.find_candidates(hashes, keys).tolist() == [[1, 8], [2, 5], [2, 9], [5, 9]]
    frequent, first_keys = dedup.find_frequent(hashes, keys, 2)
    assert (frequent.tolist(), first_keys.tolist()) == ([4], [2])
    many = dedup.find_candidates(np.zeros(1000, np.uint64), np.arange(1000, dtype=np.uint64))
    half = dedup.ALL_PAIRS // 2
    links = set()
    for i in range(1000):
        links |= {(other, i) for other in (*range(min(half, i)), *range(max(0, i - half), i))}
    assert set(map(tuple, many.tolist())) == links
    assert dedup.near_duplicates([many], lambda a, b: True).tolist() == [
        [i, 0] for i in range(1, 1000)
    ]


def test_a_document_is_dropped_only_for_one_that_stays():
    compared = []

    def similar(a, b):
        compared.append((a, b))
        return (a, b) == (2, 7)

    # 2 - 5 - 9 is a chain; 7 is similar to 5 and, without a candidate pair, to 2; 3 - 4 is a pair.
    pairs = [np.array([[5, 9], [2, 5]], np.uint64), np.array([[3, 4], [5, 7]], np.uint64)]
    assert dedup.near_duplicates(pairs, similar).tolist() == [[4, 3], [5, 2], [7, 2]]
    assert compared == [(2, 7), (2, 9)]
    assert dedup.near_duplicates([], similar).shape == (0, 2)


def chain(count=30, lines=24, seed=0):
    """Returns texts that differ from their predecessor by two lines."""
    draw = random.Random(seed)
    pool = [" ".join(draw.choices(WORDS, k=12)).capitalize() for _ in range(2 * count + lines)]
    return ["\n".join(f"{line}." for line in pool[2 * i : 2 * i + lines]) for i in range(count)]


@pytest.mark.parametrize("shard_bytes", [1 << 24, 20_000], ids=["one shard", "several"])
def test_a_chain_is_not_one_document(tmp_path, shard_bytes):
    """The same documents stay for every number of shards: no two of them are similar."""
    draw, texts = random.Random(1), [*chain(), *chain(6, seed=2)]
    draw.shuffle(texts)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "rows.jsonl").write_text(lines)
    for number in range(3):  # one page twice, in two files
        (tmp_path / "in" / f"{number}.txt").write_text(pages.paragraphs(number // 2))
    prep = pages.settings(
        input=str(tmp_path / "in"), shard_bytes=shard_bytes, rules=[], dedup__line_documents=0
    )
    with LocalEngine(1) as engine:
        pipeline.prepare(prep, pages.DATA, tmp_path / "out", engine)
    remaining = [
        document.text
        for path in (tmp_path / "out" / "text").glob("*.gz")
        for document in store.read_documents(path)
    ]
    sets = {text: dedup.shingles(dedup.normalize_words(text), 5) for text in texts}
    stay = []  # in input order
    for text in texts:
        if all(dedup.jaccard(sets[text], sets[other]) < 0.8 for other in stay):
            stay.append(text)
    assert 12 < len(stay) < 30
    assert sorted(remaining) == sorted([*stay, pages.paragraphs(0), pages.paragraphs(1)])


def test_keys_sort_in_input_order():
    """Files of shard 0, a file that is divided into shards 1 to 5, files of shard 6."""
    keys = [key_of(0, record, 1) for record in range(40)]
    keys += [key_of(1, record, 5) for record in range(100)]
    keys += [key_of(6, record, 1) for record in range(7)]
    array = np.array(keys, np.uint64)
    assert keys == sorted(set(keys))
    assert record_of(array).tolist() == [*range(40), *range(100), *range(7)]
    assert shard_of(array).tolist() == [0] * 40 + [1 + i % 5 for i in range(100)] + [6] * 7
    assert [shard_of(key) for key in keys] == shard_of(array).tolist()
    pairs = np.stack([array, array], 1)
    for shard in range(8):
        low, high = key_range(shard)
        mine = [key for key in keys if shard_of(key) == shard]
        assert all(low <= key < high for key in mine)
        assert steps._pairs_of_shard(pairs, shard)[:, 0].tolist() == mine


def test_band_hashes_do_not_depend_on_the_batch_size(monkeypatch):
    shingles = np.arange(1000, dtype=np.uint32) * 7
    whole = dedup.band_hashes(shingles, 25, 8)
    monkeypatch.setattr(dedup, "_BATCH_SIZE", 300)
    assert dedup.band_hashes(shingles, 25, 8) == whole
    assert dedup.band_hashes(shingles[:900], 25, 8) != whole


def test_vowel_signs_are_not_separate_words():
    assert dedup.normalize_words("हिन्दी, کِتاب!") == "हिन्दी کِتاب"


@pytest.mark.parametrize("parts", [1, 7])
def test_hash_slices_of_all_parts_are_all_hashes(parts):
    hashes = np.sort(np.random.default_rng(0).integers(0, 2**64, 1000, np.uint64, endpoint=False))
    hashes = np.r_[np.uint64(0), hashes, np.uint64(2**64 - 1)]
    slices = [hashes[store.hash_slice(hashes, part, parts)] for part in range(parts)]
    assert np.array_equal(np.concatenate(slices), hashes)


def test_a_frequent_line_stays_only_in_the_first_document(tmp_path):
    banner = "Subscribe to our wonderful newsletter, free of charge."
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(8):
        text = f"{pages.paragraphs(number)}\n{banner}\nBy Ann."
        (folder / f"{number}.txt").write_text(text)
    prep = pages.settings(
        input=str(folder), dedup__line_documents=3, shard_bytes=2000, rules=[], validation=0.2
    )
    with LocalEngine(1) as engine:
        pipeline.prepare(prep, pages.DATA, tmp_path / "out", engine)
    texts = [
        document.text
        for path in sorted((tmp_path / "out" / "text").glob("*.gz"))
        for document in store.read_documents(path)
    ]
    assert len(texts) == 8
    assert sum(banner in text for text in texts) == 1
    assert all("By Ann." in text for text in texts)  # too short to count


def test_equal_documents_are_never_in_both_splits(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number}.txt").write_text(pages.paragraphs(number // 2))
    prep = pages.settings(
        input=str(folder), dedup__exact=False, dedup__near=False, dedup__line_documents=0,
        rules=[], validation=0.5,
    )  # fmt: skip
    with LocalEngine(1) as engine:
        about = pipeline.prepare(prep, pages.DATA, tmp_path / "out", engine)
    assert sum(about["documents"].values()) == 40
    splits = [
        {document.text for path in (tmp_path / "out" / "text").glob(f"{split}-*")
         for document in store.read_documents(path)}
        for split in pipeline.SPLITS
    ]  # fmt: skip
    assert splits[0]
    assert splits[1]
    assert not splits[0] & splits[1]
