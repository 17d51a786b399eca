"""Images and other arrays of fixed shape."""
