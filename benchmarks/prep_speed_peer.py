"""Does the work of `prep_speed` by datatrove 0.10; needs datatrove.

python prep_speed_peer.py WARC_FOLDER OUT_FOLDER TOKENIZER.json WORKERS
"""

import json
import sys
import time

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.extractors import Trafilatura
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.formatters import FTFYFormatter
from datatrove.pipeline.readers import JsonlReader, WarcReader
from datatrove.pipeline.tokens import DocumentTokenizer
from datatrove.pipeline.writers import JsonlWriter


def main(warcs: str, out: str, tokenizer: str, workers: int):
    """Runs the stages and prints their seconds as JSON."""
    config = MinhashConfig(n_grams=5, num_buckets=25, hashes_per_bucket=8)
    stages = {
        "read, extract, clean, filter": (8, [
            WarcReader(warcs, glob_pattern="*.warc.gz"),
            Trafilatura(favour_precision=False, timeout=20, deduplicate=False),
            FTFYFormatter(),
            GopherQualityFilter(min_stop_words=0),
            GopherRepetitionFilter(),
            C4QualityFilter(filter_no_terminal_punct=False),
            FineWebQualityFilter(),
            JsonlWriter(f"{out}/filtered"),
        ]),
        "near duplicates: signatures": (8, [
            JsonlReader(f"{out}/filtered"), MinhashDedupSignature(f"{out}/signatures", config),
        ]),
        "near duplicates: buckets": (25, [
            MinhashDedupBuckets(f"{out}/signatures", f"{out}/buckets", config=config),
        ]),
        "near duplicates: clusters": (1, [
            MinhashDedupCluster(f"{out}/buckets", f"{out}/remove", config=config),
        ]),
        "tokenize": (8, [
            JsonlReader(f"{out}/filtered"), MinhashDedupFilter(f"{out}/remove"),
            DocumentTokenizer(f"{out}/tokens", tokenizer, local_working_dir=f"{out}/tmp"),
        ]),
    }  # fmt: skip
    seconds = {}
    for name, (tasks, steps) in stages.items():
        start = time.monotonic()
        LocalPipelineExecutor(
            pipeline=steps, tasks=tasks, workers=workers, logging_dir=f"{out}/logs/{name[:20]}"
        ).run()
        seconds[name] = round(time.monotonic() - start, 1)
    print(json.dumps(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:4], int(sys.argv[4]))
