"""Texts with labels, for classification and regression."""

from zoo.data.text.labeled.dataset import encode_texts, text_classification

__all__ = ["encode_texts", "text_classification"]
