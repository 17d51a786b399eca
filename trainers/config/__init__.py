"""The sections of a recipe, and the way from its name to a checked configuration."""
