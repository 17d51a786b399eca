"""Layers that are computed again in the backward pass instead of storing their activations."""
