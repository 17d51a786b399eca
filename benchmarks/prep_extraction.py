"""Measures the quality of extracted text, for settings of `zoo prepare` and trafilatura alone.

python -m benchmarks.prep_extraction        (ZOO_DATA_DIR with trafilatura_eval and cleaneval_dev)

Precision, recall and F1 are those of segments on trafilatura_eval (240 pages with segments that the
text must and must not contain), and of bags of words, as a mean over pages, on cleaneval_dev (58
pages with text extracted by people). The pages select the defaults.
"""

import gzip
import json
import os
import re
from collections import Counter

from benchmarks.results_file import append
from zoo.prep.cleaning.extract import extract
from zoo.prep.document import Document
from zoo.prep.reading.read import decode
from zoo.prep.settings import defaults
from zoo.storage.paths import data_dir


def zoo(**settings):
    """Returns a function that extracts text as `zoo prepare` does with these `prep.extract`."""
    settings = {**defaults()["extract"], "timeout": 120.0, **settings}

    def method(raw: bytes) -> str:
        document = Document(html=decode(raw))
        extract(document, settings)
        return document.text

    return method


def trafilatura(**settings):
    """Returns a function that extracts text from bytes by trafilatura alone."""
    import trafilatura as library

    return lambda raw: library.extract(raw, **settings) or ""


METHODS = {
    "zoo, comments": zoo(comments=True, favor=""),
    "zoo": zoo(comments=False, favor=""),
    "zoo, precision": zoo(comments=False, favor="precision"),
    "trafilatura, comments": trafilatura(include_comments=True),
    "trafilatura": trafilatura(include_comments=False),
    "trafilatura, precision": trafilatura(include_comments=False, favor_precision=True),
}


def segments(method) -> dict[str, float]:
    """Returns the scores over the segments of trafilatura_eval."""
    folder, count = data_dir() / "trafilatura_eval", Counter()
    for page in json.loads((folder / "evaldata.json").read_text()).values():
        path = folder / "html" / os.path.basename(page["path"])
        if not path.exists():
            continue
        text = method(gzip.decompress(path.read_bytes()))
        hits = sum(segment in text for segment in page["with"])
        count.update(hit=hits, missed=len(page["with"]) - hits,
                     wrong=sum(segment in text for segment in page["without"]))  # fmt: skip
    hit, missed, wrong = count["hit"], count["missed"], count["wrong"]
    return {
        "precision": hit / (hit + wrong),
        "recall": hit / (hit + missed),
        "f1": 2 * hit / (2 * hit + missed + wrong),
    }


def words(method) -> dict[str, float]:
    """Returns the mean scores over the bags of words of cleaneval_dev."""
    folder, scores = data_dir() / "cleaneval_dev", []
    for path in sorted((folder / "input").glob("*.html.gz")):
        gold = (folder / "GoldStandard" / path.name.replace(".html.gz", ".txt")).read_bytes()
        gold = re.sub(r"<[phl]>", " ", decode(gold).partition("\n")[2])
        gold = Counter(re.findall(r"\w+", gold.lower()))
        text = Counter(re.findall(r"\w+", method(gzip.decompress(path.read_bytes())).lower()))
        both = (gold & text).total()
        scores.append(
            (
                both / max(1, text.total()),
                both / max(1, gold.total()),
                2 * both / max(1, gold.total() + text.total()),
            )
        )
    means = (sum(column) / len(scores) for column in zip(*scores, strict=True))
    return dict(zip(("precision", "recall", "f1"), means, strict=True))


if __name__ == "__main__":
    rows = [
        {
            "pages": name,
            "method": title,
            **{key: round(value, 4) for key, value in measure(method).items()},
        }
        for name, measure in (("trafilatura_eval", segments), ("cleaneval_dev", words))
        for title, method in METHODS.items()
    ]
    for row in rows:
        print(row)
    print(append("prep_extraction", rows))
