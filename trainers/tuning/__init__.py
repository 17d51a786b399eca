"""Finds learning rates, batch sizes and other settings: `zoo tune`."""
