"""Techniques that make a model smaller while it trains, one file per technique."""
