"""Forms of attention that avoid the scores of all pairs of positions."""
