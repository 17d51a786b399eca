"""Reads documents from WARC, HTML, Parquet, JSONL and text files."""
