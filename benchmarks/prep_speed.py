"""Compares the speed of the whole preparation of pages, by `zoo prepare` and datatrove 0.10.

python -m benchmarks.prep_speed PEER_PYTHON [PAGES]

PEER_PYTHON needs datatrove[io,processing] 0.10, spacy and this environment's trafilatura. The pages
are those of trafilatura_eval and cleaneval_dev in eight WARC files. Both sides read, extract with
the same trafilatura and options, repair by ftfy, apply the rules of Gopher, C4 and FineWeb without
stop words (the pages are in five languages), remove near duplicates (25 bands of 8 rows, 5-grams)
and tokenize with the same BPE. CPU seconds are reported too, because other load on the machine
affects them less.
"""

import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.results_file import append
from zoo.prep.settings import defaults
from zoo.storage.paths import data_dir

# One process each, so that all CPU seconds are counted on both sides.
WORKERS = 1
ZOO_SCRIPT = """
import json, sys
from zoo.prep.engine import LocalEngine
from zoo.prep.pipeline import prepare
if __name__ == "__main__":
    prep, data, out = json.loads(sys.argv[1])
    with LocalEngine(int(sys.argv[2])) as engine:
        print(json.dumps(prepare(prep, data, out, engine)["documents"]))
"""


def make_warcs(folder: Path, count: int) -> int:
    """Writes at least `count` pages, if there are as many; returns the number of pages."""
    paths = sorted((data_dir() / "trafilatura_eval" / "html").glob("*.gz"))
    paths += sorted((data_dir() / "cleaneval_dev" / "input").glob("*.gz"))
    paths = paths[:: max(1, len(paths) // count)]
    folder.mkdir()
    for part in range(8):
        with open(folder / f"{part}.warc.gz", "wb") as file:
            for number, path in enumerate(paths[part::8]):
                body = gzip.decompress(path.read_bytes())
                http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + body
                head = (
                    "WARC/1.0\r\nWARC-Type: response\r\n"
                    f"WARC-Record-ID: <urn:uuid:{part}-{number}>\r\n"
                    "WARC-Date: 2026-01-01T00:00:00Z\r\n"
                    "WARC-Identified-Payload-Type: text/html\r\n"
                    f"WARC-Target-URI: http://example.org/{part}/{number}\r\n"
                    "Content-Type: application/http; msgtype=response\r\n"
                    f"Content-Length: {len(http)}\r\n\r\n"
                )
                file.write(gzip.compress(head.encode() + http + b"\r\n\r\n"))
    return len(paths)


def timed(command: list[str]) -> tuple[float, float, str]:
    """Runs a command; returns its wall seconds, CPU seconds and last line of output."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode:
        raise SystemExit(f"{command[:3]} failed")
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.monotonic() - start, cpu, result.stdout.strip().splitlines()[-1]


def main(peer: str, count: int):
    """Prepares with both and appends one row each to the results."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    folder = Path(tempfile.mkdtemp(prefix="zoo_prep_speed_"))
    pages = make_warcs(folder / "warcs", count)
    prep = json.loads(json.dumps(defaults()))
    prep |= {
        "input": str(folder / "warcs"), "shard_bytes": 1 << 20,
        "rules": ["gopher_quality", "gopher_repetition", "c4", "fineweb"],
    }  # fmt: skip
    prep["extract"] |= {"metadata": False, "comments": False}
    prep["gopher_quality"]["min_stop_words"] = 0
    prep["dedup"] |= {"exact": False, "line_documents": 0}
    data = {"tokenizer": "bpe", "vocabulary_size": 2000, "normalization": "NFC",
            "sequence_length": 256, "packing": "stream"}  # fmt: skip
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel()
    bpe.train_from_iterator(["some text to begin with"], trainers.BpeTrainer(vocab_size=300))
    bpe.save(str(folder / "tokenizer.json"))
    rows = []
    for name, command in (
        ("zoo", [sys.executable, "-c", ZOO_SCRIPT, json.dumps([prep, data, str(folder / "zoo")]),
                 str(WORKERS)]),
        ("datatrove", [peer, str(Path(__file__).with_name("prep_speed_peer.py")),
                       str(folder / "warcs"), str(folder / "peer"),
                       str(folder / "tokenizer.json"), str(WORKERS)]),
    ):  # fmt: skip
        wall, cpu, output = timed(command)
        print(name, output)
        rows.append({
            "method": name, "pages": pages, "workers": WORKERS, "seconds": round(wall, 1),
            "processor_seconds": round(cpu, 1), "pages_per_second": round(pages / wall, 2),
            "pages_per_processor_second": round(pages / cpu, 2),
        })  # fmt: skip
        print(rows[-1])
    print(append("prep_speed", rows))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 298)
