"""The front door: quick, teaching, and with the exit codes that others rely on."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

from pipeline import cli


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "pipeline", *arguments], capture_output=True, text=True, check=False
    )


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(f"\n  {name} " in done.stdout for name in cli.COMMANDS)


def test_help_loads_next_to_nothing_and_so_answers_at_once() -> None:
    script = (
        "import sys; before = set(sys.modules); from pipeline import cli; cli.main(['--help']); "
        "print(*set(sys.modules) - before, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"torch", "ray", "numpy", "numba", "pyarrow", "typer", "rich", "model"}
    assert len(loaded) < 60, "typer alone brings twice as many"


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_teaches_itself(name: str) -> None:
    done = run(name, "--help")
    assert done.returncode == 0, done.stderr
    assert "Usage: grainmill" in done.stdout
    assert importlib.import_module(cli.COMMANDS[name][0]).run.__doc__
    assert run(name, "-h").stdout == done.stdout


def test_unknown_command_and_flag_are_bad_usage() -> None:
    assert run("mill").returncode == 2
    done = run("mine", "--no-such-flag")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_the_short_help_is_the_long_one() -> None:
    assert run("-h").stdout == run("--help").stdout == run("help").stdout
    for module, command in (("model.merge", "merge"), ("model.onnx_export", "onnx-export")):  # their older spelling
        done = subprocess.run([sys.executable, "-m", module, "-h"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines()[1:] == run(command, "-h").stdout.splitlines()[1:]


def test_threads_sleep_while_they_wait_unless_the_environment_says_otherwise() -> None:
    """As torch's own OpenMP reads it when it is loaded."""
    bare = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    script = "import os; from pipeline import cli; cli.main(['stats', 'nowhere']); print(os.environ['OMP_WAIT_POLICY'])"
    for given, expected in (({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")):
        call = [sys.executable, "-c", script]
        done = subprocess.run(call, capture_output=True, text=True, check=True, env={**bare, **given})
        assert done.stdout.strip() == expected
    dry = [sys.executable, "-m", "pipeline", "train", "--dry-run", "--size", "micro", "--init", "scratch"]
    shown = {**bare, "OMP_DISPLAY_ENV": "verbose"}
    done = subprocess.run(dry, capture_output=True, text=True, check=True, env=shown)
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("torch's OpenMP is not GNU's, which says what it was given")
    assert "GOMP_SPINCOUNT = '0'" in done.stderr


def test_a_pattern_without_quotes_is_hinted_at(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, flag in (
        (["mine", "--input", "a.jpg", "b.jpg", "--output", "out"], "--input"),
        (["join", "rel", "--images", "a.jpg", "b.jpg", "--output", "out"], "--images"),
    ):
        assert cli.main(arguments) == 2
        said = capsys.readouterr().err
        assert "unexpected extra argument" in said
        assert f"quotes, or the shell puts its files there: {flag} 'photos/*.png'" in said
    assert cli.main(["stats", "a", "b"]) == 2
    assert "quotes" not in capsys.readouterr().err


def test_version() -> None:
    assert run("--version").stdout.startswith("grainmill ")
