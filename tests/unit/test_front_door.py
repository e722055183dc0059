"""`import pipeline` and `import model`: light, lazy, and each name is what it says, whatever was imported before."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = ("pipeline", "model")


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_loads_nothing_else(package: str) -> None:
    script = f"import sys; before = set(sys.modules); import {package}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    ours = {name for name in done.stdout.split() if name.split(".")[0] in PACKAGES}
    assert ours == {package}
    assert not {"torch", "ray", "pyarrow", "numpy", "cv2"} & set(done.stdout.split())


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_leads_to_what_editors_see(package: str, repository: Path) -> None:
    front = importlib.import_module(package)
    tree = ast.parse((repository / package / "__init__.py").read_text(encoding="utf-8"))
    for_editors = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            for alias in node.names:
                module = importlib.import_module(f"{package}.{node.module}")
                for_editors[alias.asname or alias.name] = getattr(module, alias.name)
    assert {*front.__all__} - {"__version__"} == {*for_editors}
    for name, expected in for_editors.items():
        assert getattr(front, name) is expected, name
        assert name in dir(front)
        assert expected.__doc__, f"{package}.{name} has no docstring"


@pytest.mark.parametrize("package", PACKAGES)
def test_no_name_is_taken_by_a_folder_or_module(package: str, repository: Path) -> None:
    front = importlib.import_module(package)
    there = {path.stem for path in (repository / package).iterdir()}
    assert not there & {*front.__all__}


@pytest.mark.parametrize("package", PACKAGES)
def test_an_unknown_name_is_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match="no attribute 'grains'"):
        _ = importlib.import_module(package).grains
