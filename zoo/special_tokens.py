"""Ids of the special tokens, equal in every tokenizer; ordinary tokens follow."""

PADDING, UNKNOWN, START, END, SEPARATOR, MASK = range(6)
FIRST_WORD = 6
