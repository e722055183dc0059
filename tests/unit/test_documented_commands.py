"""Every `grainmill COMMAND --flag` in the documents and in `infra/` exists in the command's own help."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import cli

SUFFIXES = {".md", ".yaml", ".yml", ".sbatch", ".sh", ".py", ".cpu", ".cuda"}
CALL = re.compile(r"(?:grainmill|-m pipeline) ([a-z][a-z-]+)((?:[^\n#|;`]|\\\n)*)")


@functools.cache
def help_of(command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={"COLUMNS": "400", "PATH": "", "TERM": "dumb"},
    )
    return done.stdout


def documents(repository: Path) -> list[Path]:
    files = list(repository.glob("*.md"))
    for folder in ("docs", "infra", "dataset_cards", "benchmarks"):
        files += [path for path in (repository / folder).rglob("*") if path.suffix in SUFFIXES]
    return sorted(files)


def calls(repository: Path) -> list[tuple[str, str, str]]:
    found = []
    for path in documents(repository):
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        text = re.sub(r"\n +(--[a-z])", r" \1", text)  # YAML folds an entry point over lines
        for match in CALL.finditer(text):
            if match.group(1) in cli.COMMANDS or "--" in match.group(2):
                found.append((str(path.relative_to(repository)), match.group(1), match.group(2)))
    return found


def test_documents_name_commands_that_exist(repository: Path) -> None:
    found = calls(repository)
    assert found, "no document names a command: the search above is broken"
    for where, command, _ in found:
        assert command in cli.COMMANDS, f"{where} names `grainmill {command}`"


def test_documents_name_flags_that_exist(repository: Path) -> None:
    for where, command, arguments in calls(repository):
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", arguments):
            assert re.search(rf"{flag}(?![\w-])", help_of(command)), f"{where}: `grainmill {command}` has no {flag}"


@pytest.mark.parametrize("package", ["benchmarks/results"])
def test_dated_reports_name_their_command(repository: Path, package: str) -> None:
    for report in sorted((repository / package).glob("*.md")):
        assert "grainmill" in report.read_text(encoding="utf-8"), (
            f"{report.name} does not name the command that made it"
        )


PATH = re.compile(r"`([A-Za-z0-9_./-]+\.py)`")


def test_documents_name_modules_that_exist(repository: Path) -> None:
    """By their whole path, or by its end where the text says which folder is meant."""
    folders = ("pipeline", "model", "tests", "benchmarks", "infra")
    there = [f"/{path.relative_to(repository)}" for folder in folders for path in (repository / folder).rglob("*.py")]
    pages = [repository / name for name in ("ARCHITECTURE.md", "README.md", "CONTRIBUTING.md")]
    named = [
        (page.name, path)
        for page in [*pages, *(repository / "docs").rglob("*.md")]
        for path in PATH.findall(page.read_text(encoding="utf-8"))
    ]
    assert named, "no document names a module: the search above is broken"
    missing = [f"{page}: {path}" for page, path in named if not any(each.endswith(f"/{path}") for each in there)]
    assert not missing, "\n".join(missing)
