"""Layers made of layers that may be quantised one by one."""

from keras import layers, saving


class Composite(layers.Layer):
    """A layer of layers; a file of it tells which of them Keras has quantised.

    In a file it is the type of the outer layer alone that is kept: without this, those inside it
    would be built as floats, and could not take the integers that the file holds.
    """

    def get_build_config(self):
        config = super().get_build_config() or {}
        found = {
            path: {
                "dtype": saving.serialize_keras_object(layer.dtype_policy),
                "settings": saving.serialize_keras_object(layer.quantization_config),
            }
            for path, layer in _inside(self)
            if getattr(layer, "quantization_mode", None)
        }
        return {**config, "quantized": found} if found else config

    def build_from_config(self, config):
        for path, saved in config.get("quantized", {}).items():
            layer = self
            for name in path.split("."):
                layer = getattr(layer, name)
            layer.dtype_policy = saving.deserialize_keras_object(saved["dtype"])
            layer.quantization_config = saving.deserialize_keras_object(saved["settings"])
        super().build_from_config({k: v for k, v in config.items() if k != "quantized"})


def _inside(layer: layers.Layer, prefix: str = ""):
    """(dotted name of the attribute, layer) of every layer inside one, at any depth."""
    for name, part in vars(layer).items():
        if isinstance(part, layers.Layer):
            yield prefix + name, part
            yield from _inside(part, f"{prefix}{name}.")
