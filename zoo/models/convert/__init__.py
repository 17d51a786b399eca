"""Published checkpoints in and out, one file per format."""
