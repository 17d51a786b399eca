"""Text corpora, tokenizers and packed rows of tokens."""
