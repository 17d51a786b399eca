"""Layers of the zoo's own models, in keras.ops alone."""
