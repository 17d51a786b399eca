"""WORKSPACE.md and README.md match the repository."""

import re
from pathlib import Path

from benchmarks import workspace_table

ROOT = Path(__file__).parent.parent


def test_tables_are_current():
    text = workspace_table.WORKSPACE.read_text()
    assert text == workspace_table.with_tables(text), "run `make workspace`"


def test_paths_that_the_documents_name_exist():
    for document in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")):
        if document.name == "CHANGELOG.md":  # the changelog names files of earlier layouts
            continue
        text = document.read_text()
        for path in re.findall(r"`((?:zoo|trainers|configs|tests|benchmarks|docs)/[\w./]*)`", text):
            assert (ROOT / path).exists(), f"{document} names {path}"
        for link in re.findall(r"\]\(([\w./]+\.md)(?:#\w+)?\)", text):
            assert (document.parent / link).exists(), f"{document} links to {link}"


def test_readme_opens_with_the_two_commands():
    head = "\n".join((ROOT / "README.md").read_text().splitlines()[:12])
    assert "make quickstart" in head
    assert "make test" in head
