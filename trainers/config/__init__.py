"""The keys of a recipe, and the way from a recipe's name to a checked configuration."""
