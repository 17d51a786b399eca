"""Reads what `zoo train` and `zoo export` wrote; nothing of it is executed."""
