"""Conversion of mixed-precision models to float32."""

import json

import keras

from zoo.layers.rounding import is_quantized, quantize


def in_float32(model):
    """Returns a model with the same weights that computes everything in float32."""
    config = keras.saving.serialize_keras_object(model)
    text = json.dumps(config)
    if "mixed_" not in text:
        return model
    half = "bfloat16" if "mixed_bfloat16" in text else "float16"
    for policy in (f"mixed_{half}", half):  # some layers have their own compute dtype
        text = text.replace(f'"{policy}"', '"float32"')
    converted_model = keras.saving.deserialize_keras_object(json.loads(text))
    if is_quantized(model):
        quantize(converted_model)
    converted_model.set_weights(model.get_weights())
    return converted_model
