"""How good the extracted text is, ours and trafilatura's own, on the same pages.

python -m benchmarks.prep_extraction        (ZOO_DATA_DIR with trafilatura_eval and cleaneval_dev)

trafilatura_eval: 240 pages with segments that the text must and must not hold; F1 over segments.
cleaneval_dev: 58 pages with the text that a person made; F1 over the words, as a bag, a page, mean.
"""

import gzip
import json
import os
import re
from collections import Counter

from benchmarks.results_file import append
from zoo.data.datasets import data_dir
from zoo.prep.document import Document
from zoo.prep.extract import extract
from zoo.prep.read import decode
from zoo.prep.settings import defaults


def ours(raw: bytes) -> str:
    """The text as `zoo prepare` extracts it."""
    document = Document(html=decode(raw))
    extract(document, {**defaults()["extract"], "timeout": 120.0})
    return document.text


def theirs(raw: bytes) -> str:
    """The text as trafilatura extracts it when nothing is asked for."""
    import trafilatura

    return trafilatura.extract(raw) or ""


def segments(method) -> float:
    """F1 over the segments of trafilatura_eval."""
    folder, count = data_dir() / "trafilatura_eval", Counter()
    for page in json.loads((folder / "evaldata.json").read_text()).values():
        path = folder / "html" / os.path.basename(page["path"])
        if not path.exists():
            continue
        text = method(gzip.decompress(path.read_bytes()))
        hits = sum(segment in text for segment in page["with"])
        count.update(hit=hits, missed=len(page["with"]) - hits,
                     wrong=sum(segment in text for segment in page["without"]))  # fmt: skip
    return 2 * count["hit"] / (2 * count["hit"] + count["missed"] + count["wrong"])


def words(method) -> float:
    """Mean F1 over the bags of words of cleaneval_dev."""
    folder, scores = data_dir() / "cleaneval_dev", []
    for path in sorted((folder / "input").glob("*.html.gz")):
        gold = (folder / "GoldStandard" / path.name.replace(".html.gz", ".txt")).read_bytes()
        gold = re.sub(r"<[phl]>", " ", decode(gold).partition("\n")[2])
        wanted = Counter(re.findall(r"\w+", gold.lower()))
        found = Counter(re.findall(r"\w+", method(gzip.decompress(path.read_bytes())).lower()))
        both = (wanted & found).total()
        scores.append(2 * both / max(1, wanted.total() + found.total()))
    return sum(scores) / len(scores)


if __name__ == "__main__":
    rows = [
        {"pages": name, "method": method.__name__, "f1": round(measure(method), 4)}
        for name, measure in (("trafilatura_eval", segments), ("cleaneval_dev", words))
        for method in (ours, theirs)
    ]
    for row in rows:
        print(row)
    print(append("prep_extraction", rows))
