"""The renderer of all HTML pages, and its templates in a wheel."""

import os
import shutil
import subprocess
import sys
import zipfile

import jinja2
import pytest

from tests.commands import ROOT
from zoo.pages.render import write_page


def _templates():
    """Returns the templates and style sheets in the source."""
    paths = [path for top in ("zoo", "trainers") for path in ROOT.glob(f"{top}/**/templates/*")]
    assert len(paths) > 5
    return paths


def test_a_value_that_a_template_lacks_is_an_error(tmp_path):
    with pytest.raises(jinja2.UndefinedError, match="'card' is undefined"):
        write_page(tmp_path / "page.html", "zoo.prep", "data_card.html", samples=[])
    assert not list(tmp_path.iterdir())


def test_only_drawings_are_inserted_unescaped():
    lines = [line.strip() for path in _templates() for line in path.read_text().splitlines()]
    assert [line for line in lines if "safe" in line or "autoescape" in line] == [
        "{{ svg | safe }}"
    ]


def test_an_installed_wheel_writes_pages(tmp_path):
    source, wheels, installed = (tmp_path / name for name in ("source", "wheels", "installed"))
    source.mkdir()
    for name in ("zoo", "trainers", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    words = [sys.executable, "-c", code, str(wheels)]
    wheels.mkdir()
    subprocess.run(words, cwd=source, check=True, capture_output=True)
    with zipfile.ZipFile(*wheels.iterdir()) as wheel:
        wheel.extractall(installed)

    work = tmp_path / "work"
    work.mkdir()
    (work / "config.json").write_text('{"format_version": 1, "config": {"model": {"name": "m"}}}')
    code = (
        "import sys, zoo; from trainers.report.page import write_report;"
        "write_report(sys.argv[1]); print(zoo.__file__)"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, str(work)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(installed)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{installed / 'zoo' / '__init__.py'}\n"
    assert "<h1>m</h1>" in (work / "report.html").read_text()
    assert {path.relative_to(ROOT) for path in _templates()} == {
        path.relative_to(installed) for path in installed.glob("**/templates/*")
    }
