"""What a batch means, its loss and its metrics: one file a task."""
