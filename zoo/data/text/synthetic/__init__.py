"""Computed rows of bytes: long contexts, and questions whose answers take a number of steps."""
