"""From raw pages to training records: `zoo prepare`.

A step maps documents to documents; a rule keeps one or gives the reason why not. In the order of
the work, a file each:

    crawl -> read -> extract -> clean -> filters -> dedup -> (zoo.data) tokens, rows -> card

`steps.py` runs them on shards, `engine.py` runs shards on processes or on Beam, and `pipeline.py`
puts it together.
"""
