"""Initializes a run with the weights of another model."""

from pathlib import Path

import keras

from trainers.compression import low_rank, techniques
from trainers.config.base import section
from trainers.optimization.muon import output_layers
from trainers.run.workdir import read_config
from zoo import keras_internals
from zoo.data.text.published.folder import has_tokenizer, read_folder
from zoo.errors import UsageError
from zoo.layers.low_rank import LowRankEmbedding
from zoo.models.architecture import added_by_compression, differences, is_adapter
from zoo.models.heads import has_head, text_trunk
from zoo.models.sources import open_source
from zoo.storage.remote import local
from zoo.storage.transformers_files import is_transformers

_SHOWN = 5  # maximum number of differences in an error message


def initialize(model: keras.Model, source: str, tokenizer=None, config=None) -> str:
    """Copies the weights of another model of the same architecture into a model.

    Only the number of classes or tokens may differ, because it depends on the data. Output layers
    and embeddings of another size keep their initial values. A model with a head of
    `zoo.models.heads` may get all weights below the head from a model with any head.

    Args:
      model: built model; changed in place unless an error is raised.
      source: a work directory, a .keras file, a folder that transformers wrote, or
        `keras_hub:PRESET`; see `zoo.models.convert.published` for the last two.
      tokenizer: tokenizer of the run's data; None if there is none.
      config: configuration of the run, for compression techniques that change values; or None.

    Returns:
      A message with the number of copied weights, and the names of weights that were not filled in
      the model or not used from the source.

    Raises:
      UsageError: if there is no such source, its architecture differs, its kernels are integers, or
        its embeddings belong to another tokenizer.
      RunError: if the source cannot be read.
    """
    source = str(local(source))
    source_model = open_source(source)
    if has_head(model) and not has_head(source_model):
        model, source_model = text_trunk(model), text_trunk(source_model)
    source_tokenizer = _tokenizer_fingerprint(source) if tokenizer is not None else None
    if tokenizer is not None and source_tokenizer not in (None, tokenizer.fingerprint):
        raise UsageError(
            f"init_from requires a model with the tokenizer of the data. Received: {source}, which "
            f"has another tokenizer. Set data.tokenizer={source}."
        )
    if any(getattr(x, "quantization_mode", None) for x in keras_internals.all_layers(source_model)):
        raise UsageError(
            "init_from does not support models with integer kernels. Received: "
            f"{source}. Use the model before quantization."
        )
    source_weights = {v.path: v for v in source_model.weights}
    values = {path: v.value for path, v in source_weights.items()}
    if config is not None:
        values |= techniques.initial_values(model, source_model, config)
    weights = [v for v in model.weights if not is_adapter(v.path)]
    missing = [v for v in weights if v.path not in values]
    other_shapes = [v for v in weights if v.path in values and not _has_same_shape(v, values)]
    filled_variables = [v for v in weights if _has_same_shape(v, values)]
    # Source kernels that this model holds as products are used under other names.
    products = tuple(f"{layer.path}/" for layer in low_rank.products(model))
    paths = {v.path for v in model.weights}
    unused_variables = [
        v for v in source_model.weights if v.path not in paths and not v.path.startswith(products)
    ]
    if not filled_variables:
        raise UsageError(
            "init_from requires a model of the same architecture. Received: "
            f"{source}, in which no weight has the name and shape of a weight of this model."
        )
    shapes = [f"{v.path} {tuple(values[v.path].shape)} -> {tuple(v.shape)}" for v in other_shapes]

    # Only output layers and embeddings may have other shapes, which follow the data.
    resizable, source_resizable = _resizable_ids(model), _resizable_ids(source_model)
    heads = {layer.name for layer in _outputs(model)} ^ {
        layer.name for layer in _outputs(source_model)
    }
    mismatches = differences(source_model, model, ends=not heads)
    mismatches += [
        f"{shapes_text} in shape"
        for v, shapes_text in zip(other_shapes, shapes, strict=True)
        if id(v) not in resizable
    ]
    mismatches += _weights_in_one_model(
        [v.path for v in missing if id(v) not in resizable], "this model"
    )
    mismatches += _weights_in_one_model(
        [v.path for v in unused_variables if id(v) not in source_resizable], source
    )
    if mismatches:
        more = f"; and {len(mismatches) - _SHOWN} more" if len(mismatches) > _SHOWN else ""
        raise UsageError(
            f"init_from requires a model of the same architecture. Received: {source}, which "
            f"differs: {'; '.join(mismatches[:_SHOWN])}{more}. Change the section "
            "model of the recipe."
        )
    if config is not None and section(config, "lora").rank:
        _check_frozen([*missing, *other_shapes], source)
    for variable in filled_variables:
        variable.assign(values[variable.path])
    report = f"init_from: {len(filled_variables)} of {len(weights)} weights from {source}"
    if missing:
        report += f"; missing in the source: {', '.join(v.path for v in missing)}"
    if other_shapes:
        report += f"; with another shape: {', '.join(shapes)}"
    if unused_variables:
        report += f"; unused in the source: {', '.join(v.path for v in unused_variables)}"
    if tokenizer is not None and source_tokenizer is None:
        report += "; the source has no tokenizer: check that its tokens are those of the data"
    return report


def _check_frozen(variables, source: str) -> None:
    """Raises `UsageError` if weights that the source does not fill would never be trained."""
    paths = [v.path for v in variables if not v.trainable]
    if paths:
        raise UsageError(
            f"lora freezes weights that {source} does not contain: {', '.join(paths[:_SHOWN])}. "
            f"Train them: set lora.train to a regular expression, such as {paths[0]!r}."
        )


def _has_same_shape(variable, values) -> bool:
    value = values.get(variable.path)
    return value is not None and tuple(value.shape) == tuple(variable.shape)


def _weights_in_one_model(paths: list[str], model_name: str) -> list[str]:
    """Returns one phrase per layer with weights that only one model has."""
    by_layer = {}
    for path in paths:
        by_layer.setdefault(path.partition("/")[0], []).append(path)
    return [
        f"{group[0]}{f' and {len(group) - 1} more of {layer}' if len(group) > 1 else ''} "
        f"only in {model_name}"
        for layer, group in by_layer.items()
    ]


def _resizable_ids(model) -> set[int]:
    """Returns the ids of variables with sizes that may depend on the dataset.

    They belong to output layers, biases after output layers, and embeddings except position tables,
    or are ranges and centroids that compression adds.
    """
    ids = {id(v) for v in model.weights if added_by_compression(v.path)}
    tables = (keras.layers.Embedding, LowRankEmbedding)
    embeddings = [x for x in keras_internals.all_layers(model) if isinstance(x, tables)]
    ends = keras_internals.output_layers(model) if keras_internals.is_graph(model) else []
    vectors = [x for x in ends if all(len(v.shape) == 1 for v in getattr(x, "weights", ()))]
    ids |= {id(v) for layer in vectors for v in getattr(layer, "weights", ())}
    return ids | {id(v) for layer in _outputs(model) + embeddings for v in layer.weights}


def _outputs(model) -> list:
    return output_layers(model) if keras_internals.is_graph(model) else []


def _tokenizer_fingerprint(source: str) -> str | None:
    """Returns the fingerprint of the tokenizer of a work directory or of a folder, or None."""
    if not Path(source).is_dir():
        return None
    if is_transformers(source):
        return read_folder(source).fingerprint if has_tokenizer(source) else None
    return read_config(source).get("tokenizer")
