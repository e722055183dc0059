"""How a run is carried out by default."""

from __future__ import annotations

import pytest

from model.train_config import loader_processes


@pytest.mark.parametrize(
    ("asked", "on_gpu", "expected"), [(None, False, 0), (None, True, 4), (0, True, 0), (2, False, 2), (7, True, 7)]
)
def test_a_gpu_has_loader_processes_unless_other_ones_are_asked_for(
    asked: int | None, on_gpu: bool, expected: int
) -> None:
    assert loader_processes(asked, on_gpu=on_gpu) == expected
