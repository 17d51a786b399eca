"""Scripts that measure; their results, with machine and date, lie in results/."""
