"""Tests `zoo prepare` from pages to records and a trained model; kills, workers, wrong requests."""

import configparser
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import commands, pages
from tests.commands import content
from tests.html_pages import EVIL, Page
from zoo.data.text.corpora import Corpus
from zoo.errors import RunError, UsageError
from zoo.storage.disk import json_digest
from zoo.storage.locks import lock_folder
from zoo.storage.records import RecordWriter

pytest.importorskip("trafilatura", reason="needs the extra `prep`")

from zoo.prep import card as data_card
from zoo.prep import pipeline, steps
from zoo.prep.engine import LocalEngine

RULES = ("language", "address", "gopher_quality", "c4", "fineweb")


def prepare(folder, out, workers=1, data=pages.DATA, **changes):
    changes = {"validation": 0.1, "shard_bytes": 4000, "rules": RULES, **changes}
    prep = pages.settings(input=str(folder), **changes)
    with LocalEngine(workers) as engine:
        return pipeline.prepare(prep, data, out, engine)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return pages.site(tmp_path_factory.mktemp("site") / "pages")


@pytest.fixture(scope="module")
def prepared(site, tmp_path_factory):
    """Returns (output folder, result) of `prepare` in one process."""
    out = tmp_path_factory.mktemp("prepared") / "out"
    return out, prepare(site, out)


def kept_texts(out, split):
    return [
        document.text
        for path in sorted((out / "text").glob(f"{split}-*.jsonl.gz"))
        for document in pipeline.read_documents(path)
    ]


def test_every_story_stays_once_and_the_card_adds_up(prepared):
    out, about = prepared
    card = json.loads((out / "data_card.json").read_text())
    assert about["documents"]["train"] + about["documents"]["validation"] == 40 + 1 + 1 + 6
    assert min(about["documents"].values()) > 0
    assert card["dropped"] == {
        "exact duplicates: of an earlier document": 1,
        "gopher_quality: few words": 1,
        "near duplicates: of an earlier document": 1,
    }
    reached = [step["documents"] for step in card["funnel"]]
    assert reached[0] - reached[-1] == sum(card["dropped"].values())
    assert card["languages"] == {"en": 48}
    texts = kept_texts(out, "train") + kept_texts(out, "validation")
    assert len(set(texts)) == 48
    assert not any(word in text for text in texts for word in ("Home", "Copyright", "<p>", "var "))
    assert {pages.paragraphs(seed) for seed in range(20, 40)} <= set(texts)
    html = (out / "data_card.html").read_text()
    assert "exact duplicates: of an earlier document" in html
    assert "http" not in html.split("<h2>Sites")[0].replace("http-", "")
    assert not (out / "work").exists()


def test_the_card_escapes_text_of_documents(prepared, tmp_path):
    card = json.loads((prepared[0] / "data_card.json").read_text())
    card |= {key: {EVIL: 1} for key in ("dropped", "unreadable", "languages", "licences", "sites")}
    card |= {"input": EVIL, "samples": {EVIL: [{"url": EVIL, "text": EVIL}]}}
    card["tokenizer_report"]["trained on"] = {EVIL: 2}
    card["settings"]["input"] = EVIL
    data_card.write_card(card, tmp_path / "card.html")
    page = Page(tmp_path / "card.html")
    assert "script" not in page.tags
    assert page.words.count(EVIL) == 11
    kept_count = sum(card["documents"].values())
    assert page.words.startswith(
        f"Data cardData card: {EVIL}{kept_count} of {kept_count + 3} documents"
    )
    assert page.table("step", "documents", "bytes")[-1][:2] == ["kept", str(kept_count)]
    assert ["trained on", f"2 {EVIL}"] in page.tables[-2]
    assert "dedup.near = True" in page.words


def test_records_contain_the_text_and_splits_share_no_document(prepared):
    from zoo.registry import load_data

    out, about = prepared
    dataset = load_data({**pages.DATA, "source": f"prepared:{out}"}, {"name": "clm"})
    assert not set(kept_texts(out, "train")) & set(kept_texts(out, "validation"))
    for split, arrays in dataset.splits.items():
        tokens, segments = np.asarray(arrays["tokens"]), np.asarray(arrays["segments"])
        pieces = [
            dataset.tokenizer.decode(row[segment == number])
            for row, segment in zip(tokens, segments, strict=True)
            for number in range(1, segment.max() + 1)
        ]
        # Every segment is part of a document, and there are enough tokens for all documents.
        whole = "\n".join(kept_texts(out, split))
        assert all(piece in whole for piece in pieces)
        assert np.count_nonzero(segments) >= about["tokens"][split]
    assert dataset.facts["Tokenizer"]["kind"] == "bpe"


@pytest.mark.parametrize("workers", [3])
def test_the_output_does_not_depend_on_workers(site, prepared, tmp_path, workers):
    prepare(site, tmp_path / "out", workers)
    assert content(tmp_path / "out") == content(prepared[0])


@pytest.mark.parametrize(
    "broken", ["filter_documents", "hash_documents", "verified_pairs", "write_splits", "tokenize"]
)
def test_a_killed_step_is_continued(site, prepared, tmp_path, monkeypatch, broken):
    done = []
    real = steps.write_json

    def dying(path, value):
        if path.parent.name == broken and len(done) == 2:
            raise KeyboardInterrupt  # the data files exist, the result does not
        if path.parent.name == broken:
            done.append(path)
        real(path, value)

    monkeypatch.setattr(steps, "write_json", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare(site, tmp_path / "out")
    monkeypatch.setattr(steps, "write_json", real)
    before = [path.stat().st_mtime_ns for path in done]
    (tmp_path / "out" / "text").mkdir(exist_ok=True)
    for name in (".zoo-0123456789abcdef.tmp", "text/.zoo-0123456789abcdef.tmp"):
        (tmp_path / "out" / name).write_text("half a file, as SIGKILL leaves one")
    removed_paths = []
    monkeypatch.setattr(pipeline.shutil, "rmtree", lambda path, **_: removed_paths.append(path))
    prepare(site, tmp_path / "out")
    assert [path.stat().st_mtime_ns for path in done] == before, "finished shards ran again"
    monkeypatch.undo()
    prepare(site, tmp_path / "out")  # removes the intermediate files
    assert content(tmp_path / "out") == content(prepared[0])


@pytest.mark.slow
def test_kills_at_any_moment_do_not_change_the_output(site, prepared, tmp_path):
    code = (
        "import sys; from tests.zoo.prep.test_prep_run import prepare; from pathlib import Path\n"
        f"prepare({str(site)!r}, {str(tmp_path / 'out')!r}, 2)"
    )
    root = str(Path(__file__).parents[3])
    kills = 0
    for seconds in (1.5, 2.0, 2.5, 3.0, 4.0, 5.0):
        run = subprocess.Popen(
            [sys.executable, "-c", code], cwd=root, stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": root, "OF_THE_TEST": str(tmp_path)},
        )  # fmt: skip
        time.sleep(seconds)
        if run.poll() is None:
            kills += 1
        run.send_signal(signal.SIGKILL)
        run.wait()
        time.sleep(1.5)  # the workers exit
        assert not _processes_with(f"OF_THE_TEST={tmp_path}")
    assert kills >= 2
    prepare(site, tmp_path / "out", 2)
    assert content(tmp_path / "out") == content(prepared[0])


def _processes_with(variable):
    processes = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if variable.encode() in path.read_bytes().split(b"\0"):
                processes.append((path.parent / "cmdline").read_bytes())
        except OSError:  # the process ended or belongs to another user
            continue
    return processes


def test_finished_output_is_not_changed(site, prepared):
    before = content(prepared[0])
    assert prepare(site, prepared[0])["documents"] == prepared[1]["documents"]
    assert content(prepared[0]) == before


def test_a_wrong_folder_is_refused(site, prepared, tmp_path):
    with pytest.raises(UsageError, match="another recipe, other input"):
        prepare(site, prepared[0], validation=0.2)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="contains other files"):
        prepare(site, tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "image.png").write_bytes(b"1")
    with pytest.raises(UsageError, match="readable file .1 files of unknown kind"):
        prepare(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(UsageError, match="matches no file"):
        prepare(tmp_path / "none-*.html", tmp_path / "out2")
    with lock_folder(tmp_path), pytest.raises(RunError, match="Another process works in"):
        prepare(site, tmp_path)


@pytest.mark.parametrize("name", ["work", "text", "records", "crawl", "work/filter_documents"])
@pytest.mark.parametrize("kind", ["link", "dangling", "file"])
def test_nothing_is_written_outside_the_folder(site, tmp_path, monkeypatch, name, kind):
    monkeypatch.setattr(pipeline, "_run", None)  # as if killed at the start
    with pytest.raises(TypeError):
        prepare(site, tmp_path / "out")
    monkeypatch.undo()
    place = tmp_path / "out" / name
    shutil.rmtree(place, ignore_errors=True)
    (tmp_path / "foreign").mkdir()
    if kind in ("link", "dangling"):
        place.symlink_to(tmp_path / ("foreign" if kind == "link" else "new"))
    else:
        place.touch()
    with pytest.raises(RunError, match=f"out/{name} must be a folder"):
        prepare(site, tmp_path / "out")
    assert not list((tmp_path / "foreign").iterdir())
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("00000-exact.npy", "pipe"),
        ("00000-exact.npy", "damaged"),
        ("00000.jsonl.zst", "damaged"),
        ("00000.jsonl.zst", "empty"),
        ("00000.json", "damaged"),
    ],
)
def test_a_damaged_intermediate_file_is_reported_in_one_line(
    site, tmp_path, monkeypatch, name, kind
):
    monkeypatch.setattr(steps.dedup, "find_repeats", None)  # as if killed after hashing
    with pytest.raises(TypeError):
        prepare(site, tmp_path / "out", shard_bytes=10**9)
    monkeypatch.undo()
    path = tmp_path / "out" / "work" / "hash_documents" / name
    path.unlink()
    os.mkfifo(path) if kind == "pipe" else path.write_bytes(b"{}" if kind == "damaged" else b"")
    with pytest.raises(RunError, match=f"{name} (cannot be read|is damaged|holds)"):
        prepare(site, tmp_path / "out", shard_bytes=10**9)


@pytest.mark.parametrize("content", ["{}", "[]", '{"plan": 1}'])
def test_a_damaged_prepared_json_is_reported_in_one_line(site, tmp_path, content):
    (tmp_path / "prepared.json").write_text(content)
    with pytest.raises(RunError, match="prepared.json is damaged"):
        prepare(site, tmp_path)


def test_the_plan_depends_on_the_content_of_lists_corpora_and_source(site, tmp_path, monkeypatch):
    words = tmp_path / "words.txt"
    prep = pages.settings(
        input=str(site), blocked_words__file=str(words), rules=["blocked_words"]
    )  # fmt: skip

    def plan(**changes):
        result, _ = pipeline._plan({**prep, **changes}, pages.DATA, tmp_path / "out", False)
        return json_digest(result)

    with pytest.raises(RunError, match=r"words.txt cannot be read"):
        plan()
    plan(rules=[])  # no rule reads the list
    words.write_text("one\n")
    first = plan()
    assert plan() == first
    words.write_text("two\n")
    assert plan() != first
    words.write_text("one\n")

    corpus = Corpus("a", {"train": lambda: iter(())}, ("fa",), fingerprint="a")
    monkeypatch.setattr(pipeline, "load_corpus", lambda name: corpus)
    first = plan(input="corpus:persian_news")
    assert plan(input="corpus:persian_news") == first
    corpus = dataclasses.replace(corpus, fingerprint="b")
    second = plan(input="corpus:persian_news")
    assert second != first

    source = tmp_path / "prep"
    shutil.copytree(Path(pipeline.__file__).parent, source)
    monkeypatch.setattr(pipeline, "__file__", str(source / "pipeline.py"))
    assert plan(input="corpus:persian_news") == second
    with open(source / "cleaning" / "clean.py", "a") as file:
        file.write("\n")
    assert plan(input="corpus:persian_news") != second


def test_no_documents_left_is_an_error(tmp_path):
    (tmp_path / "short.html").write_text("<p>Too short.</p>")
    with pytest.raises(RunError, match="No documents are left"):
        prepare(tmp_path / "*.html", tmp_path / "out")


def test_input_without_readable_documents_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"content": "It is here."}\n' * 3)
    with pytest.raises(RunError, match=r"3 records without text.*prep.text_field \('text'\)"):
        prepare(tmp_path / "a.jsonl", tmp_path / "out")


def test_few_files_are_open_at_once(site, prepared, tmp_path):
    """A large input has thousands of shards with one file or more each."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))\n"
        "from tests import pages\n"
        "from tests.zoo.prep import test_prep_run\n"
        f"test_prep_run.prepare({str(site)!r}, {str(tmp_path / 'out')!r}, shard_bytes=600)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=commands.ROOT, capture_output=True, text=True
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shards = len(list((tmp_path / "out" / "text").iterdir()))
    assert shards > 40  # with several files each


MODULE = """
def scored(text):
    return 1.0 if "museum" in text else 0.0
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_user_scorer_is_imported_from_the_current_folder(
    site, tmp_path, monkeypatch, zoo_command, workers
):
    """All workers import the scorer; a wrong name fails before any work."""
    (tmp_path / "my_scorer_of_text.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    words = (
        "prepare", "web_text:debug", "--out=D", f"--config.prep.input={site}",
        f"--workers={workers}", "--config.prep.rules=toxicity", "--config.data.sequence_length=32",
        "--config.data.vocabulary_size=300", "--config.prep.validation=0.2",
    )  # fmt: skip
    answer = zoo_command(*words, "--config.prep.toxicity.scorer=my_scorer_of_text:score")
    assert answer.status == 2
    assert "MODULE:FUNCTION" in answer.one_line()
    answer = zoo_command(*words, "--config.prep.toxicity.scorer=my_scorer_of_text:scored")
    assert answer.status == 0, answer.err
    card = json.loads((tmp_path / "D" / "data_card.json").read_text())
    assert "toxicity: toxic" in json.dumps(card)
    # The printed training command has the data settings.
    last = answer.out.splitlines()[-1]
    assert "--config.data.sequence_length=32 --config.data.vocabulary_size=300" in last


def has_my_module(task):
    assert task["module"] in sys.modules


def test_all_workers_import_user_modules(tmp_path, monkeypatch):
    (tmp_path / "my_corpora_of_text.py").write_text("")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    with LocalEngine(2, ["my_corpora_of_text"]) as engine:
        assert len(list(engine.run(has_my_module, [{"module": "my_corpora_of_text"}] * 4))) == 4
    with pytest.raises(AssertionError), LocalEngine(2) as engine:
        list(engine.run(has_my_module, [{"module": "my_corpora_of_text"}]))


def sleeps(task):
    time.sleep(task["seconds"])


def test_an_interrupt_does_not_wait_for_workers():
    def run_until_interrupt(engine):
        for _ in engine.run(sleeps, [{"seconds": 0}, *[{"seconds": 600}] * 9]):
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), LocalEngine(2) as engine:
        run_until_interrupt(engine)
    assert time.monotonic() - start < 60


def test_a_full_disk_is_reported(site, tmp_path, monkeypatch):
    import errno

    from zoo.storage import disk

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "fsync_file", full)
    with pytest.raises(OSError, match="No space left") as error:
        prepare(site, tmp_path / "out")
    assert str(tmp_path) in error.value.filename
    monkeypatch.undo()
    assert not list((tmp_path / "out").rglob("*.tmp"))
    prepare(site, tmp_path / "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "requires --out=D"),
        (("--out=D",), "prep.input must not be empty"),
        (("--out=D", "--config.prep.input=none.html"), "matches no file. Received: 'none.html'"),
        (("--out=D", "--config.prep.rules=gofer"), "prep.rules does not support 'gofer'"),
        (("--out=D", "--config.prep.clean.mask=name"), "prep.clean.mask does not support 'name'"),
        (("--out=D", "--config.prep.validation=1.5"), "prep.validation must be between 0 and 1"),
        (("--out=D", "--config.prep.dedup.bands=0"), "prep.dedup.bands must be at least 1"),
        (("--out=D", "--config.prep.dedup.band=2"), "no key 'prep.dedup.band'. Did you mean"),
        (("--out=D", "--config.prep.input=corpus:pydok"), "unknown corpus: 'pydok'. Did you mean"),
        (("--out=D", "--config.prep.input=http://"), "Received: 'http://'"),
    ],
)
def test_a_wrong_request_is_reported_in_one_line(
    zoo_command, tmp_path, monkeypatch, words, message
):
    monkeypatch.chdir(tmp_path)
    if len(words) == 2 and "prep.input" not in words[1]:
        words = (*words, "--config.prep.input=.")
    answer = zoo_command("prepare", "web_text:debug", *words)
    assert answer.status == 2
    assert message in answer.one_line()


def test_missing_packages_of_the_extra_are_named(zoo_command, tmp_path, monkeypatch):
    from trainers.cli import prepare as command

    file = configparser.ConfigParser()
    file.read(commands.ROOT / "setup.cfg")
    lines = file["options.extras_require"]["prep"].split("\n")
    names = [line.partition(">=")[0] for line in lines if line and not line.startswith("#")]
    assert tuple(names) == command._PACKAGES
    monkeypatch.setattr(command, "_PACKAGES", ("ftfy", "no_such_one", "nor_this_one"))
    answer = zoo_command("prepare", "web_text:debug", f"--out={tmp_path / 'out'}")
    assert answer.status == 2
    assert "keras-zoo[prep]'. Not installed: no_such_one, nor_this_one." in answer.one_line()


def test_a_recipe_that_does_not_fit_the_prepared_data_is_refused(prepared, tmp_path):
    from zoo.registry import load_data

    for change, message in (
        ({"packing": "stream"}, "data.packing must be best_fit"),
        ({"sequence_length": 64}, "data.sequence_length must be 32"),
        ({"tokenizer": "byte"}, "data.tokenizer must be 'bpe'"),
        ({"source": f"prepared:{tmp_path}"}, "a finished `zoo prepare"),
    ):
        with pytest.raises(UsageError, match=message):
            load_data(
                {**pages.DATA, "source": f"prepared:{prepared[0]}", **change}, {"name": "clm"}
            )


def test_other_records_are_reported_in_one_line(prepared, tmp_path):
    from zoo.registry import load_data

    out = tmp_path / "out"
    shutil.copytree(prepared[0], out)
    shutil.rmtree(out / "records" / "train")
    with RecordWriter(out / "records" / "train", {"image": ((), "u1")}) as writer:
        writer.append(image=np.zeros(3, np.uint8))
    data = {**pages.DATA, "source": f"prepared:{out}"}
    with pytest.raises(RunError, match="records/train is damaged: it contains no tokens"):
        load_data({**data, "packing": "best_fit"}, {"name": "clm"})
    about = json.loads((out / "prepared.json").read_text())
    (out / "prepared.json").write_text(json.dumps({**about, "records": {"../records": ""}}))
    with pytest.raises(RunError, match="prepared.json is damaged: unknown split '../records'"):
        load_data(data, {"name": "clm"})
    (out / "prepared.json").write_text(json.dumps({**about, "format": 0}))
    with pytest.raises(UsageError, match="has format 0; this version reads 1: prepare it again"):
        load_data(data, {"name": "clm"})


def test_a_stream_is_read_with_any_sequence_length(site, tmp_path):
    from zoo.registry import load_data

    data = {**pages.DATA, "packing": "stream"}
    prepare(site, tmp_path / "out", data=data)
    data |= {"source": f"prepared:{tmp_path / 'out'}", "sequence_length": 48, "tokenizer": ""}
    dataset = load_data(data, {"name": "clm"})
    assert dataset.splits["train"]["tokens"].shape[1] == 49
    for length in (1, 0, -3):
        with pytest.raises(UsageError, match="sequence_length must be at least 2"):
            load_data({**data, "sequence_length": length}, {"name": "clm"})


@pytest.mark.slow
def test_a_model_trains_on_prepared_data(site, tmp_path):
    out, workdir = tmp_path / "out", tmp_path / "run"
    answer = commands.zoo_process(
        "prepare", "web_text:debug", f"--config.prep.input={site}", f"--out={out}"
    )
    assert answer.status == 0, answer.err
    assert "documents" in answer.out
    assert "per second" in answer.err
    words = (f"--config.data.source=prepared:{out}", f"--workdir={workdir}")
    trained = commands.zoo_process(
        "train", "web_text:debug", *words, "--config.trainer.global_batch_size=4"
    )
    assert trained.status == 0, trained.err
    assert commands.metrics(trained.out.strip().splitlines()[-2])["loss"] < 6
    evaluation = commands.zoo_process("evaluate", workdir, "--split=validation")
    assert evaluation.status == 0, evaluation.err


@pytest.mark.slow
def test_persian_becomes_few_tokens_and_keeps_its_joiners(tmp_path):
    from trainers.config.base import section
    from trainers.config.recipe import resolve
    from zoo.data.text import tokenizers
    from zoo.storage.paths import data_dir

    if not (data_dir() / "persian_news").exists():
        pytest.skip("ZOO_DATA_DIR holds no persian_news")
    config = resolve("gpt_persian", [("prep.input", "corpus:persian_news")])
    prep, data = section(config, "prep").to_dict(), config.data.to_dict()
    with LocalEngine() as engine:
        about = pipeline.prepare(prep, data, tmp_path / "out", engine)
    assert sum(about["documents"].values()) > 850
    texts = kept_texts(tmp_path / "out", "validation")
    tokenizer = tokenizers.load(tmp_path / "out" / "tokenizer.json")
    assert tokenizers.report(tokenizer, texts)["tokens_per_word"] <= 1.5
    text = "".join(kept_texts(tmp_path / "out", "train"))
    assert text.count("\u200c") > 10_000
    assert not set("يك") & set(text)


def test_beam_gives_the_same_output(site, prepared, tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra `beam`")
    from zoo.prep.engine import BeamEngine

    prep = pages.settings(input=str(site), validation=0.1, shard_bytes=4000, rules=RULES)
    with BeamEngine([]) as engine:
        pipeline.prepare(prep, pages.DATA, tmp_path / "out", engine)
    assert content(tmp_path / "out") == content(prepared[0])
