"""Opens the original files of a registered source after checking their sha256."""

from collections.abc import Sequence
from pathlib import Path

from zoo.data.fetch import FetchFile
from zoo.data.text.corpus_readers import TextFile
from zoo.errors import RunError
from zoo.storage.paths import data_dir


def originals_folder(name: str, manual_dir: Path | None) -> Path:
    """Returns the folder of the original files; raises RunError if it does not exist."""
    folder = manual_dir or data_dir() / name
    if not folder.is_dir():
        raise RunError(
            f"There is no folder {folder}: run `zoo fetch {name}`, or set ZOO_DATA_DIR or "
            f"data.manual_dir to the folder of the files of {name!r}."
        )
    return folder


def checked_files(
    name: str, files: Sequence[FetchFile], manual_dir: Path | None, advice: str
) -> list[TextFile]:
    """Returns the original files of a source, whose content is the registered one.

    Args:
      name: name of the source.
      files: its files. A file that is uncompressed at its source may be compressed here.
      manual_dir: folder of the files; `data_dir()/name` by default.
      advice: how to read other files, for a message.

    Raises:
      RunError: if a file is missing or is not the registered one.
    """
    folder = originals_folder(name, manual_dir)
    texts, missing = [], []
    for file in files:
        paths = [folder / file.file_name, folder / f"{file.file_name}.gz"]
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            missing.append(file.file_name)
        else:
            texts.append(TextFile.at(path))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise RunError(
            f"{folder} does not contain {', '.join(missing[:3])}{more}. "
            f"`zoo fetch {name}` downloads them."
        )
    for file, text in zip(files, texts, strict=True):
        try:
            sha256 = text.sha256(as_stored=text.path.name == file.file_name)
        except RunError as error:
            raise RunError(f"{error} Delete it and run `zoo fetch {name}`.") from None
        if sha256 != file.sha256:
            raise RunError(
                f"{text.path} is not the registered file of {name!r}: delete it and run "
                f"`zoo fetch {name}`, or {advice}."
            )
    return texts
