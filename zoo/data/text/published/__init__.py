"""Tokenizers of published models: those in folders of the library transformers."""
