"""Removes near duplicates by datatrove's MinHash, for `prep_chains`; needs datatrove.

python prep_chains_peer.py FOLDER       reads FOLDER/in/rows.jsonl, writes FOLDER/kept/*.jsonl.gz
"""

import sys

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


def main(folder: str):
    """Runs the four stages in one process."""
    config = MinhashConfig(n_grams=5, num_buckets=25, hashes_per_bucket=8)
    rows, signatures, buckets, remove = (
        f"{folder}/{name}" for name in ("in", "signatures", "buckets", "remove")
    )
    stages = [
        (1, [JsonlReader(rows), MinhashDedupSignature(signatures, config)]),
        (25, [MinhashDedupBuckets(signatures, buckets, config=config)]),
        (1, [MinhashDedupCluster(buckets, remove, config=config)]),
        (1, [JsonlReader(rows), MinhashDedupFilter(remove), JsonlWriter(f"{folder}/kept")]),
    ]
    for number, (tasks, steps) in enumerate(stages):
        LocalPipelineExecutor(
            pipeline=steps, tasks=tasks, workers=1, logging_dir=f"{folder}/logs/{number}"
        ).run()


if __name__ == "__main__":
    main(sys.argv[1])
