"""Base of layers whose sublayers may be quantized."""

from keras import layers, saving


class Composite(layers.Layer):
    """A layer that saves which of its sublayers Keras has quantized.

    Keras saves only the dtype policy of the outer layer. Without this, sublayers would be built as
    floats and could not load integers.
    """

    def get_build_config(self):
        config = super().get_build_config() or {}
        quantized = {
            path: {
                "dtype": saving.serialize_keras_object(layer.dtype_policy),
                "settings": saving.serialize_keras_object(layer.quantization_config),
            }
            for path, layer in _sublayers(self)
            if getattr(layer, "quantization_mode", None)
        }
        return {**config, "quantized": quantized} if quantized else config

    def build_from_config(self, config):
        for path, config_of_layer in config.get("quantized", {}).items():
            layer = self
            for name in path.split("."):
                layer = getattr(layer, name)
            layer.dtype_policy = saving.deserialize_keras_object(config_of_layer["dtype"])
            layer.quantization_config = saving.deserialize_keras_object(config_of_layer["settings"])
        super().build_from_config({k: v for k, v in config.items() if k != "quantized"})


def _sublayers(layer: layers.Layer, prefix: str = ""):
    """Yields (dotted attribute name, layer) of every sublayer, at any depth."""
    for name, part in vars(layer).items():
        if isinstance(part, layers.Layer):
            yield prefix + name, part
            yield from _sublayers(part, f"{prefix}{name}.")
