"""The front door: quick, teaching, and with the exit codes that others rely on."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time

import pytest

from pipeline import cli


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "pipeline", *arguments], capture_output=True, text=True, check=False
    )


def test_help_answers_in_under_a_second_and_names_every_command() -> None:
    started = time.perf_counter()
    done = run("--help")
    elapsed_s = time.perf_counter() - started
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in cli.COMMANDS)
    assert elapsed_s < 1.0 or min(_again() for _ in range(3)) < 1.0


def _again() -> float:
    started = time.perf_counter()
    run("--help")
    return time.perf_counter() - started


def test_help_loads_no_heavy_module() -> None:
    script = "import sys; from pipeline import cli; cli.main(['--help']); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"torch", "ray", "numpy", "numba", "pyarrow", "typer", "rich", "model"}


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_teaches_itself(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage: grainmill" in done.stdout
    command = importlib.import_module(cli.COMMANDS[name][0]).command
    assert command.__doc__


def test_unknown_command_and_flag_are_bad_usage() -> None:
    assert run("mill").returncode == 2
    done = run("mine", "--no-such-flag")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_version() -> None:
    assert run("--version").stdout.startswith("grainmill ")
