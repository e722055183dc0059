"""Imports go one way (ARCHITECTURE.md), and heavy modules load only where they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ORDER = [
    "pipeline.errors", "pipeline.console", "pipeline.environment", "pipeline.format", "pipeline.storage",
    "pipeline.sources", "pipeline.labeling", "pipeline.shards", "pipeline.units", "pipeline.dataset",
    "pipeline.executors", "pipeline.mining", "pipeline.boundaries", "pipeline.release", "pipeline.library",
    "pipeline.bench", "pipeline.commands", "pipeline.cli", "pipeline.__main__",
    "model.network", "model.data", "model.predict", "model.desk", "model.evaluation", "model.training", "model.library",
    "model.bench", "model.commands", "model.merge", "model.onnx_export",
]  # fmt: skip
"""A folder or module imports from those before it, at any depth of its code; every one of both packages is here."""

SEEN_BY_MODEL = {
    "pipeline.errors", "pipeline.console", "pipeline.environment", "pipeline.format", "pipeline.storage",
    "pipeline.dataset",
}  # fmt: skip
"""What all of `model` may import of `pipeline`; below, who may import more."""
SEEN_BY = {
    "pipeline.sources.images": "model.",
    "pipeline.sources.kinds": "model.",
    "pipeline.labeling.atoms": "model.predict.",
    "pipeline.labeling.miner": "model.predict.tree",
    "pipeline.labeling.config": "model.",
    "pipeline.bench.report": "model.",
    "pipeline.commands.flags": "model.commands.",
}


def modules(repository: Path) -> dict[str, Path]:
    """Name -> file of every module of both packages."""
    found = {}
    for package in ("pipeline", "model"):
        for path in sorted((repository / package).rglob("*.py")):
            parts = path.relative_to(repository).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: set[str]) -> set[str]:
    """Absolute names of the modules that a module imports, also inside functions; packages by what is taken of them."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            for alias in node.names:
                full = f"{base}.{alias.name}"
                found.add(full if full in known else base)
    return found - {name}


def loaded(name: str, others: set[str]) -> set[str]:
    """What is imported with it: the packages that hold the modules, but those that the module itself is in."""
    packages = {other.rsplit(".", depth)[0] for other in others for depth in range(1, other.count(".") + 1)}
    return others | {each for each in packages if not f"{name}.".startswith(f"{each}.")}


@pytest.fixture(scope="module")
def graph(repository: Path) -> dict[str, set[str]]:
    known = modules(repository)
    return {name: imports(name, path, set(known)) for name, path in known.items()}


def room(name: str) -> str:
    return ".".join(name.split(".")[:2])


def inside(graph: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports between modules of the project, those of a bare package left out: it holds the version and names."""
    return [(name, other) for name, others in graph.items() for other in others if other in graph and "." in other]


def test_every_folder_has_its_place_in_the_order(graph: dict[str, set[str]]) -> None:
    assert {room(name) for name in graph} == {*ORDER, "pipeline", "model"}


def test_imports_go_down_the_order(graph: dict[str, set[str]]) -> None:
    for name, other in inside(graph):
        if "." in name:
            assert ORDER.index(room(other)) <= ORDER.index(room(name)), f"{name} imports {other}"


def test_no_circle_of_imports(graph: dict[str, set[str]]) -> None:
    """Bare packages left out: everything may ask them for the version, and their names load when they are used."""
    known = graph.keys() - {"pipeline", "model"}
    try:
        TopologicalSorter({name: loaded(name, graph[name]) & known for name in known}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_pipeline_never_imports_model(graph: dict[str, set[str]]) -> None:
    for name, others in graph.items():
        if name.split(".")[0] == "pipeline":
            assert not any(other.split(".")[0] == "model" for other in others), name


def test_model_sees_the_lower_floors_of_pipeline_only(graph: dict[str, set[str]]) -> None:
    for name, other in inside(graph):
        if name.split(".")[0] == "model" and other.split(".")[0] == "pipeline" and room(other) not in SEEN_BY_MODEL:
            who = SEEN_BY.get(other)
            assert who is not None, f"{name} imports {other}"
            assert name.startswith(who), f"{name} imports {other}"


def test_stages_do_not_import_each_other_ray_or_storage(graph: dict[str, set[str]]) -> None:
    stages = "pipeline.labeling.stages."
    for name, others in graph.items():
        if name.startswith(stages):
            assert not {other.split(".")[0] for other in others} & {"ray", "fsspec", "pyarrow"}, name
            allowed = ("pipeline.errors", "pipeline.environment.", "pipeline.format.", "pipeline.labeling.")
            ours = {other for other in others if other.split(".")[0] == "pipeline"}
            assert all(other.startswith(allowed) for other in ours), name
            assert not any(other.startswith(stages) for other in ours), name


def test_nothing_imports_tests_benchmarks_or_infra(graph: dict[str, set[str]]) -> None:
    for name, others in graph.items():
        assert not {other.split(".")[0] for other in others} & {"tests", "benchmarks", "infra"}, name


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("pipeline.format.schema", {"torch", "ray", "cv2", "fsspec", "model"}),
        ("pipeline.commands.mine", {"torch", "ray", "model"}),
        ("pipeline.executors.driver", {"ray"}),
        ("model.predict.tree", {"pipeline.labeling.miner", "pipeline.labeling.stages", "ray"}),
        ("model.training.train", {"pipeline.labeling.miner", "model.predict.tree"}),
    ],
)
def test_modules_load_without(module: str, absent: set[str]) -> None:
    script = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & absent
