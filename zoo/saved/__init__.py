"""Reads the output of `zoo train` and `zoo export`, without executing code in it."""
