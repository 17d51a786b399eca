"""Reads and writes files: atomically, with bounded memory, local or remote."""
