"""A cluster that is not there is told before Ray begins to try for a quarter of an hour."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.executors import ray_pool
from pipeline.executors.ray_pool import require_listening


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "CONNECT_S", 0.3)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def dead() -> Iterator[int]:
    """A port that is taken, so that nobody else gets it, and at which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.usefixtures("hasty")
def test_a_place_where_nobody_listens_is_refused(dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in (f"127.0.0.1:{dead}", f"ray://127.0.0.1:{dead}", f"localhost:{dead}", "no-such-host.invalid:6379"):
        with pytest.raises(ConnectionError, match="nothing answers at"):
            require_listening(address)
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{dead}")
    with pytest.raises(ConnectionError, match=f"port {dead}"):
        require_listening("auto")
    for address in ("local", "http://127.0.0.1:1", "127.0.0.1", "127.0.0.1:port", "[::1", ""):
        require_listening(address)  # for Ray to judge


def test_a_head_that_listens_or_is_about_to_is_met(dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_pool, "CONNECT_S", 30.0)
    with contextlib.ExitStack() as stack:
        listening = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        ports = [each.getsockname()[1] for each in listening]
        require_listening(f"127.0.0.1:{ports[0]}")
        monkeypatch.setattr(ray_pool, "CLIENT_PORT", ports[1])
        require_listening("ray://127.0.0.1")
        late = stack.enter_context(socket.socket())
        late.bind(("127.0.0.1", 0))
        timer = threading.Timer(0.5, late.listen)
        timer.start()
        require_listening(f"127.0.0.1:{late.getsockname()[1]}")
        timer.join()


@pytest.mark.usefixtures("hasty")
def test_mine_says_so_and_can_be_repeated(
    dead: int, small_photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["mine", "--input", f"in={small_photographs}", "--output", str(tmp_path / "out"), "--limit", "1"]
    assert main([*command, "--ray-address", f"127.0.0.1:{dead}"]) == 2
    said = capsys.readouterr().err
    assert f"cannot reach or start Ray at 127.0.0.1:{dead}: nothing answers at 127.0.0.1 port {dead}" in said
    assert main([*command, "--executor", "inline"]) == 0
