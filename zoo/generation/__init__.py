"""Text, translations and image grids from trained models."""
