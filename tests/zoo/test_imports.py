"""Imports of first-party modules are at the top of a file, so that cycles fail."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Modules that import by name, or only after TensorFlow has started.
ENTRY_POINTS = ("zoo/registry.py", "zoo/catalog.py", "trainers/config/recipe.py", "trainers/cli/")


def inner_imports(source: str) -> list[int]:
    """Returns the lines of first-party imports inside functions."""
    lines = []
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(function):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if any(name.partition(".")[0] in ("zoo", "trainers", "configs") for name in names):
                lines.append(node.lineno)
    return lines


def test_an_inner_import_is_noticed():
    assert inner_imports("def f():\n    from zoo import errors\n    import numpy\n") == [2]
    assert inner_imports("import zoo\ndef f():\n    import trainers.run.state\n") == [3]


def test_own_modules_are_imported_at_the_top():
    inner = {
        f"{path.relative_to(ROOT)}:{line}"
        for folder in ("zoo", "trainers", "configs")
        for path in (ROOT / folder).rglob("*.py")
        if not str(path.relative_to(ROOT)).startswith(ENTRY_POINTS)
        for line in inner_imports(path.read_text())
    }
    assert not inner
