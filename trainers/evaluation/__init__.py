"""Metrics of trained models, predictions and heat maps."""
