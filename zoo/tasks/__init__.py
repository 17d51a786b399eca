"""Tasks: the meaning of a batch, its loss and its metrics, with one file per task."""
