"""Compression of finished runs, and comparisons of compressed models."""
