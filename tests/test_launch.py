"""The commands in the SkyPilot task files of launch/ are valid `zoo` commands."""

import re
import subprocess

import pytest
import yaml

from tests.commands import ROOT
from trainers.cli import train
from trainers.cli.main import COMMANDS
from trainers.config.recipe import resolve

FILES = sorted((ROOT / "launch").glob("*.yaml"))
_KEYS = {
    "name", "num_nodes", "resources", "envs", "workdir", "file_mounts", "setup", "run",
}  # fmt: skip


def parsed(line):
    words = line.replace('"', "").split()[1:]
    return train._FLAGS.parse(words, train.__doc__, at_most=1, overrides=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_task_file_runs_commands_that_exist(path):
    task = yaml.safe_load(path.read_text())
    assert set(task) <= _KEYS
    assert f"launch/{path.name}" in path.read_text().partition("name:")[0]
    assert task["resources"]["infra"] in ("gcp", "aws", "azure")
    stores = {"gcp": "gcs", "aws": "s3", "azure": "azure"}
    for store in task.get("file_mounts", {}).values():
        assert store["store"] == stores[task["resources"]["infra"]]
    values = {**task["envs"], "SKYPILOT_NODE_RANK": "1", "WORKERS": "a:1,b:2"}
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)
    script = task["run"].replace("\\\n", " ")
    script = re.sub(r'"?\$(\w+)"?', lambda name: values.get(name[1], name[0]), script)
    (line,) = [line for line in script.splitlines() if line.startswith("zoo train ")]
    words, overrides = parsed(line)
    config = resolve(words[0], [*overrides, ("trainer.strategy", train._STRATEGY.value)])
    several, tpu = task.get("num_nodes", 1) > 1, "tpu" in task["resources"]["accelerators"]
    assert config.trainer.strategy == ("multi_worker" if several else "tpu" if tpu else "auto")
    # A bucket mounted in the file system, or a bucket that the zoo copies to.
    assert train._WORKDIR.value.startswith("gs://" if tpu else tuple(task["file_mounts"]))
    assert (train._WORKERS.value, train._INDEX.value) == (("a:1,b:2", 1) if several else ("", None))
    assert f"zoo fetch {config.data.source}\n" in script
    # The example at the head of the file also fetches the data of its recipe.
    head = path.read_text().partition("name:")[0]
    given = dict(re.findall(r"--env (\w+)=(\w+)", head))
    assert set(given) <= set(task["envs"])
    assert resolve(given["RECIPE"], []).data.source == given["DATA"]


def test_the_page_on_tpus_gives_commands_that_exist():
    page = (ROOT / "docs" / "tpu_vm.md").read_text().replace("\\\n", " ")
    names = dict(re.findall(r"^export ([A-Z]+)=(\S+)", page, re.MULTILINE))
    page = re.sub(r"\$([A-Z]+)", lambda name: names.get(name[1], name[0]), page)
    (line,) = [line for line in page.splitlines() if line.startswith("zoo train ")]
    words, overrides = parsed(line)
    config = resolve(words[0], [*overrides, ("trainer.strategy", train._STRATEGY.value)])
    assert (config.trainer.strategy, config.data.source) == ("tpu", names["DATA"])
    assert train._WORKDIR.value == "gs://my-zoo-runs/run"
    command_names = re.findall(r"^zoo (\w+)", page, re.MULTILINE)
    assert set(command_names) - {"fetch"} == {
        "tpu_check", "train", "report", "evaluate", "generate", "export"
    }  # fmt: skip
    assert set(command_names) <= set(COMMANDS)
    for file in re.findall(r"launch/\w+\.\w+", page):
        assert (ROOT / file).exists()


def test_nodes_become_workers():
    """Checks the shell line that converts the node addresses of SkyPilot to --workers."""
    task = yaml.safe_load((ROOT / "launch" / "multi_worker.yaml").read_text())
    (line,) = [line for line in task["run"].splitlines() if line.startswith("WORKERS=")]
    done = subprocess.run(
        ["bash", "-c", f'{line}; echo "$WORKERS"'],
        env={"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "10.0.0.1:12345,10.0.0.2:12345\n"
