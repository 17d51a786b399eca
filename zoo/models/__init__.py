"""One file a family; `build(**arguments) -> keras.Model`, written with keras.ops alone."""
