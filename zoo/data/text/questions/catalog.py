"""Sets of questions by name: registered sets, files of users, and synthetic questions.

Original files are checked by their sha256, so that results are always of the same questions.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zoo.data.datasets import SPLITS, list_datasets, refuse_manual_dir, register_dataset
from zoo.data.fetch import FetchFile
from zoo.data.text.corpus_readers import TextFile
from zoo.data.text.corpus_splits import key_hash
from zoo.data.text.originals import checked_files
from zoo.data.text.questions.squad import Question, read_questions
from zoo.data.text.questions.synthetic import FORMAT, facts
from zoo.errors import UsageError, near_names
from zoo.storage.disk import content_of, json_digest
from zoo.storage.paths import data_dir

_LOG = logging.getLogger(__name__)

SQUAD = "squad:"
SYNTHETIC_FACTS = "synthetic:facts"
VERSION = 1  # increase it when the questions or splits of unchanged files change
VALIDATION_SHARE = 0.1  # of the articles of a training split

_SPLITS = {**SPLITS, "dev": "validation"}
_GITHUB = "https://raw.githubusercontent.com"
_XQUAD = f"{_GITHUB}/google-deepmind/xquad/7d30520c717524000f0d9d2f9c10a069acd9d285"
_FILES = {
    "squad": (
        FetchFile(
            "https://rajpurkar.github.io/SQuAD-explorer/dataset/dev-v1.1.json", "dev-v1.1.json",
            4_854_279, "95aa6a52d5d6a735563366753ca50492a658031da74f301ac5238b03966972c9",
        ),
    ),
    "squadshifts": (
        FetchFile(
            f"{_GITHUB}/modestyachts/squadshifts-website/b7cc4d50af791c36c49417fb94dd739d6a9e7bef/"
            "datasets/new_wiki_v1.0.json", "new_wiki_v1.0.json",
            3_607_393, "1d50a0ca4cdab88d038b52ea8a2d0510af6038d7f41a0a256b9659237769d0ee",
        ),
    ),
    "xquad": (
        FetchFile(
            f"{_XQUAD}/xquad.en.json", "xquad.en.json",
            609_383, "e4c57d1c9143aaa1c5d265ba5987a65f4e69528d2a98f29d6e75019b10344f29",
        ),
        FetchFile(
            f"{_XQUAD}/xquad.de.json", "xquad.de.json",
            669_810, "990b5d746746ed65ed4702ea5f35f99ffa4e2f1c390c07d003642acd937916f9",
        ),
        FetchFile(
            f"{_XQUAD}/xquad.ar.json", "xquad.ar.json",
            1_582_988, "abdabd7afed5c635d99cca0f3f0d0c9d9ed0bc77451e963c2e4e0638c29e486d",
        ),
    ),
    "persian_qa": (
        FetchFile(
            f"{_GITHUB}/sajjjadayobi/PersianQA/ba4806eb7894b1e78e214e16e7e717840c129450/dataset/"
            "pqa_test.json", "pqa_test.json",
            643_506, "99f5cd13d25bf0696d3a841bd3e764841fcf0684b5919f81cd875db9d74b14a2",
        ),
    ),
}  # fmt: skip
_LANGUAGES = {"squad": ["en"], "squadshifts": ["en"], "xquad": ["en", "de", "ar"],
              "persian_qa": ["fa"]}  # fmt: skip
_LICENCES = {
    "squad": "CC BY-SA 4.0",
    "squadshifts": "not stated by its source",
    "xquad": "CC BY-SA 4.0",
    "persian_qa": "GPL-3.0",
}
_DESCRIPTIONS = {
    "squad": "SQuAD 1.1's development set, 10,570 questions on 48 articles, for evaluation only: "
    "split test",
    "squadshifts": "7,938 questions on 48 new Wikipedia articles for training; its split test is "
    "that of squad, if those files are present",
    "xquad": "1,190 questions of SQuAD's development set in English, German or Arabic, for "
    "evaluation only: split test. The English ones are also in squad",
    "persian_qa": "930 Persian questions on 93 articles, 279 without an answer, for evaluation "
    "only: split test",
}


@dataclass(frozen=True)
class QuestionSet:
    """Named splits of questions.

    Attributes:
      name: argument of `load_questions`.
      splits: "train", "validation", "test" -> questions, those of one context in a row.
      fingerprint: changes when the questions or the splits change.
      licence: stated by the source.
    """

    name: str
    splits: Mapping[str, tuple[Question, ...]]
    fingerprint: str
    licence: str = ""


def list_question_sets() -> tuple[str, ...]:
    """Returns the sorted names of the registered sets of questions."""
    return tuple(sorted(_FILES))


def load_questions(
    name: str, manual_dir: Path | None = None, languages: tuple[str, ...] = ()
) -> QuestionSet:
    """Loads a set of questions.

    Without a validation split, the training split is divided by article: a tenth of its articles,
    chosen by the hash of their titles, is the validation split. If there is only one article, it is
    divided by context.

    Args:
      name: one of `list_question_sets()`; `squad:FILE` for the training split of a user;
        `squad:FOLDER` for a folder with a file per split, such as train-v2.0.json and dev-v2.0.json
        (the validation split) and test.json; or `synthetic:facts`.
      manual_dir: folder of the original files; `data_dir()/name` by default.
      languages: language of `xquad`; () for English.

    Raises:
      UsageError: if the name or the language is unknown, or a file does not exist.
      RunError: if data are missing or damaged.
    """
    if manual_dir and not manual_dir.is_dir():
        raise UsageError(f"data.manual_dir must be an existing folder. Received: {manual_dir}.")
    if name == SYNTHETIC_FACTS:
        refuse_manual_dir(name, manual_dir)
        splits, digest, licence = facts(), [name, FORMAT], "computed"
    elif name.startswith(SQUAD):
        refuse_manual_dir(name, manual_dir)
        files = _files_of_user(name.removeprefix(SQUAD))
        splits = {split: tuple(read_questions(file)) for split, file in files.items()}
        digest = [SQUAD, {split: file.sha256() for split, file in files.items()}]
        licence = "of the user"
    elif name in _FILES:
        splits, digest = _load_registered(name, manual_dir, languages)
        licence = _LICENCES[name]
    else:
        fault = "has no questions" if name in list_datasets() else "is unknown"
        raise UsageError(
            f"data.source must be a set of questions. Received: {name!r}, which {fault}."
            f"{near_names(name, _FILES)} Known: {', '.join(list_question_sets())}, "
            f"{SYNTHETIC_FACTS}, and {SQUAD}FILE for your own."
        )
    if "train" in splits and "validation" not in splits:
        others = {split: part for split, part in splits.items() if split != "train"}
        splits = {**hold_out_articles(splits["train"]), **others}
    return QuestionSet(name, splits, json_digest([VERSION, *digest]), licence)


def _files_of_user(text: str) -> dict[str, TextFile]:
    """Returns the file of each split of `squad:FILE` or `squad:FOLDER`."""
    path = Path(text).expanduser()
    if not text or not path.exists():
        raise UsageError(f"There is no file or folder {text!r}. {content_of(path)}")
    if not path.is_dir():
        return {"train": TextFile.at(path)}
    files = {}
    for file in sorted(path.iterdir()):
        if file.name.startswith(".") or not re.search(r"\.json(\.gz)?$", file.name):
            continue
        split = _SPLITS.get(re.split(r"[-_.]", file.name)[0])
        if split is None or split in files:
            raise UsageError(
                f"The JSON files of {path} must be named by their splits, one of each: train, dev "
                f"and test, such as train-v2.0.json. Received: {file.name}."
            )
        files[split] = TextFile.at(file)
    if "train" not in files:
        raise UsageError(f"{path} must contain a file train.json. {content_of(path)}")
    return {split: files[split] for split in ("train", "validation", "test") if split in files}


def _load_registered(name: str, manual_dir: Path | None, languages: tuple[str, ...]):
    """Returns the splits and the parts of the fingerprint of a registered set."""
    known = _LANGUAGES[name]
    if len(languages) > 1 or not set(languages) <= set(known):
        raise UsageError(
            f"data.languages must be one of {', '.join(known)} for {name!r}. Received: "
            f"{', '.join(languages)}."
        )
    files = _FILES[name]
    if len(known) > 1:
        files = (files[known.index((*languages, known[0])[0])],)
    (file,) = checked_files(name, files, manual_dir, f"use your own file as {SQUAD}FILE")
    split = "train" if name == "squadshifts" else "test"
    splits, digest = {split: tuple(read_questions(file))}, [name, files[0].sha256]
    if name == "squadshifts":
        folder = manual_dir or data_dir() / "squad"
        if any(folder.glob(f"{_FILES['squad'][0].file_name}*")):
            test, test_digest = _load_registered("squad", folder, ())
            splits, digest = {**splits, **test}, [*digest, *test_digest]
        else:
            _LOG.warning(
                "squadshifts has no split 'test' here, because SQuAD's development set is missing: "
                "run `zoo fetch squad`"
            )
    return splits, digest


def hold_out_articles(questions: tuple[Question, ...]) -> dict[str, tuple[Question, ...]]:
    """Splits training questions into "train" and "validation" by article; see `load_questions`."""
    keys = [question.article for question in questions]
    if len(set(keys)) == 1:
        keys = [question.context for question in questions]
    hashes = [key_hash(key) for key in keys]
    order = sorted(set(hashes))
    if len(order) == 1:
        return {"train": questions}
    last = order[max(1, round(VALIDATION_SHARE * len(order))) - 1]
    parts = {"train": [], "validation": []}
    for question, number in zip(questions, hashes, strict=True):
        parts["validation" if number <= last else "train"].append(question)
    return {split: tuple(part) for split, part in parts.items()}


def _register(name: str) -> None:
    def as_arrays(manual_dir):
        raise UsageError(
            f"{name!r} is a set of questions, not a dataset of arrays: use it with task.name=qa."
        )

    register_dataset(name, as_arrays, _FILES[name], _DESCRIPTIONS[name], _LICENCES[name])


for _name in _FILES:
    _register(_name)
