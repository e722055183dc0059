"""The wheel holds two packages and nothing else; the constraints pin versions only."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import model.commands
import pipeline


def test_packages_lie_in_this_checkout(repository: Path) -> None:
    assert Path(pipeline.__file__).parent == repository / "pipeline"
    assert Path(model.commands.__file__).parents[1] == repository / "model"


def test_the_wheel_holds_pipeline_and_model_only(repository: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from hatchling.builders.wheel import WheelBuilder; "
        "print(next(iter(WheelBuilder(sys.argv[1]).build(directory=sys.argv[2], versions=['standard']))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(repository), str(tmp_path)], capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(done.stdout.strip().splitlines()[-1]) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"pipeline", "model"}
    templates = {path.name for path in (repository / "pipeline").rglob("*.html")}
    assert templates <= {name.rsplit("/", 1)[-1] for name in names}


def test_constraints_pin_versions_only(repository: Path) -> None:
    for line in (repository / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            assert re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z0-9,]+\])?==[0-9A-Za-z.]+", line), line


def test_requirements_are_all_pinned(repository: Path) -> None:
    import tomllib

    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [name for extra in project["optional-dependencies"].values() for name in extra]
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    }
    for requirement in wanted:
        name = re.split(r"[\[<>=]", requirement)[0].lower().replace("_", "-")
        assert name == "grainmill" or name in pinned, f"{requirement} has no pin in constraints.txt"
