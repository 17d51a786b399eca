"""Special tokens: the same names and ids in every tokenizer; ordinary tokens follow."""

SPECIAL = ("<pad>", "<unk>", "<start>", "<end>", "<sep>", "<mask>")
PADDING, UNKNOWN, START, END, SEPARATOR, MASK = range(len(SPECIAL))
FIRST_WORD = len(SPECIAL)
