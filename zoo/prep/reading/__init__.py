"""Opens what was collected: WARC, HTML, Parquet, JSON lines, text."""
