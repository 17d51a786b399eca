"""The recipe of a CNN of a few hundred weights."""

from tests import toys
from zoo import registry


def recipe(technique="", settings=None, **trainer):
    """Returns the recipe; `settings` are keys of compress.TECHNIQUE, and maybe init_from."""
    arguments = dict(registry.entry("cnn_classifier").tiny, input_shape=(20, 20, 1))
    config = toys.recipe(
        "cnn_classifier", "image_classification", model_arguments=arguments, **trainer
    )
    if settings:
        settings = dict(settings)
        config.init_from = settings.pop("init_from")
        config.compress[technique].update(settings)
    return config
