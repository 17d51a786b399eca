"""The sections of a recipe, and functions that load and check a recipe."""
