"""Reads and writes files: atomically, bounded, local or remote."""
