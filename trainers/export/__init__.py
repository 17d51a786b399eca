"""Exports models to files for other runtimes, and checks each file in its runtime."""
