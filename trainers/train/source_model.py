"""Takes the model and the tokenizer of a recipe without a model from `init_from`."""

from pathlib import Path

from trainers.config.recipe import of_workdir
from trainers.run.workdir import read_config
from zoo import registry
from zoo.catalog import CATALOG
from zoo.data.text.published.folder import has_tokenizer
from zoo.errors import UsageError
from zoo.models.convert.published import read_settings
from zoo.storage.transformers_files import is_transformers


def complete(config):
    """Fills the section model, and data.tokenizer if it is empty, from the source of init_from.

    Args:
      config: a resolved configuration. If its model.name is not empty, it is returned unchanged.

    Returns:
      A resolved configuration.

    Raises:
      UsageError: if the source is missing or not supported.
      RunError: if a file of the source is damaged.
    """
    if config.model.name:
        return config
    source = config.init_from
    if not source:
        raise UsageError(
            "The recipe takes its model from init_from, which is empty: set --config.init_from to "
            "a folder of transformers or a work directory, or set model.name."
        )
    values = config.to_dict()
    if not Path(source).is_dir():
        raise UsageError(
            "init_from must be a folder of transformers or a work directory, unless model.name is "
            f"set. Received: {source}."
        )
    if is_transformers(source):
        model = _of_folder(source)
        tokenizer = source if has_tokenizer(source) else ""
    else:
        saved = read_config(source)
        model, tokenizer = saved["config"]["model"], source if saved.get("tokenizer") else ""
    values["model"] = model
    values["data"]["tokenizer"] = values["data"]["tokenizer"] or tokenizer
    return of_workdir(values)


def _of_folder(folder: str) -> dict:
    """Returns the section model for a folder of transformers.

    Its name is that of the first model of the family in the catalog; all arguments are set.
    """
    builder, arguments = read_settings(folder)
    target = f"{builder.__module__}:{builder.__name__}"
    name = next(row.name for row in CATALOG if row.builder == target)
    return {"name": name, **registry.arguments(name), **arguments}
