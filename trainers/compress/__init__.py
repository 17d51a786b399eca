"""What makes a model smaller."""
