"""Turns raw web pages into training records: `zoo prepare`.

One file per step, in this order:

    crawl -> read -> extract -> clean -> filters -> dedup -> (zoo.data) tokens, rows -> card

`steps.py` runs the steps on a shard, `engine.py` runs shards in processes or on Beam, and
`pipeline.py` runs the whole pipeline.
"""
