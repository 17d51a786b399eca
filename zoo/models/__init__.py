"""Models written with keras.ops, one file per family: `build(**arguments) -> keras.Model`."""
