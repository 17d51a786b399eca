"""Model files for other runtimes, each opened there before it counts."""
