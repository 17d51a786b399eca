"""The train step, the loop around it and the trainer."""
