"""Retrieval: an index of encoded text, and language models that look up their context in it.

    documents -> rows of tokens -> encoders -> build (shards on the disk) -> index (search)

`knn_lm` and `generate` interpolate a decoder with the next tokens of its neighbors; `neighbor_rows`
stores passages similar to each chunk of a text, for the task `retro`. A search can leave out
documents: deleted ones, and those that `leaks` finds to be the queries' own.
"""
