"""Layers of the zoo's own models, written with keras.ops."""
