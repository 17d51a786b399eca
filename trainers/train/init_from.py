"""Initializes a run with the weights of another model."""

from pathlib import Path

import keras

from trainers.compression import low_rank, techniques
from trainers.optimization.muon import output_layers
from trainers.run.workdir import read_config
from zoo import keras_internals
from zoo.errors import UsageError
from zoo.layers.low_rank import LowRankEmbedding
from zoo.models.architecture import added_by_compression, differences
from zoo.models.sources import open_source
from zoo.storage.remote import local
from zoo.storage.transformers_files import is_transformers

_SHOWN = 5  # maximum number of differences in an error message


def initialize(model: keras.Model, source: str, tokenizer=None, config=None) -> str:
    """Copies the weights of another model of the same architecture into a model.

    Only the number of classes or tokens may differ, because it depends on the data. Output layers
    and embeddings of another size keep their initial values.

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
        the model of a work directory has embeddings of another tokenizer.
      RunError: if the source cannot be read.
    """
    source = str(local(source))
    other = open_source(source)
    learned = read_config(source).get("tokenizer") if _is_work_directory(source) else None
    if tokenizer is not None and learned not in (None, tokenizer.fingerprint):
        raise UsageError(
            f"The model of {source} learned with another tokenizer: set data.tokenizer={source}."
        )
    if any(getattr(x, "quantization_mode", None) for x in keras_internals.all_layers(other)):
        raise UsageError(
            f"The kernels of {source} are integers of Keras: start from the model that was rounded."
        )
    theirs = {v.path: v for v in other.weights}
    values = {path: v.value for path, v in theirs.items()}
    if config is not None:
        values |= techniques.initial_values(model, other, config)
    missing = [v for v in model.weights if v.path not in values]
    unfit = [v for v in model.weights if v.path in values and not _fits(v, values)]
    filled = [v for v in model.weights if _fits(v, values)]
    # Source kernels that this model holds as products are used under other names.
    products = tuple(f"{layer.path}/" for layer in low_rank.products(model))
    own = {v.path for v in model.weights}
    unused = [v for v in other.weights if v.path not in own and not v.path.startswith(products)]
    if not filled:
        raise UsageError(f"Nothing in {source} fits this model: no weight has its name and shape.")
    shapes = [f"{v.path} {tuple(values[v.path].shape)} -> {tuple(v.shape)}" for v in unfit]

    # Only output layers and embeddings may have other shapes, which follow the data.
    free, their_free = _sized_by_data(model), _sized_by_data(other)
    heads = {layer.name for layer in _outputs(model)} ^ {layer.name for layer in _outputs(other)}
    found = differences(other, model, ends=not heads)
    found += [
        f"{said} in shape" for v, said in zip(unfit, shapes, strict=True) if id(v) not in free
    ]
    found += _alone([v.path for v in missing if id(v) not in free], "this model")
    found += _alone([v.path for v in unused if id(v) not in their_free], source)
    if found:
        more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        raise UsageError(
            f"init_from takes a model of the same architecture. That of {source} differs: "
            f"{'; '.join(found[:_SHOWN])}{more}. Set the recipe's section model accordingly."
        )
    for variable in filled:
        variable.assign(values[variable.path])
    report = f"init_from: {len(filled)} of {len(model.weights)} weights from {source}"
    if missing:
        report += f"; not in it: {', '.join(v.path for v in missing)}"
    if unfit:
        report += f"; of another shape: {', '.join(shapes)}"
    if unused:
        report += f"; not used of it: {', '.join(v.path for v in unused)}"
    if tokenizer is not None and learned is None:
        report += "; its tokenizer does not come with it: see that tokens mean the same"
    return report


def _fits(variable, values) -> bool:
    value = values.get(variable.path)
    return value is not None and tuple(value.shape) == tuple(variable.shape)


def _alone(paths: list[str], where: str) -> list[str]:
    """Returns one phrase per layer with weights that only one model has."""
    by_layer = {}
    for path in paths:
        by_layer.setdefault(path.partition("/")[0], []).append(path)
    return [
        f"{group[0]}{f' and {len(group) - 1} more of {layer}' if len(group) > 1 else ''} "
        f"only in {where}"
        for layer, group in by_layer.items()
    ]


def _sized_by_data(model) -> set[int]:
    """Returns the ids of variables with sizes that may depend on the data set.

    They belong to output layers, biases after output layers, and embeddings except position tables,
    or are ranges and centroids that compression adds.
    """
    found = {id(v) for v in model.weights if added_by_compression(v.path)}
    tables = (keras.layers.Embedding, LowRankEmbedding)
    embeddings = [x for x in keras_internals.all_layers(model) if isinstance(x, tables)]
    ends = keras_internals.output_layers(model) if keras_internals.is_graph(model) else []
    vectors = [x for x in ends if all(len(v.shape) == 1 for v in getattr(x, "weights", ()))]
    found |= {id(v) for layer in vectors for v in getattr(layer, "weights", ())}
    return found | {id(v) for layer in _outputs(model) + embeddings for v in layer.weights}


def _outputs(model) -> list:
    return output_layers(model) if keras_internals.is_graph(model) else []


def _is_work_directory(source: str) -> bool:
    return Path(source).is_dir() and not is_transformers(source)
