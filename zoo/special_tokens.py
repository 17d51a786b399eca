"""Ids of the tokens of special meaning, the same in every tokenizer; words come after them."""

PADDING, UNKNOWN, START, END, SEPARATOR, MASK = range(6)
FIRST_WORD = 6
