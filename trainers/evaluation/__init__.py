"""Metrics, predictions and heat maps of trained models."""
