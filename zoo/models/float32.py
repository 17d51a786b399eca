"""A model that computes in float32 throughout."""

import json

import keras

from zoo.layers.rounding import is_quantized, quantize


def in_float32(model):
    """Returns a model that computes in float32 throughout, with the same weights."""
    config = keras.saving.serialize_keras_object(model)
    text = json.dumps(config)
    if "mixed_" not in text:
        return model
    half = "bfloat16" if "mixed_bfloat16" in text else "float16"
    for policy in (f"mixed_{half}", half):  # some layers name the type that they compute in
        text = text.replace(f'"{policy}"', '"float32"')
    same = keras.saving.deserialize_keras_object(json.loads(text))
    if is_quantized(model):
        quantize(same)
    same.set_weights(model.get_weights())
    return same
