"""Tests of `zoo index`, and of `--index` of `zoo evaluate` and `zoo generate`."""

import json
import shutil

import pytest

from tests.trainers.cli.test_cli_generate import work_directory
from tests.zoo.retrieval.test_index import make_texts
from trainers.cli.main import main
from zoo import registry
from zoo.data.text import tokenizers
from zoo.retrieval.manifest import read_manifest

SIZES = {
    "vocabulary_size": 262, "num_layers": 1, "hidden_dim": 8, "num_heads": 1, "sequence_length": 64,
}  # fmt: skip
TUNE = ["--neighbors=8", "--json"]


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train("byte", ["text"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """Returns a folder with a corpus, a work directory `run`, its index and an evaluation."""
    folder = tmp_path_factory.mktemp("retrieval")
    lines = (json.dumps({"text": text}) for text in make_texts(40, seed=1))
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    work_directory(folder / "run", registry.build("gpt_nano", **SIZES), tokenizer, **SIZES)
    path = folder / "run" / "config.json"
    config = json.loads(path.read_text())
    config["config"]["data"] |= {"source": f"text:{folder / 'corpus.jsonl'}", "tokenizer": "byte"}
    path.write_text(json.dumps(config))
    words = [str(folder / "index"), f"--workdir={folder / 'run'}"]
    assert main(["zoo", "index", *words]) == 0
    words = [str(folder / "run"), f"--index={folder / 'index'}", *TUNE]
    assert main(["zoo", "evaluate", *words]) == 0
    return folder


def test_an_index_is_described_and_complete(folder, zoo_command):
    answer = zoo_command("index", folder / "index", f"--workdir={folder / 'run'}")
    assert (answer.status, answer.err) == (0, "")
    assert answer.out == zoo_command("index", folder / "index").out
    (part,) = read_manifest(folder / "index")["parts"]
    assert answer.out.splitlines()[0] == f"{folder / 'index'}: states of gpt_nano"
    assert f"{part['documents']} documents" in answer.out
    assert part["split"] == "train"


def test_evaluation_tunes_on_validation_and_writes_the_result(folder, zoo_command):
    saved = json.loads((folder / "run" / "evaluation" / "test_index.json").read_text())
    metrics = saved["metrics"]
    assert (saved["split"], saved["tuned on"]) == ("test", "validation")
    assert metrics["share"] > 0
    assert metrics["bits_per_byte"] < metrics["bits_per_byte_without_index"]
    words = ["evaluate", folder / "run", "--split=test", "--json"]
    plain = json.loads(zoo_command(*words).out)["metrics"]
    expected = pytest.approx(metrics["bits_per_byte_without_index"], rel=1e-4)
    assert plain["bits_per_byte"] == expected, "the same targets in the same contexts"


def test_the_report_shows_contexts_with_their_passages(folder, tmp_path, zoo_command):
    shutil.copytree(folder / "run", tmp_path / "run")
    samples = json.loads((tmp_path / "run/evaluation/test_index_samples.json").read_text())
    texts = "\n".join(make_texts(40, seed=1))
    assert len(samples) >= 8
    for sample in samples:
        if sample["reference"] != "<end>":
            assert sample["source"] + sample["reference"] in texts
        assert sample["passage"] in texts
    assert any(sample["passage"].endswith(sample["reference"]) for sample in samples)
    assert zoo_command("report", tmp_path / "run").status == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Samples, test_index" in page
    assert samples[0]["passage"] in page


def test_generation_shows_the_passages_used(folder, zoo_command):
    words = ["generate", folder / "run", f"--index={folder / 'index'}", "--prompt=river mea"]
    words += ["--max_tokens=12", "--temperature=0"]
    answer = zoo_command(*words)
    text, *passages = answer.out.split("\n\n[")
    assert answer.status == 0
    assert text.startswith("river mea")
    assert len(text) > len("river mea") + 4
    assert 1 <= len(passages) <= 3
    assert "% document".replace("%", "%]") in passages[0]
    (row,) = json.loads(zoo_command(*words, "--json").out)
    assert f"river mea{row['text']}" == text
    shares = [passage["share"] for passage in row["passages"]]
    assert shares == sorted(shares, reverse=True)
    for passage in row["passages"]:
        assert passage["text"] in "\n".join(make_texts(40, seed=1))
        assert passage["bytes"][1] - passage["bytes"][0] == len(passage["text"])


def test_deleting_needs_no_model(folder, tmp_path, zoo_command):
    shutil.copytree(folder / "index", tmp_path / "index")
    answer = zoo_command("index", tmp_path / "index", "--delete=3", "--delete=5")
    assert answer.out.splitlines()[-1] == "deleted: 3, 5"
    assert read_manifest(tmp_path / "index")["deleted"] == [3, 5]
    answer = zoo_command("index", tmp_path / "index", "--delete=3")
    assert (answer.status, "not deleted yet. Received: 3." in answer.one_line()) == (2, True)


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ("index {0}/new", 2, "must be an index written by `zoo index`. The path does not exist"),
        ("index {0}/index --workdir={0}/other", 2, "built with another encoder"),
        ("index {0}/index --workdir={0}/run --method=bm25", 2, "The method of"),
        ("index {0}/index --workdir={0}/run --split=tset", 2, "Did you mean 'test'"),
        ("index {0}/index --workdir={0}/run --split=test", 2, "Set --add to add"),
        ("index {0}/new --workdir={0}/run --source=no_such", 2, "not the name of a corpus"),
        ("index {0}/new --workdir={0}/run --source=prepared:x", 2, "must come from a corpus"),
        ("index {0}/index --delete=x", 2, "--delete must be the number of a document"),
        ("evaluate {0}/other --index={0}/index", 2, "built with another encoder"),
        ("evaluate {0}/run --index={0}/index --neighbors=99999", 2, "the number of entries of"),
        ("evaluate {0}/run --index={0}/index --split=train", 2, "--split must differ from"),
        ("evaluate {0}/run --neighbors=4", 2, "--neighbors requires --index"),
        ("generate {0}/other --index={0}/index", 2, "built with another encoder"),
        ("generate {0}/run --index={0}/index --beams=3", 2, "--beams is not supported"),
        ("generate {0}/run --index={0}/run", 2, "must be an index written by `zoo index`"),
    ],
)
def test_wrong_requests_are_one_line(folder, tokenizer, zoo_command, words, status, message):
    if not (folder / "other").exists():
        shutil.copytree(folder / "run", folder / "other")
        from trainers.run.workdir import save_model

        save_model(registry.build("gpt_nano", **SIZES), folder / "other" / "model.keras")
    answer = zoo_command(*words.format(folder).split())
    assert message in answer.one_line()
    assert answer.status == status


def test_an_index_must_be_evaluated_before_it_is_used(folder, tmp_path, zoo_command):
    shutil.copytree(folder / "run", tmp_path / "run")
    (tmp_path / "run" / "evaluation" / "test_index.json").unlink()
    answer = zoo_command("generate", tmp_path / "run", f"--index={folder / 'index'}", "--prompt=a")
    assert "zoo evaluate" in answer.one_line()
    assert answer.status == 2
