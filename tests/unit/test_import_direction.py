"""Imports go one way (ARCHITECTURE.md), and heavy modules load only where they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

CONTRACT = {"schema", "rle", "masks", "errors"}
GROUND_FLOOR = {
    "config", "console", "images", "parquet", "storage", "tar", "timm_weights", "torch_compat", "versions",
}  # fmt: skip
"""Leaf modules that both packages may use: they know neither stages nor runs."""
MINING = {"model/tree_predictor.py": {"mill"}}
"""The predictor without weights mines the photograph that it is shown; it loads the mill then, and training never."""


def imported(path: Path, package: str) -> set[str]:
    """Absolute names of everything a file imports, at any depth, `package` being the one it lies in."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            names.add(base)
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def files(repository: Path, package: str) -> list[tuple[Path, str]]:
    root = repository / package
    return [(path, ".".join(path.relative_to(repository).parent.parts)) for path in sorted(root.rglob("*.py"))]


def test_pipeline_never_imports_model(repository: Path) -> None:
    for path, package in files(repository, "pipeline"):
        assert not any(name.split(".")[0] == "model" for name in imported(path, package)), path


def test_model_takes_only_the_contract_from_pipeline(repository: Path) -> None:
    for path, package in files(repository, "model"):
        for name in imported(path, package):
            parts = name.split(".")
            if parts[0] == "pipeline" and len(parts) > 1:
                allowed = (
                    CONTRACT
                    | GROUND_FLOOR
                    | {"bench", "__version__"}
                    | MINING.get(path.relative_to(repository).as_posix(), set())
                )
                assert parts[1] in allowed, f"{path} imports {name}"


def test_stages_do_not_import_each_other_ray_or_storage(repository: Path) -> None:
    allowed = CONTRACT | {"config", "graph", "timm_weights", "torch_compat"}
    for path, package in files(repository, "pipeline/stages"):
        if path.name == "__init__.py":
            continue
        for name in imported(path, package):
            parts = name.split(".")
            assert parts[0] not in {"ray", "fsspec", "pyarrow"}, f"{path} imports {name}"
            if parts[0] == "pipeline" and len(parts) > 1:
                assert parts[1] in allowed, f"{path} imports {name}"


def test_the_contract_knows_nothing_above_it(repository: Path) -> None:
    for module in CONTRACT:
        path = repository / "pipeline" / f"{module}.py"
        for name in imported(path, "pipeline"):
            parts = name.split(".")
            if parts[0] == "pipeline" and len(parts) > 1:
                assert parts[1] in CONTRACT, f"{path} imports {name}"


def test_nothing_imports_tests_benchmarks_or_infra(repository: Path) -> None:
    for package_root in ("pipeline", "model"):
        for path, package in files(repository, package_root):
            roots = {name.split(".")[0] for name in imported(path, package)}
            assert not roots & {"tests", "benchmarks", "infra"}, path


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("pipeline.schema", {"torch", "ray", "cv2", "fsspec", "model"}),
        ("pipeline.commands.mine", {"torch", "ray", "model"}),
        ("pipeline.executors", {"ray"}),
        ("model.tree_predictor", {"pipeline.mill", "pipeline.stages", "ray"}),
        ("model.train", {"pipeline.mill", "model.tree_predictor"}),
    ],
)
def test_modules_load_without(module: str, absent: set[str]) -> None:
    script = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & absent
