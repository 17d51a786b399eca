"""Scores of generated answers, summaries and translations against references."""
