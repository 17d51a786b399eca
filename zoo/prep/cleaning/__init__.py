"""Extracts, cleans, filters and deduplicates documents."""
